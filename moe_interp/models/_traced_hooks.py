"""Hooks by name inside a trace: what functions given by the user see of a layer, and change in it.

Plain code, for the reasons given in ``_traced_parts``. The layout of ``hook_expert_indices`` and
``hook_expert_weights`` is TransformerLens's: tokens in one axis, and for the weights one column per
expert, 0 where it was not chosen.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_interp.models._traced import MoELayer
from moe_interp.models._traced_parts import checked_index
from moe_interp.models._traced_read import READERS, SLOTS, read

# What cannot be written, and what to write instead.
READ_ONLY = {
    "input": "hook_router_logits to re-route, or hook_out to change what the block gives",
    "router_probs": "hook_router_logits, which the model makes them from",
    "shared_output": "hook_out, which holds it",
}


class HookPoint:
    """Where a hook function is called; its second argument.

    Attributes:
        name: Name of the hook, as in ``model.hook_dict``.
    """

    def __init__(self, name: "str", layer: "int") -> None:
        self.name = name
        self._layer = layer

    def layer(self) -> "int":
        """The absolute decoder layer."""
        return self._layer

    def __repr__(self) -> "str":
        return f"HookPoint({self.name!r})"


def read_hooked(
    root: "object",
    layers: "Sequence[MoELayer]",
    wanted: "Sequence[Sequence[str]]",
    with_logits: "bool",
) -> "tuple[list[dict[str, Tensor]], Tensor | None]":
    """Quantities of each layer, which must come in order of depth, and the model's logits."""
    found = []
    for layer, names in zip(layers, wanted, strict=True):
        found.append(read(layer, names))
    return found, root.output.logits if with_logits else None


def run_hooked(
    root: "object",
    layers: "Sequence[MoELayer]",
    plans: "Sequence[dict[str, tuple]]",
    with_logits: "bool",
) -> "Tensor | None":
    """Call the hooks of each layer, which must come in order of depth; returns the logits.

    A plan holds, for a quantity, the name of its hook and the functions in order.
    """
    for layer, plan in zip(layers, plans, strict=True):
        call_layer(layer, plan)
    return root.output.logits if with_logits else None


def call_layer(layer: "MoELayer", plan: "dict[str, tuple]") -> None:
    """Call the hooks of one layer in the order in which it computes their quantities."""
    shared = {}
    parts = ("shared", "shared_gate") if layer.shared_gate is not None else ("shared",)
    for step in calling_order(layer):
        if step in parts and "shared_output" in plan:
            shared[step] = READERS[step](layer)
            if len(shared) == len(parts):
                call(layer, plan, "shared_output", join_shared(layer, shared))
        elif step == "slots" and any(name in plan for name in SLOTS):
            write_by_hooks(layer, plan)
        elif step == "expert_index" and step in plan:
            choose_by_hooks(layer, plan)
        elif step == "routing_weights" and step in plan:
            weigh_by_hooks(layer, plan)
        elif step in plan:
            new = call(layer, plan, step, layer.read_one(step))
            if new is not None and step == "router_logits":
                layer.router_logits = new
            elif new is not None:
                layer.output = new


def calling_order(layer: "MoELayer") -> "list[str]":
    """The order in which a layer computes its quantities, the choice of experts in the router.

    It can be read later, where the experts take it, but changed only there.
    """
    order = [step for step in layer.facts["reading_order"] if step != "expert_index"]
    order.insert(order.index("router_probs") + 1, "expert_index")
    return order


def join_shared(layer: "MoELayer", shared: "dict[str, Tensor]") -> "Tensor":
    """What the shared expert adds to the block's output."""
    value = shared["shared"]
    if "shared_gate" in shared:
        value = shared["shared_gate"] * value
    scale = layer.facts["shared_scale"]
    return value if scale == 1 else value * scale


def call(
    layer: "MoELayer", plan: "dict[str, tuple]", quantity: "str", value: "Tensor"
) -> "Tensor | None":
    """Hand a value through the functions of one hook; None if they leave it as it is.

    A value that a function changes in place counts as returned, as in TransformerLens.
    """
    name, functions = plan[quantity]
    point = HookPoint(name, layer.layer)
    changed = False
    for function in functions:
        before = value.clone() if value.is_inference() else value._version
        new = function(value, point)
        if new is None:
            if value.is_inference():
                in_place = not torch.equal(before, value)
            else:
                in_place = before != value._version
            if not in_place:
                continue
            new = value
        if quantity in READ_ONLY:
            raise ValueError(
                f"A function on {name!r} gave a new value, but `{quantity}` can only be read. "
                f"Write {READ_ONLY[quantity]}; a function that only looks returns None."
            )
        if not torch.is_tensor(new):
            raise TypeError(
                f"A function on {name!r} must return a tensor, or None to change nothing, got "
                f"{new!r}."
            )
        if new.shape != value.shape:
            raise ValueError(
                f"A function on {name!r} got a value of shape {tuple(value.shape)} and must "
                f"return one of the same shape, got {tuple(new.shape)}."
            )
        value, changed = new, True
    return value if changed else None


def choose_by_hooks(layer: "MoELayer", plan: "dict[str, tuple]") -> None:
    """Call the functions on the chosen experts; the model weighs what they choose."""

    def rule(scores: "Tensor", index: "Tensor") -> "Tensor":
        new = call(layer, plan, "expert_index", index.flatten(0, 1).clone())
        return index if new is None else checked_index(layer, new.reshape(index.shape), index)

    layer.choose(rule)


def weigh_by_hooks(layer: "MoELayer", plan: "dict[str, tuple]") -> None:
    """Call the functions on the weights of all experts; the highest ones run.

    A token keeps its choice as long as no other expert has a higher weight.
    """
    found = layer.read("expert_index", "routing_weights")
    index, weights = found["expert_index"], found["routing_weights"]
    value = spread(index, weights, layer.n_experts)
    new = call(layer, plan, "routing_weights", value.clone())
    if new is None or torch.equal(new, value):
        return
    new = new.unflatten(0, index.shape[:2]).to(weights.dtype)
    others = new.scatter(-1, index, float("-inf")).amax(-1)
    stays = (new.gather(-1, index).amin(-1) >= others)[..., None]
    chosen = torch.where(stays, index, new.topk(index.shape[-1], dim=-1).indices)
    if bool(stays.all()):
        layer.routing_weights = new.gather(-1, index)
    else:
        layer.set_routing(chosen, new.gather(-1, chosen))


def write_by_hooks(layer: "MoELayer", plan: "dict[str, tuple]") -> None:
    """Call the functions on the experts' outputs, then those on the contributions.

    The contributions are made of the outputs as changed. Tokens for which no slot changes keep
    their bits, whatever the order in which the model adds up.
    """
    names = [name for name in SLOTS if name in plan]
    found = read(layer, ["routing_weights", *names], False)
    weights = found["routing_weights"][..., None]
    changed, slots = torch.zeros_like(weights[..., 0, 0], dtype=torch.bool), None
    for name in names:
        value = found[name]
        if slots is not None:
            value = slots.to(value.dtype)
        new = call(layer, plan, name, value.clone())
        if new is not None:
            changed = changed | (new != value).flatten(2).any(-1)
            slots = new * weights if name == "expert_outputs" else new
    if slots is not None:
        total = layer.routed_output
        layer.routed_output = torch.where(changed[..., None], slots.sum(2).to(total.dtype), total)


def spread(
    index: 'Int[Tensor, "batch pos top_k"]',
    weights: 'Float[Tensor, "batch pos top_k"]',
    n_experts: "int",
) -> 'Float[Tensor, "token expert"]':
    """The weights with one column per expert, 0 where it was not chosen."""
    wide = weights.new_zeros(*index.shape[:2], n_experts)
    return wide.scatter_add(-1, index, weights).flatten(0, 1)
