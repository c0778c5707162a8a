"""Rules of edits: plain functions that correct a choice of experts, or their weights.

``where`` says to which experts, at which tokens of which rows a rule applies; nothing else may
change. Plain code, for the reasons given in ``_traced_parts``.
"""

import torch
from torch import Tensor

from moe_interp.models._traced_parts import LayerParts


def marked(where: "Tensor", index: "Tensor") -> "Tensor":
    """Which chosen slots hold an expert that `where` marks.

    Some models choose among more than their routed experts; what is beyond them is never marked.
    """
    known = index < where.shape[-1]
    return where.gather(-1, index.clamp(max=where.shape[-1] - 1)) & known


def choose_next_best(
    layer: "LayerParts", scores: "Tensor", index: "Tensor", where: "Tensor"
) -> "Tensor":
    """Put the best expert that is neither marked nor chosen in the place of each marked one."""
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
                "experts to choose from (a group-limited router may choose within some groups "
                "only). Ban fewer experts, or use Zero."
            )
        slots.append(torch.where(moves, best, index[..., slot]))
        pool = pool.scatter(-1, slots[slot][..., None], float("-inf"))
    return torch.stack(slots, -1)


def weigh_nothing(
    layer: "LayerParts", index: "Tensor", weights: "Tensor", where: "Tensor"
) -> "Tensor":
    """Set the weight of each slot that holds a marked expert to 0."""
    hit = marked(where, index)
    return weights.masked_fill(hit, 0.0) if bool(hit.any()) else weights
