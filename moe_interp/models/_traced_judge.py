"""What is made of a run's logits while they are at hand, so that they need not travel.

Plain code, for the reasons given in ``_traced_parts``.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moe_interp.models._traced import MoELayer
from moe_interp.models._traced_read import read, read_layers


def judge(
    logits: 'Float[Tensor, "batch d_vocab"]', metric: "Callable"
) -> 'Float[Tensor, " batch"]':
    """The metric of each row; NaN where the logits are not numbers."""
    values = metric(logits)
    if values.shape != logits.shape[:1]:
        raise ValueError(
            f"A metric must turn logits (batch, d_vocab) into one number for each of the "
            f"{len(logits)} rows, shape ({len(logits)},), got {tuple(values.shape)}."
        )
    return values.masked_fill(logits.isnan().any(-1), float("nan"))


def watch_step(
    logits: 'Float[Tensor, "batch d_vocab"]',
    seen: 'Bool[Tensor, "two batch"] | None',
    ends: "Sequence[int]",
) -> 'Bool[Tensor, "two batch"]':
    """Which rows of a greedy generation were broken before they ended, and which have ended."""
    if seen is None:
        seen = torch.zeros(2, len(logits), dtype=torch.bool, device=logits.device)
    broken, ended = seen
    broken = broken | (logits.isnan().any(-1) & ~ended)
    token = logits.argmax(-1)
    ended = ended | torch.isin(token, torch.tensor(list(ends), device=token.device))
    return torch.stack([broken, ended])


def slopes(
    root: "object",
    embeddings: "object",
    layers: "Sequence[MoELayer]",
    quantity: "str",
    metric: "Callable",
) -> "tuple[dict[int, dict[str, Tensor]], dict[int, Tensor], Tensor]":
    """What layers compute, the gradient of a metric there, and the metric.

    The weights are frozen on a server, so the gradient begins at the embedded tokens.
    """
    embeddings.output = embeddings.output.detach().requires_grad_(True)
    names = (quantity, "expert_index") if quantity == "routing_weights" else (quantity,)
    found = read_layers(layers, names)
    logits = root.output.logits[:, -1]
    total = checked_total(metric, logits)
    values = [found[layer.layer][quantity] for layer in layers]
    gradients = torch.autograd.grad(total.sum(), values, allow_unused=True)
    slope = {}
    for layer, value, gradient in zip(layers, values, gradients, strict=True):
        slope[layer.layer] = torch.zeros_like(value) if gradient is None else gradient
    plain = {}
    for layer, quantities in found.items():
        plain[layer] = {name: value.detach() for name, value in quantities.items()}
    return plain, slope, total.detach()


def slope_at(
    root: "object", layer: "MoELayer", alpha: "float", metric: "Callable"
) -> "tuple[Tensor, Tensor, Tensor, Tensor]":
    """Index and weights of a layer, the metric's gradient at the scaled weights, the metric."""
    found = read(layer, ("expert_index", "routing_weights"), False)
    weights = found["routing_weights"].detach()
    scaled = (weights * alpha).requires_grad_(True)
    layer.routing_weights = scaled
    total = checked_total(metric, root.output.logits[:, -1])
    gradient = torch.autograd.grad(total.sum(), scaled)[0]
    return found["expert_index"], weights, gradient, total.detach()


def checked_total(
    metric: "Callable", logits: 'Float[Tensor, "batch d_vocab"]'
) -> 'Float[Tensor, " batch"]':
    """The metric of each row, which must hold on to the gradient."""
    values = judge(logits, metric)
    if not values.requires_grad:
        raise ValueError(
            "The metric cuts the gradient. Compute it from the logits with differentiable "
            "operations of torch."
        )
    return values
