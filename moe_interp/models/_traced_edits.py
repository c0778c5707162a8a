"""Edits of routing inside a trace: rules applied layer by layer, in the order a layer runs.

Plain code, for the reasons given in ``_traced_parts``.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from moe_interp.models._traced_choice import choose
from moe_interp.models._traced_dispatch import dispatched
from moe_interp.models._traced_parts import LayerParts


def apply_edits(layers: "Sequence[LayerParts]", table: "dict[int, dict[str, list]]") -> None:
    """Apply edits to the layers, which must come in order of depth.

    ``table`` holds, for a layer and a stage, ``(rule, where, values)`` in order of application.
    """
    for layer in layers:
        stages = table.get(layer.layer, {})
        if "choice" in stages:
            choose(layer, chain(layer, stages["choice"]))
        if "weights" in stages:
            correct_weights(layer, chain(layer, stages["weights"]))


def chain(layer: "LayerParts", edits: "Sequence[tuple]") -> "Callable":
    """Join the rules of one stage into one function of what the stage sees.

    The last argument of a stage is what its rules correct: the index, or the weights.
    """

    def corrected(context: "Tensor", current: "Tensor") -> "Tensor":
        for rule, where, values in edits:
            here = where.to(current.device).expand(*current.shape[:2], where.shape[-1])
            further = [value.to(current.device) for value in values]
            current = rule(layer, context, current, here, *further)
        return current

    return corrected


def correct_weights(layer: "LayerParts", rule: "Callable") -> None:
    """Let ``rule(index, weights) -> weights`` correct what multiplies the experts' outputs."""
    index, weights, write = dispatched(layer)
    new = rule(index, weights)
    if new is not weights:
        write(index, new.to(weights.dtype))


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
