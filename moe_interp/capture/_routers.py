"""Routers of random weights: what routing owes to the hidden states alone."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from moe_interp.capture._run import Routers
from moe_interp.errors import UnsupportedArchitectureError
from moe_interp.models import MoEModel

DEFAULT_RANDOM_ROUTERS = 99
_MAX_ROUTER_BYTES = 8 * 2**30


def draw_routers(
    model: MoEModel, n_routers: int | None, rng: np.random.Generator | None
) -> dict[int, Routers]:
    """Draw the random routers of each layer, layer after layer.

    Args:
        model: The model.
        n_routers: How many; by default 99 if there is a source, else none.
        rng: Source of randomness.

    Returns:
        By layer; for a model on a server, what to draw them from.

    Raises:
        UnsupportedArchitectureError: If the MoE layers differ in size.
        ValueError: If the number and the source do not go together, or they need too much memory.
    """
    sizes = {(layer.n_experts, layer.top_k) for layer in model.moe.values()}
    if len(sizes) > 1:
        raise UnsupportedArchitectureError(
            f"The MoE layers of {model.id!r} differ in their numbers of experts and of choices: "
            f"{sorted(sizes)}. A record needs them to be the same in all layers."
        )
    if n_routers is None:
        n_routers = 0 if rng is None else DEFAULT_RANDOM_ROUTERS
    if n_routers < 0 or (n_routers > 0 and rng is None):
        raise ValueError(
            f"`n_random_routers` must be 0, or positive with `rng`, got {n_routers!r} and "
            f"rng={rng!r}. Pass rng=numpy.random.default_rng(0)."
        )
    if not n_routers:
        return {}
    n_experts, d_model = model.architecture.n_experts, model.architecture.d_model
    needed = len(model.moe) * d_model * n_routers * n_experts * 4
    if needed > _MAX_ROUTER_BYTES:
        raise ValueError(
            f"{n_routers} random routers of {len(model.moe)} layers, {d_model} inputs and "
            f"{n_experts} experts need {needed / 2**30:.0f} GiB; at most "
            f"{_MAX_ROUTER_BYTES / 2**30:.0f} GiB are allowed. Pass a smaller `n_random_routers`."
        )
    routers: dict[int, Routers] = {}
    for layer in model.moe:
        state = rng.bit_generator.state
        drawn = rng.standard_normal((n_routers, d_model, n_experts), dtype=np.float32)
        if model.connection is not None:
            # Matrices would outweigh all that comes back; a server draws the same ones again.
            routers[layer] = {"state": state, "shape": drawn.shape}
            continue
        ordered = np.ascontiguousarray(drawn.transpose(1, 0, 2))
        routers[layer] = torch.from_numpy(ordered).to(model.device)
    return routers


def n_draws_of(routers: Mapping[int, Routers]) -> int:
    """How many random routers a layer has.

    Args:
        routers: The routers by layer.

    Returns:
        Their number.
    """
    first = next(iter(routers.values()), None)
    if first is None:
        return 0
    return first.shape[1] if isinstance(first, Tensor) else first["shape"][0]
