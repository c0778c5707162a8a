"""What each chosen expert writes, what leaves the experts, and what the block makes of it.

Plain code, for the reasons given in ``_traced_parts``. An expert's output is had by calling the
experts once more, on one (token, expert) pair per row. What is read is a copy; where a gradient
is wanted, or where the experts' own call can be saved, the copy takes the place of the original.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from moe_interp.models._traced_dispatch import dispatched, places
from moe_interp.models._traced_parts import (
    LayerParts,
    checked,
    operation,
    own_rows,
    runs_alone,
    waiting_slots,
    work_beside,
)


def run_slots(layer: "LayerParts") -> "dict[str, Tensor]":
    """Per slot the unweighted output, the weight, and their product before and after rounding.

    ``through`` is what stands for the product where gradients go.
    """
    kind = layer.facts["dispatch"]
    index, weights, _ = dispatched(layer)
    if kind == "input_scaled":
        # The weight has already multiplied the expert's input: there is no unweighted output.
        own = written_by_all(layer)
        outputs = own.gather(2, index[..., None].expand(*index.shape, own.shape[-1]))
        weighted = outputs
    else:
        outputs = sorted_outputs(layer) if kind == "sorted" else run_experts_apart(layer)
        weighted = outputs * weights[..., None]
    return {
        "expert_outputs": outputs,
        "expert_contributions": weighted.to(outputs.dtype),
        "routing_weights": weights,
        "index": index,
        "weighted": weighted,
        "through": weighted,
        "stale": False,
    }


def sorted_outputs(layer: "LayerParts") -> 'Float[Tensor, "batch pos top_k d_model"]':
    """What the experts wrote for token copies that were sorted by expert, put back in order."""
    place = places(layer.router.output[0])
    copies = layer.experts.output[place]
    own = own_rows(copies.unflatten(0, (-1, layer.top_k)).flatten(1))[0]
    return own.unflatten(-1, (layer.top_k, -1))


def written_by_all(layer: "LayerParts") -> 'Float[Tensor, "batch pos expert d_model"]':
    """What every expert wrote for every token, where all of them run on all tokens."""
    by_expert = layer.experts.output.unflatten(0, (layer.n_experts, -1))
    own = own_rows(by_expert.transpose(0, 1).flatten(1))[0]
    return own.unflatten(-1, (layer.n_experts, -1))


def run_experts_apart(
    layer: "LayerParts", others: "Tensor | None" = None
) -> 'Float[Tensor, "batch pos top_k d_model"]':
    """Call the experts with weight 1 on one (token, expert) pair per row.

    Those that are chosen, or ``others``, where experts are called with an index.
    """
    facts = layer.facts
    if facts["dispatch"] == "one_hot":
        index, weights, _ = dispatched(layer)
        hidden = own_rows(layer.experts.inputs[0][0])[0]
        hot = torch.nn.functional.one_hot(index.reshape(-1, 1), layer.n_experts)
        out = layer.experts(hidden.flatten(0, 1), hot, torch.ones_like(weights).reshape(-1, 1))
        return out.unflatten(0, index.shape)
    args, kwargs = layer.experts.inputs
    names = facts["experts_arguments"]
    values = [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]
    hidden, index, weights = [own_rows(value)[0] for value in values]
    if others is not None:
        index, weights = others, torch.ones_like(others, dtype=weights.dtype)
    shape = (*index.shape[:2], index.shape[-1])
    # Pairs stand in the order in which the experts themselves take them up, so that every product
    # of matrices is the same, bit for bit: a loop over experts goes slot by slot.
    by_slot = facts["runs"] == "eager"
    rows = hidden.flatten(0, 1)
    rows = rows.repeat(shape[-1], 1) if by_slot else rows.repeat_interleave(shape[-1], 0)
    ids, given = index.flatten(0, 1), weights.flatten(0, 1)
    ids, given = (ids.T, given.T) if by_slot else (ids, given)
    ids, given = ids.reshape(-1, 1), given.reshape(-1, 1)
    each = torch.ones_like(given)
    if facts["skips"]:
        each = each.masked_fill((ids == 0) & (given == 0), 0.0)
    if facts["columns_apart"] > 1:
        ids = ids.repeat(1, facts["columns_apart"])
        each = torch.cat([each, torch.zeros_like(each)], -1)
    out = layer.experts(rows[None], ids, each)[0] if values[0].dim() == 3 else None
    out = layer.experts(rows, ids, each) if out is None else out
    if by_slot:
        return out.unflatten(0, (shape[-1], -1)).transpose(0, 1).unflatten(0, shape[:2])
    return out.unflatten(0, shape)


def can_skip(layer: "LayerParts") -> "bool":
    """Whether adding the slots up gives the experts' output bit for bit, for the whole batch."""
    return layer.facts["adds_slots_up"] and runs_alone()


def add_up(layer: "LayerParts", slots: "dict[str, Tensor]") -> 'Float[Tensor, "batch pos d_model"]':
    """The sum of the slots, rounded as the experts themselves round it."""
    dtype = slots["expert_outputs"].dtype
    if layer.facts["runs"] != "eager":
        return slots["weighted"].sum(2).to(dtype)
    # A loop adds one expert after the other, in the order of their ids.
    order = slots["index"].argsort(-1)[..., None]
    weighted = slots["weighted"].to(dtype)
    sorted_slots = weighted.gather(2, order.expand_as(weighted)).unbind(2)
    total = torch.zeros_like(sorted_slots[0])
    for slot in sorted_slots:
        total = total + slot
    return total


def sum_place(layer: "LayerParts") -> "tuple[object, Tensor]":
    """Where the sum over experts can be replaced, and the sum as served there."""
    place = layer.experts if not layer.facts["sum"] else operation(layer, layer.facts["sum"])
    return place, place.output


def read_slots(
    layer: "LayerParts", wants_contributions: "bool", may_skip: "bool"
) -> "dict[str, Tensor]":
    """Outputs and contributions of each slot, kept until added up if they are needed again.

    Where a gradient is wanted they become what the model goes on with, without a change of its
    value. With `may_skip` so they do where they make the experts' own call needless.
    """
    slots = waiting_slots(layer)
    if slots is None:
        slots = run_slots(layer)
        if may_skip and can_skip(layer):
            layer.experts.skip(total_of(layer, slots, wants_contributions).flatten(0, 1))
        elif slots["weighted"].requires_grad or layer.facts["dispatch"] != "indexed":
            work_beside(layer, slots, lambda found: put_on_path(layer, found))
    if wants_contributions:
        slots["through"] = slots["expert_contributions"]
    return slots


def total_of(
    layer: "LayerParts", slots: "dict[str, Tensor]", wants_contributions: "bool"
) -> 'Float[Tensor, "batch pos d_model"]':
    """The experts' output from their slots, through which gradients reach what is read."""
    value = add_up(layer, slots)
    if not (value.requires_grad and wants_contributions):
        return value
    through = slots["expert_contributions"].sum(2).to(value.dtype)
    return value.detach() + (through - through.detach())


def put_on_path(layer: "LayerParts", slots: "dict[str, Tensor]") -> None:
    """Let gradients reach the slots, which add up to the experts' output, in its stead."""
    place, served = sum_place(layer)
    if slots["stale"] or not slots["weighted"].requires_grad:
        return
    own, put = own_rows(served)
    through = slots["through"].sum(2).to(own.dtype)
    place.output = put(own.detach() + (through - through.detach()))


def read_routed_output(layer: "LayerParts") -> 'Float[Tensor, "batch pos d_model"]':
    """What leaves the experts; under autograd the tensor the model goes on with."""
    place, served = sum_place(layer)
    own, put = own_rows(served)
    if own.requires_grad:
        place.output = put(own)
    return own


def write_routed_output(layer: "LayerParts", new: 'Float[Tensor, "batch pos d_model"]') -> None:
    """Replace what leaves the experts."""
    place, served = sum_place(layer)
    own, put = own_rows(served)
    place.output = put(checked(layer, "routed_output", new, own))


def write_slots(layer: "LayerParts", name: "str", new: "Tensor") -> None:
    """Replace what each chosen expert writes; tokens for which nothing changes keep their bits."""
    slots = waiting_slots(layer) or run_slots(layer)
    old = slots[name]
    new = checked(layer, name, new, old)
    changed, _ = (new != old).flatten(2).max(-1)
    if name == "expert_outputs":
        total = (new * slots["routing_weights"][..., None]).sum(2)
    else:
        total = new.sum(2)
    replace_sum(layer, changed, total)


def replace_sum(
    layer: "LayerParts", changed: "Tensor", total: 'Float[Tensor, "batch pos d_model"]'
) -> None:
    """Replace what leaves the experts where something changed; the rest keeps its bits."""
    place, served = sum_place(layer)
    own, put = own_rows(served)
    total, kept = total.to(own.dtype), own
    if total.requires_grad:
        kept = own.detach() + (total - total.detach())
    place.output = put(torch.where(changed[..., None], total, kept))


def output_place(layer: "LayerParts") -> "tuple[Tensor, Callable]":
    """The block's output as served, and ``write(new)``."""
    if layer.facts["leaves_as"] == "input":
        served = layer.leaving.input

        def write_input(new: "Tensor") -> None:
            layer.leaving.input = new

        return served, write_input
    served = layer.leaving.output

    def write_output(new: "Tensor") -> None:
        layer.leaving.output = (new, *served[1:]) if isinstance(served, tuple) else new

    return (served[0] if isinstance(served, tuple) else served), write_output


def read_output(layer: "LayerParts") -> 'Float[Tensor, "batch pos d_model"]':
    """What leaves the MoE block."""
    return own_rows(output_place(layer)[0])[0]


def write_block_output(layer: "LayerParts", new: 'Float[Tensor, "batch pos d_model"]') -> None:
    """Replace what leaves the MoE block."""
    served, write = output_place(layer)
    own, put = own_rows(served)
    write(put(checked(layer, "output", new, own)))


def read_shared(layer: "LayerParts") -> 'Float[Tensor, "batch pos d_model"]':
    """The shared expert's output before its gate; cloned, for some blocks add into it."""
    return own_rows(layer.shared.output)[0].clone()


def read_shared_gate(layer: "LayerParts") -> 'Float[Tensor, "batch pos one"]':
    """What multiplies the shared expert's output."""
    return own_rows(layer.shared_gate.output)[0].sigmoid()


def output_from(
    layer: "LayerParts",
    contributions: 'Float[Tensor, "batch pos top_k d_written"]',
    shared: 'Float[Tensor, "batch pos d_model"] | None' = None,
) -> 'Float[Tensor, "batch pos d_model"]':
    """What the block would output for these contributions of its experts."""
    facts = layer.facts
    total = contributions.sum(2)
    if layer.projection is not None:
        total = layer.projection(total)
    total = total * facts["sum_scale"]
    if shared is not None and facts["shared_inside"]:
        total = total + shared.to(total.dtype)
    if facts["adds_bias"]:
        # The bias itself is a parameter; it is what the block makes of nothing.
        total = total + layer.block(torch.zeros_like(total[:1, :1]))
    return total if layer.final_norm is None else layer.final_norm(total)
