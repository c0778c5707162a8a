"""Edits of routing inside a trace: rules applied layer by layer, in the order a layer runs.

Plain code, for the reasons given in ``_traced.py``. A rule is a function of tensors; ``where`` says
to which experts, at which tokens of which rows it applies, and nothing else may change.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_interp.models._traced import MoELayer, choose, own_rows, read_dispatch, write_dispatch


def apply_edits(layers: "Sequence[MoELayer]", table: "dict[int, dict[str, list]]") -> None:
    """Apply edits to the layers, which must come in order of depth.

    ``table`` holds, for a layer and a stage, ``(rule, where, values)`` in order of application.
    """
    for layer in layers:
        stages = table.get(layer.layer, {})
        if "choice" in stages:
            choose(layer, chain(layer, stages["choice"]))
        if "weights" in stages:
            correct_weights(layer, chain(layer, stages["weights"]))


def chain(layer: "MoELayer", edits: "Sequence[tuple]") -> "Callable":
    """Join the rules of one stage into one function of what the stage sees.

    The last argument of a stage is what its rules correct: the index, or the weights.
    """

    def corrected(context: "Tensor", current: "Tensor") -> "Tensor":
        for rule, where, values in edits:
            shape = (*current.shape[:2], where.shape[-1])
            here = where.to(current.device).expand(shape)
            current = rule(
                layer, context, current, here, *[value.to(current.device) for value in values]
            )
        return current

    return corrected


def correct_weights(layer: "MoELayer", rule: "Callable") -> None:
    """Let ``rule(index, weights) -> weights`` correct what multiplies the experts' outputs."""
    _, index, weights = read_dispatch(layer)
    own_index, _ = own_rows(index)
    own, put = own_rows(weights)
    new = rule(own_index, own)
    if new is not own:
        write_dispatch(layer, index, put(new.to(own.dtype)))


def marked(where: "Tensor", index: "Tensor") -> "Tensor":
    """Which chosen slots hold an expert that `where` marks.

    Some models choose among more than their routed experts; what is beyond them is never marked.
    """
    known = index < where.shape[-1]
    return where.gather(-1, index.clamp(max=where.shape[-1] - 1)) & known


def choose_next_best(
    layer: "MoELayer", scores: "Tensor", index: "Tensor", where: "Tensor"
) -> "Tensor":
    """Put the best expert that is neither marked nor chosen into each slot that holds a marked one."""
    leaves = marked(where, index)
    if not bool(leaves.any()):
        return index
    beyond = where.new_zeros(*where.shape[:-1], scores.shape[-1] - where.shape[-1])
    excluded = torch.cat([where, beyond], -1).scatter(-1, index, True)
    pool = scores.detach().masked_fill(excluded, float("-inf"))
    slots = []
    for slot in range(index.shape[-1]):
        value, best = pool.max(-1)
        moves = leaves[..., slot]
        if bool((moves & (value <= layer.facts["unselectable_score"])).any()):
            raise ValueError(
                f"Layer {layer.layer}: the ban leaves a token with fewer than {layer.top_k} "
                "experts to choose from. Ban fewer experts, or use Zero."
            )
        slots.append(torch.where(moves, best, index[..., slot]))
        taken = torch.where(moves, best, index[..., slot])
        pool = pool.scatter(-1, taken[..., None], float("-inf"))
    return torch.stack(slots, -1)


def weigh_nothing(
    layer: "MoELayer", index: "Tensor", weights: "Tensor", where: "Tensor"
) -> "Tensor":
    """Set the weight of each slot that holds a marked expert to 0."""
    hit = marked(where, index)
    return weights.masked_fill(hit, 0.0) if bool(hit.any()) else weights
