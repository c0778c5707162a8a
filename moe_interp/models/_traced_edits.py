"""Edits of a layer inside a trace: rules applied layer by layer, in the order a layer runs.

Plain code, for the reasons given in ``_traced_parts``.
"""

from collections.abc import Callable, Sequence

import torch
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.iterator import Iterations
from torch import Tensor

from moe_interp.models._traced_choice import choose
from moe_interp.models._traced_dispatch import dispatched
from moe_interp.models._traced_mixture import mixed_slots
from moe_interp.models._traced_outputs import (
    output_place,
    replace_sum,
    run_experts_apart,
    run_slots,
    written_by_all,
)
from moe_interp.models._traced_parts import LayerParts, own_rows
from moe_interp.models._traced_read import own_logits, read_router_input, refuse


def apply_edits(layers: "Sequence[LayerParts]", table: "dict[int, dict[str, list]]") -> None:
    """Apply edits to the layers, which must come in order of depth.

    ``table`` holds, for a layer and a stage, ``(rule, where, values)`` in order of application.
    """
    for layer in layers:
        stages = table.get(layer.layer, {})
        for stage in STAGES:
            if stage in stages:
                refuse(layer, (STAGES[stage],))
        seen = read_router_input(layer) if "mixture" in stages else None
        if "logits" in stages:
            correct_logits(layer, stages["logits"])
        chosen = None
        if "choice" in stages:
            chosen = choose(layer, chain(layer, stages["choice"]))
        if "weights" in stages:
            chosen = correct_weights(layer, chain(layer, stages["weights"]), chosen)
        if SLOT_STAGES.intersection(stages):
            parts = [stages.get(name, []) for name in ("mixture", "outputs", "contributions")]
            correct_slots(layer, seen, *parts, chosen)
        if "output" in stages:
            correct_output(layer, stages["output"])


def apply_at_every_step(
    layers: "Sequence[LayerParts]",
    prefill: "dict[int, dict[str, list]]",
    decode: "dict[int, dict[str, list]]",
) -> None:
    """Apply edits to the prompt and to each token that is generated after it, if any is."""
    for step in Iterations()[:]:
        try:
            apply_edits(layers, decode if step else prefill)
        except OutOfOrderError:
            if step == 0:
                raise
            # The step before was the last, so that the layers waited for do not run again.
            return


# What a stage needs, in the order in which a layer comes to them.
STAGES = {
    "logits": "router_logits",
    "choice": "expert_index",
    "weights": "routing_weights",
    "mixture": "expert_outputs",
    "outputs": "expert_outputs",
    "contributions": "expert_contributions",
    "output": "output",
}
SLOT_STAGES = {"mixture", "outputs", "contributions"}


def chain(layer: "LayerParts", edits: "Sequence[tuple]") -> "Callable":
    """Join the rules of one stage into one function of what the stage sees.

    The last argument of a stage is what its rules correct: the index, or the weights.
    """

    def corrected(*seen: "Tensor") -> "Tensor":
        *context, current = seen
        for rule, where, values in edits:
            here, further = laid(layer, current, where, values)
            current = rule(layer, *context, current, here, *further)
        return current

    return corrected


def laid(
    layer: "LayerParts", current: "Tensor", where: "Tensor", values: "Sequence[Tensor]"
) -> "tuple[Tensor, list[Tensor]]":
    """Bring what an edit holds to the rows, tokens and device of what it corrects."""
    made_for, here = tuple(where.shape[:2]), tuple(current.shape[:2])
    if any(own not in (1, size) for own, size in zip(made_for, here, strict=True)):
        raise ValueError(
            f"Layer {layer.layer}: an edit made for {made_for[0]} rows of {made_for[1]} tokens "
            f"meets {here[0]} rows of {here[1]} tokens. Trace the prompts that it was made for, "
            "in their order and padded as they were."
        )
    wide = where.to(current.device).expand(*here, where.shape[-1])
    return wide, [value.to(current.device) for value in values]


def correct_logits(layer: "LayerParts", edits: "Sequence[tuple]") -> None:
    """Let rules correct the router's logits; the model's own selection runs on the new ones."""
    place, own, put = own_logits(layer)
    new = chain(layer, edits)(own)
    if new is not own:
        place.output = put(new.to(own.dtype))


def correct_weights(layer: "LayerParts", rule: "Callable", chosen: "Tensor | None") -> "Tensor":
    """Let ``rule(index, weights) -> weights`` correct what multiplies the experts' outputs.

    ``chosen`` is the index that an edit of the choice has left. Returns the index of the slots,
    which the experts' arguments do not tell once a weight is 0.
    """
    index, weights, write = dispatched(layer)
    seen = held(layer, index, weights, chosen)
    new = rule(seen, weights)
    if new is not weights:
        write(index if layer.facts["skips"] else seen, new.to(weights.dtype))
    return seen


def held(
    layer: "LayerParts", index: "Tensor", weights: "Tensor", chosen: "Tensor | None"
) -> "Tensor":
    """The experts that slots hold, where the dispatch does not tell them."""
    if layer.facts["skips"]:
        # The experts see expert 0 with weight 0 in place of the class to skip.
        return index.masked_fill((index == 0) & (weights == 0), layer.n_experts - 1)
    if layer.facts["dispatch"] == "one_hot" and chosen is not None:
        # The row of a token over capacity does not tell what was chosen.
        return chosen
    return index


def correct_slots(
    layer: "LayerParts",
    seen: "Tensor | None",
    of_routing: "Sequence[tuple]",
    of_outputs: "Sequence[tuple]",
    of_contributions: "Sequence[tuple]",
    chosen: "Tensor | None",
) -> None:
    """Let rules mix the routing, then correct what each expert puts out and contributes.

    Tokens for which nothing changes keep their bits, whatever the order in which the model adds
    up. A rule of contributions may return ``(index, contributions)`` with more slots than before.
    """
    if of_routing:
        own_index, own_weights, _ = dispatched(layer)
        index, weights, changed = mixed_slots(layer, seen, own_index, own_weights, of_routing)
        outputs = run_experts_apart(layer, index)
        weighted = outputs * weights[..., None]
    else:
        index, outputs, weights, weighted = own_slots(layer, chosen)
        changed = torch.zeros_like(index[..., 0], dtype=torch.bool)
    if of_outputs:
        new = chain(layer, of_outputs)(index, outputs)
        changed = changed | (new != outputs).flatten(2).any(-1)
        weighted = new * weights[..., None]
    if of_contributions:
        old = current = weighted.to(outputs.dtype)
        for rule, where, values in of_contributions:
            here, further = laid(layer, current, where, values)
            new = rule(layer, index, current, here, *further)
            index, current = new if isinstance(new, tuple) else (index, new)
        n_slots = old.shape[2]
        changed = changed | (current[:, :, :n_slots] != old).flatten(2).any(-1)
        changed = changed | (current[:, :, n_slots:] != 0).flatten(2).any(-1)
        weighted = current
    if bool(changed.any()):
        replace_sum(layer, changed, weighted.sum(2))


def own_slots(
    layer: "LayerParts", chosen: "Tensor | None"
) -> "tuple[Tensor, Tensor, Tensor, Tensor]":
    """The experts that hold a layer's slots, their outputs, weights and weighted outputs."""
    slots = run_slots(layer)
    index, outputs, weights = slots["index"], slots["expert_outputs"], slots["routing_weights"]
    weighted = slots["weighted"]
    if layer.facts["dispatch"] == "input_scaled" and chosen is not None:
        # A score of 0 no longer tells which expert was chosen.
        every = written_by_all(layer)
        index = chosen
        outputs = weighted = every.gather(2, index[..., None].expand(*index.shape, every.shape[-1]))
    elif layer.facts["skips"] and chosen is not None:
        index = chosen
    else:
        index = held(layer, index, weights, chosen)
    return index, outputs, weights, weighted


def correct_output(layer: "LayerParts", edits: "Sequence[tuple]") -> None:
    """Let rules correct what leaves the block."""
    served, write = output_place(layer)
    own, put = own_rows(served)
    new = chain(layer, edits)(own)
    if new is not own:
        write(put(new.to(own.dtype)))


def weights_to_differentiate(
    layers: "Sequence[LayerParts]",
) -> "dict[int, tuple[Tensor, Tensor]]":
    """Expert index and routing weights of each layer, the weights as the tensors of the path.

    In a model with frozen parameters nothing has a gradient yet; then the weights start one.
    """
    found = {}
    for layer in layers:
        index, weights, write = dispatched(layer)
        if not weights.requires_grad:
            weights = weights.detach().requires_grad_(True)
        write(index, weights)
        found[layer.layer] = (index, weights)
    return found
