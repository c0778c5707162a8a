"""Reading one MoE layer inside a trace, in the order in which the layer computes things.

Plain code, for the reasons given in ``_traced_parts``.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_interp.errors import UnsupportedQuantityError
from moe_interp.models._traced_choice import over_tokens
from moe_interp.models._traced_dispatch import (
    dispatched,
    read_expert_index,
    read_routing_weights,
    refuse_lost_experts,
)
from moe_interp.models._traced_outputs import (
    read_output,
    read_routed_output,
    read_shared,
    read_shared_gate,
    read_slots,
)
from moe_interp.models._traced_parts import (
    LayerParts,
    checked,
    checked_index,
    operation,
    own_rows,
    prepare,
)


def read_router_input(layer: "LayerParts") -> 'Float[Tensor, "batch pos d_model"]':
    """What the router sees."""
    return own_rows(layer.router.input)[0]


def logits_place(layer: "LayerParts") -> "object":
    """The operation that holds the logits; one router takes another way without gradients."""
    other = layer.facts["logits_in_inference"]
    return operation(
        layer, layer.facts["logits"] if torch.is_grad_enabled() or not other else other
    )


def own_logits(layer: "LayerParts") -> "tuple[object, Tensor, Callable]":
    """Where the logits are held, those of the routed experts, and the way back."""
    place = logits_place(layer)
    own, put = own_rows(place.output)
    further = layer.facts["further_logits"]
    if not further:
        return place, own, put
    rest = own[..., -further:]
    return place, own[..., :-further], lambda new: put(torch.cat([new, rest], -1))


def read_router_logits(layer: "LayerParts") -> 'Float[Tensor, "batch pos expert"]':
    """The router's linear output; under autograd the very tensor that the model goes on with."""
    place, own, put = own_logits(layer)
    if own.requires_grad:
        place.output = put(own)
    return own


def write_router_logits(layer: "LayerParts", logits: 'Float[Tensor, "batch pos expert"]') -> None:
    """Replace the logits; the model's own selection then runs on the new ones."""
    place, own, put = own_logits(layer)
    place.output = put(checked(layer, "router_logits", logits, own))


def score(layer: "LayerParts", logits: "Tensor") -> 'Float[Tensor, "batch pos expert"]':
    """The model's own score function over all experts, in float32."""
    name = layer.facts["score_function"]
    wide = logits.float()
    if name == "softmax":
        return wide.softmax(-1)
    if name == "sigmoid":
        return wide.sigmoid()
    if name == "sqrtsoftplus":
        return torch.nn.functional.softplus(wide).sqrt()
    raise ValueError(f"Layer {layer.layer}: unknown score function {name!r}.")


def read_router_probs(layer: "LayerParts") -> 'Float[Tensor, "batch pos expert"]':
    """The scores of all experts, before any bias, group limit or renormalisation."""
    return score(layer, read_router_logits(layer))


def write_routing_weights(layer: "LayerParts", new: 'Float[Tensor, "batch pos top_k"]') -> None:
    """Replace what multiplies each expert's output; the experts stay the chosen ones."""
    index, weights, write = dispatched(layer)
    write(index, checked(layer, "routing_weights", new, weights))


def set_routing(
    layer: "LayerParts",
    index: 'Int[Tensor, "batch pos top_k"]',
    weights: 'Float[Tensor, "batch pos top_k"]',
) -> None:
    """Replace both the experts that run and their weights."""
    old_index, old_weights, write = dispatched(layer)
    write(
        checked_index(layer, index, old_index),
        checked(layer, "routing_weights", weights, old_weights),
    )


def scale_weights(
    layer: "LayerParts",
    factor: 'Float[Tensor, "*rows expert"]',
    tokens: 'Bool[Tensor, "batch pos"] | None' = None,
) -> None:
    """Multiply the routing weights of chosen experts; factor 0 removes their contribution.

    ``factor`` is ``[expert]``, ``[batch|1 expert]`` or ``[batch|1 pos|1 expert]``; 1 leaves a
    weight as it is, bit for bit.
    """
    index, weights, write = dispatched(layer)
    wide = over_tokens(layer, factor, tokens, 1.0).to(weights)
    chosen = wide.expand(*index.shape[:-1], layer.n_experts).gather(-1, index)
    write(index, weights * chosen)


def read_input(layer: "LayerParts") -> 'Float[Tensor, "batch pos d_model"]':
    """What enters the MoE block."""
    return own_rows(layer.entry.input)[0]


SLOTS = ("expert_outputs", "expert_contributions")
READERS = {
    "input": read_input,
    "shared": read_shared,
    "router_input": read_router_input,
    "router_logits": read_router_logits,
    "router_probs": read_router_probs,
    "expert_index": read_expert_index,
    "routing_weights": read_routing_weights,
    "routed_output": read_routed_output,
    "shared_gate": read_shared_gate,
    "output": read_output,
}
QUANTITIES = (
    "input",
    "router_input",
    "router_logits",
    "router_probs",
    "expert_index",
    "routing_weights",
    *SLOTS,
    "routed_output",
    "shared_output",
    "output",
)


def refuse(layer: "LayerParts", names: "Sequence[str]") -> None:
    """Raise an error for the first name that is unknown or that this layer does not offer."""
    prepare(layer)
    for name in names:
        if name not in QUANTITIES:
            raise ValueError(f"`{name}` is no quantity of a MoE layer. Known: {QUANTITIES}.")
        if name in layer.refused:
            raise refusal(layer, name)


def refusal(layer: "LayerParts", name: "str") -> "Exception":
    """The error for a quantity that a layer cannot give."""
    return UnsupportedQuantityError(
        f"Layer {layer.layer} does not offer `{name}`: {layer.refused[name]}"
    )


def read(
    layer: "LayerParts", names: "Sequence[str]", may_skip: "bool" = True
) -> "dict[str, Tensor]":
    """Read several quantities in the order in which the layer computes them.

    Returns them by name, in the order asked for. With `may_skip` the experts' own call is left
    out where the slots that are read give the same bits; writing to them is then too late.
    """
    refuse(layer, names)
    wanted = set(names)
    if "shared_output" in wanted:
        wanted |= {"shared", "shared_gate"} if layer.shared_gate is not None else {"shared"}
    found = {}
    for name in layer.facts["reading_order"]:
        if name == "slots" and wanted.intersection(SLOTS):
            slots = read_slots(layer, "expert_contributions" in wanted, may_skip)
            refuse_lost_experts(layer, slots["routing_weights"])
            found.update({slot: slots[slot] for slot in SLOTS})
        elif name in wanted:
            found[name] = READERS[name](layer)
    if "shared_output" in wanted:
        shared = found["shared"]
        if layer.shared_gate is not None:
            shared = found["shared_gate"] * shared
        scale = layer.facts["shared_scale"]
        found["shared_output"] = shared if scale == 1 else shared * scale
    return {name: found[name] for name in names}


def read_layers(
    layers: "Sequence[LayerParts]", names: "Sequence[str]"
) -> "dict[int, dict[str, Tensor]]":
    """`read` the same quantities of several layers, which must come in order of depth."""
    return {layer.layer: read(layer, names) for layer in layers}
