"""What a routing record keeps of a forward pass: real tokens only, layer by layer.

Plain code, for the reasons given in ``_traced.py``. The router's inputs are far larger than its
choices, so that whatever is to be made of them is made here, while they are at hand.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moe_interp.models._traced import MoELayer
from moe_interp.models._traced_read import read

MAX_RANDOM_LOGITS = 2**22
# Part of the logits' spread within which experts share a slot, see `shared_top_k`.
NEAR_TIE = 1e-2


def record_layers(
    layers: "Sequence[MoELayer]",
    names: "Sequence[str]",
    real: 'Bool[Tensor, "batch pos"]',
    spans: 'Bool[Tensor, "span batch pos"]',
    random_routers: "dict[int, Tensor | dict]",
) -> "dict[int, dict[str, Tensor]]":
    """Read quantities of layers, which must come in order of depth, at the real tokens.

    Returns for each layer ``{name: [token ...]}``, the tokens row by row. ``expert_index`` and
    ``routing_weights`` are sorted by weight, highest first. ``mean_router_input``
    ``[span batch d_model]`` is a mean over the tokens of each span. A layer in ``random_routers``
    also has ``random_slots`` ``[span draw batch expert]``, see `count_random_choices`.
    """
    with_means = "mean_router_input" in names
    names = [name for name in names if name != "mean_router_input"]
    recorded = {}
    for layer in layers:
        routers = drawn_routers(random_routers.get(layer.layer))
        wanted = [*names, "expert_index", "routing_weights"]
        if with_means or routers is not None:
            wanted.append("router_input")
        found = {}
        for name, value in read(layer, list(dict.fromkeys(wanted))).items():
            found[name] = value[real.to(value.device)]
        weights, order = found["routing_weights"].sort(dim=-1, descending=True, stable=True)
        found["routing_weights"] = weights
        found["expert_index"] = found["expert_index"].gather(-1, order)
        hidden = found.pop("router_input", None)
        if with_means:
            found["mean_router_input"] = mean_by_span(hidden, real, spans)
        if routers is not None:
            found["random_slots"] = count_random_choices(
                hidden, routers.to(hidden.device), real, spans, layer.top_k
            )
        recorded[layer.layer] = found
    return recorded


def drawn_routers(
    given: "Tensor | dict | None",
) -> 'Float[Tensor, "d_model draw expert"] | None':
    """Random routers as they are given, or drawn again from the state of their source."""
    if not isinstance(given, dict):
        return given
    source = getattr(np.random, given["state"]["bit_generator"])()
    source.state = given["state"]
    drawn = np.random.Generator(source).standard_normal(given["shape"], dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(drawn.transpose(1, 0, 2)))


def mean_by_span(
    hidden: 'Float[Tensor, "token d_model"]',
    real: 'Bool[Tensor, "batch pos"]',
    spans: 'Bool[Tensor, "span batch pos"]',
) -> 'Float[Tensor, "span batch d_model"]':
    """Mean of what the tokens of each span hold, by row of the batch; tokens come row by row."""
    row = real.nonzero()[:, 0].to(hidden.device)
    hidden = hidden.float()
    means = []
    for span in spans[:, real].to(hidden.device):
        total = hidden.new_zeros(real.shape[0], hidden.shape[1])
        total.index_add_(0, row[span], hidden[span])
        count = torch.bincount(row[span], minlength=real.shape[0])
        means.append(total / count.clamp(min=1)[:, None])
    return torch.stack(means)


def count_random_choices(
    hidden: 'Float[Tensor, "token d_model"]',
    routers: 'Float[Tensor, "d_model draw expert"]',
    real: 'Bool[Tensor, "batch pos"]',
    spans: 'Bool[Tensor, "span batch pos"]',
    top_k: "int",
) -> 'Float[Tensor, "span draw batch expert"]':
    """How many slots random routers give to each expert, by span and row of the batch.

    ``hidden`` is what the real router sees at the real tokens, row by row.
    """
    _, n_draws, n_experts = routers.shape
    n_rows = real.shape[0]
    row = real.nonzero()[:, 0].to(hidden.device)
    inside = spans[:, real].to(hidden.device)
    hidden = hidden.float()
    spread = hidden.norm(dim=-1)[:, None]
    at_once = max(1, MAX_RANDOM_LOGITS // (hidden.shape[0] * n_experts))
    counted = []
    for first in range(0, n_draws, at_once):
        some = routers[:, first : first + at_once]
        logits = (hidden @ some.flatten(1)).unflatten(1, some.shape[1:])
        chosen = shared_top_k(logits, spread, top_k)
        by_span = []
        for span in inside:
            slots = chosen.new_zeros(n_rows, *chosen.shape[1:])
            by_span.append(slots.index_add_(0, row[span], chosen[span]))
        counted.append(torch.stack(by_span))
    return torch.cat(counted, dim=2).transpose(1, 2)


def shared_top_k(
    logits: 'Float[Tensor, "token draw expert"]', spread: 'Float[Tensor, "token one"]', top_k: "int"
) -> 'Float[Tensor, "token draw expert"]':
    """The slots each expert gets: 1 for the `top_k` highest logits, but a near tie is shared.

    A choice jumps where two logits meet, so that the rounding of a forward pass, which depends on
    the batch, would show in it. Here a logit counts the less the nearer it lies to the middle
    between the last chosen and the first refused one, if it is nearer than half of `NEAR_TIE` of
    the spread: two equal ones get half a slot each, and nothing jumps anywhere.
    """
    if top_k >= logits.shape[-1]:
        return torch.ones_like(logits)
    edge = logits.topk(top_k + 1, dim=-1).values[..., -2:].mean(dim=-1, keepdim=True)
    width = (NEAR_TIE * spread).clamp(min=1e-30)[..., None]
    height = ((logits - edge) / width + 0.5).clamp(0, 1)
    # Starts flat, so that square roots of shares do not jump either.
    slots = height**2 * (3 - 2 * height)
    # More than two logits near the edge need not add up by themselves.
    return slots * (top_k / slots.sum(dim=-1, keepdim=True))
