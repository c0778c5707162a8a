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


def weigh_the_rest(
    layer: "LayerParts", index: "Tensor", weights: "Tensor", where: "Tensor"
) -> "Tensor":
    """Set the weight of marked slots to 0, and scale the token's others to the old sum."""
    hit = marked(where, index)
    if not bool(hit.any()):
        return weights
    wide = weights.float()
    rest = wide.masked_fill(hit, 0.0)
    left = rest.sum(-1, keepdim=True)
    factor = wide.sum(-1, keepdim=True) / left.masked_fill(left == 0, 1.0)
    return torch.where(hit.any(-1, keepdim=True), rest * factor, wide).to(weights.dtype)


def scale_weight(
    layer: "LayerParts", index: "Tensor", weights: "Tensor", where: "Tensor", factor: "Tensor"
) -> "Tensor":
    """Multiply the weight of each slot that holds a marked expert."""
    return torch.where(marked(where, index), (weights * factor).to(weights.dtype), weights)


def scale_contribution(
    layer: "LayerParts", index: "Tensor", slots: "Tensor", where: "Tensor", factor: "Tensor"
) -> "Tensor":
    """Multiply what each slot that holds a marked expert writes."""
    hit = marked(where, index)[..., None]
    return torch.where(hit, (slots * factor[..., None]).to(slots.dtype), slots)


def put_into_choice(
    layer: "LayerParts", scores: "Tensor", index: "Tensor", where: "Tensor"
) -> "Tensor":
    """Put each marked expert that is not chosen in the place of the weakest unmarked one."""
    beyond = where.new_zeros(*where.shape[:-1], scores.shape[-1] - where.shape[-1])
    missing = torch.cat([where, beyond], -1).scatter(-1, index, False)
    if not bool(missing.any()):
        return index
    if bool((where.sum(-1) > index.shape[-1]).any()):
        raise ValueError(
            f"Layer {layer.layer}: more experts are forced than the {index.shape[-1]} that it "
            "chooses for each token. Force fewer."
        )
    enters = missing.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    strength = scores.detach().gather(-1, index).masked_fill(marked(where, index), float("inf"))
    rank = strength.argsort(dim=-1, stable=True).argsort(dim=-1)
    enters = enters[..., : index.shape[-1]].gather(-1, rank)
    return torch.where(rank < missing.sum(-1, keepdim=True), enters, index)


def choose_given(
    layer: "LayerParts", scores: "Tensor", index: "Tensor", where: "Tensor", given: "Tensor"
) -> "Tensor":
    """Choose the given experts; those chosen anyway keep their slots, and so their bits."""
    same = index[..., :, None] == given[..., None, :]
    leaves, enters = ~same.any(-1) & where, ~same.any(-2)
    if not bool(leaves.any()):
        return index
    order = enters.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    rank = (leaves.cumsum(-1) - 1).clamp(min=0)
    return torch.where(leaves, given.expand_as(index).gather(-1, order).gather(-1, rank), index)


def weigh_as_given(
    layer: "LayerParts",
    index: "Tensor",
    weights: "Tensor",
    where: "Tensor",
    given: "Tensor",
    given_weights: "Tensor",
) -> "Tensor":
    """Give each slot the weight that its expert has among the given ones; others keep theirs."""
    same = (index[..., :, None] == given[..., None, :]) & where[..., None]
    place = same.to(torch.uint8).argmax(-1)
    new = given_weights.to(weights.dtype).expand_as(weights).gather(-1, place)
    return torch.where(same.any(-1), new, weights)


def shift_logits(
    layer: "LayerParts", logits: "Tensor", where: "Tensor", shift: "Tensor"
) -> "Tensor":
    """Add to the logits of marked experts."""
    return torch.where(where, (logits + shift).to(logits.dtype), logits)


def raise_above_all(
    layer: "LayerParts", logits: "Tensor", where: "Tensor", margin: "Tensor"
) -> "Tensor":
    """Set the logits of marked experts a margin above the token's highest."""
    return torch.where(where, (logits.amax(-1, True) + margin).to(logits.dtype), logits)


def push_below_all(
    layer: "LayerParts", logits: "Tensor", where: "Tensor", margin: "Tensor"
) -> "Tensor":
    """Set the logits of marked experts a margin below the token's lowest."""
    return torch.where(where, (logits.amin(-1, True) - margin).to(logits.dtype), logits)


def put_vectors(
    layer: "LayerParts", index: "Tensor", slots: "Tensor", where: "Tensor", vectors: "Tensor"
) -> "Tensor":
    """Let each slot of a marked expert write that expert's vector; ``vectors`` is by expert."""
    if vectors.shape[-1] != slots.shape[-1]:
        raise ValueError(
            f"Layer {layer.layer}: the vectors given for its experts have {vectors.shape[-1]} "
            f"numbers, but its experts write {slots.shape[-1]}."
        )
    known = index.clamp(max=len(vectors) - 1)
    hit = marked(where, index)[..., None]
    return torch.where(hit, vectors[known].to(slots.dtype), slots)


def put_picked(
    layer: "LayerParts",
    index: "Tensor",
    slots: "Tensor",
    where: "Tensor",
    picked: "Tensor",
    bank: "Tensor",
) -> "Tensor":
    """Let each slot of a marked expert write the row of the bank picked for it at that token."""
    picked = picked.expand(*index.shape[:2], picked.shape[-1])
    row = picked.gather(-1, index.clamp(max=picked.shape[-1] - 1))
    hit = marked(where, index)[..., None]
    return torch.where(hit, bank[row].to(slots.dtype), slots)


def put_outputs(
    layer: "LayerParts",
    index: "Tensor",
    outputs: "Tensor",
    where: "Tensor",
    given: "Tensor",
    given_outputs: "Tensor",
) -> "Tensor":
    """Let marked experts put out what they are given; those not among the given stay."""
    same = (index[..., :, None] == given[..., None, :]) & marked(where, index)[..., None]
    place = same.to(torch.uint8).argmax(-1)[..., None].expand_as(outputs)
    new = given_outputs.to(outputs.dtype).expand_as(outputs).gather(2, place)
    return torch.where(same.any(-1, keepdim=True), new, outputs)


def put_contributions(
    layer: "LayerParts",
    index: "Tensor",
    slots: "Tensor",
    where: "Tensor",
    given: "Tensor",
    given_slots: "Tensor",
) -> "Tensor | tuple[Tensor, Tensor]":
    """Let marked experts contribute what they are given: nothing where they are not among it.

    One that is given a contribution but holds no slot gets a slot more.
    """
    given = given.expand(*index.shape[:2], given.shape[-1])
    given_slots = given_slots.to(slots.dtype).expand(*given.shape, slots.shape[-1])
    same = index[..., :, None] == given[..., None, :]
    place = same.to(torch.uint8).argmax(-1)[..., None].expand_as(slots)
    new = given_slots.gather(2, place).masked_fill(~same.any(-1, keepdim=True), 0)
    slots = torch.where(marked(where, index)[..., None], new, slots)
    enters = marked(where, given) & ~same.any(-2)
    if not bool(enters.any()):
        return slots
    ids = given.masked_fill(~enters, where.shape[-1])
    further = given_slots.masked_fill(~enters[..., None], 0)
    return torch.cat([index, ids], -1), torch.cat([slots, further], 2)


def add_vector(
    layer: "LayerParts", output: "Tensor", where: "Tensor", vector: "Tensor"
) -> "Tensor":
    """Add a vector to what leaves the block."""
    return torch.where(where, (output + vector).to(output.dtype), output)


def put_output(layer: "LayerParts", output: "Tensor", where: "Tensor", given: "Tensor") -> "Tensor":
    """Let the block put out what it is given."""
    return torch.where(where, given.to(output.dtype), output)
