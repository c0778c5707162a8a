"""Mixtures of routings inside a trace: what a memory of other tokens says, mixed with the router.

Plain code, for the reasons given in ``_traced_parts``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_interp.models._traced_dispatch import dispatched
from moe_interp.models._traced_parts import LayerParts
from moe_interp.models._traced_read import own_logits, read_router_input


def mixed_slots(
    layer: "LayerParts",
    seen: "Tensor",
    index: "Tensor",
    weights: "Tensor",
    edits: "Sequence[tuple]",
) -> "tuple[Tensor, Tensor, Tensor]":
    """Let rules mix the routing of tokens; ``seen`` is what the router saw.

    A rule gives the experts and weights of each token, of which there may be more than before,
    and the tokens for which they differ. Tokens that no rule changes keep their own slots, with
    experts of weight 0 beside them.
    """
    changed = torch.zeros_like(index[..., 0], dtype=torch.bool)
    for rule, where, values in edits:
        here = where.to(index.device).expand(*index.shape[:2], where.shape[-1])
        further = [value.to(index.device) for value in values]
        index, weights, moved = rule(layer, seen, index, weights, here, *further)
        changed = changed | moved
    return index, weights, changed


def mix_from_memory(
    layer: "LayerParts",
    seen: "Tensor",
    index: "Tensor",
    weights: "Tensor",
    where: "Tensor",
    keys: "Tensor",
    key_index: "Tensor",
    key_weights: "Tensor",
    settings: "Tensor",
) -> "tuple[Tensor, Tensor, Tensor]":
    """Mix each token's routing with that of the remembered tokens most like it.

    ``settings`` holds the number of neighbours, the distance at which tokens are half alike, and
    the least similarity that counts.
    """
    n_neighbours, half, floor = settings.tolist()
    flat = seen.flatten(0, 1).float()
    found = nearest(flat, keys.float(), int(n_neighbours))
    return mix_found(layer, index, weights, where, *found, key_index, key_weights, half, floor)


def nearest(queries: "Tensor", keys: "Tensor", n_neighbours: "int") -> "tuple[Tensor, Tensor]":
    """Squared distance and place of the nearest keys, the nearest first; ties to the first key."""
    n = min(n_neighbours, len(keys))
    distances, places = [], []
    for part in queries.split(512):
        rough = torch.cdist(part, keys).square()
        reach = rough.topk(n, largest=False).values[:, -1:]
        # Products of vectors are rounded; whatever may be as near as the last is looked at again.
        slack = 1e-3 * (1 + reach)
        n_near = int((rough <= reach + slack).sum(-1).max())
        near = rough.topk(n_near, largest=False).indices
        distance, place = by_distance(part, keys, near, n)
        distances.append(distance)
        places.append(place)
    return torch.cat(distances), torch.cat(places)


def by_distance(
    queries: "Tensor", keys: "Tensor", near: "Tensor", n: "int"
) -> "tuple[Tensor, Tensor]":
    """The nearest of some keys of each query, by differences: of equal vectors exactly 0."""
    place = near.sort(-1).values
    apart = (queries[:, None] - keys[place]).square().sum(-1)
    order = apart.argsort(dim=-1, stable=True)[:, :n]
    return apart.gather(-1, order), place.gather(-1, order)


def mix_found(
    layer: "LayerParts",
    index: "Tensor",
    weights: "Tensor",
    where: "Tensor",
    distance: "Tensor",
    place: "Tensor",
    key_index: "Tensor",
    key_weights: "Tensor",
    half: "float",
    floor: "float",
) -> "tuple[Tensor, Tensor, Tensor]":
    """The mixture, once the neighbours are known."""
    alike = torch.exp2(-distance / half**2)
    alike = alike.masked_fill(alike < floor, 0.0).unflatten(0, index.shape[:2])
    alike = torch.where(where, alike, torch.zeros_like(alike))
    share = alike.mean(-1, keepdim=True)
    moved = share[..., 0] > 0
    # The coefficient is the mean similarity, and neighbours weigh by theirs: both together are
    # each neighbour's similarity over the number of neighbours.
    given = alike[..., None] / alike.shape[-1] * key_weights[place].unflatten(0, index.shape[:2])
    experts = key_index[place].unflatten(0, index.shape[:2])
    dense = given.new_zeros(*index.shape[:2], layer.n_experts)
    dense = dense.scatter_add(-1, experts.flatten(2), given.flatten(2))
    dense = dense.scatter_add(-1, index, (1 - share) * weights.to(dense.dtype))
    own = torch.zeros_like(dense).scatter(-1, index, weights.to(dense.dtype))
    dense = torch.where(moved[..., None], dense, own)
    n_slots = max(index.shape[-1], int((dense != 0).sum(-1).max()))
    order = (dense != 0).to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    order = order[..., :n_slots]
    return order, dense.gather(-1, order).to(weights.dtype), moved


def route_by_offsets(
    layers: "Sequence[LayerParts]", offsets: "dict[int, Tensor]", keep: "bool"
) -> "dict[int, dict[str, Tensor]]":
    """Add to the logits of every token, and keep what the routers saw and chose if asked to."""
    found = {}
    for layer in layers:
        if keep:
            found[layer.layer] = {"router_input": read_router_input(layer)}
        place, own, put = own_logits(layer)
        place.output = put((own + offsets[layer.layer]).to(own.dtype))
        if keep:
            index, weights, _ = dispatched(layer)
            found[layer.layer] |= {"expert_index": index, "routing_weights": weights}
    return found
