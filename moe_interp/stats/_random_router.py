"""What routers without training make of the same hidden states.

Harmful and harmless prompts already differ in the hidden states a router reads, and any router
that looks at them inherits the difference. A share of routing says something about the router
only beside the share that Gaussian routers get from the same inputs.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator


def random_router_baseline(
    router_input: Float[ndarray, "token d_model"],
    *,
    n_experts: int,
    top_k: int,
    n_draws: int = 99,
    rng: Generator,
) -> Int[ndarray, "draw token top_k"]:
    """Choose experts with random Gaussian routers reading the given hidden states.

    Each draw is a fresh router whose weights are independent normal numbers, as routers are
    initialised; the top `top_k` logits are chosen. The scale of the weights does not matter to
    the choice. Assumes a plain top-k of a linear router: bias terms, groups of experts and
    balancing are left out.

    Args:
        router_input: What the router reads, for every token of one layer.
        n_experts: Number of routed experts.
        top_k: Number of experts chosen per token.
        n_draws: Number of random routers.
        rng: Source of randomness.

    Returns:
        Chosen experts, highest logit first.

    Raises:
        ValueError: If a count is not positive, `top_k` exceeds `n_experts`, or `router_input` is
            not a finite matrix.

    Example:
        >>> hidden = np.eye(3)
        >>> chosen = random_router_baseline(
        ...     hidden, n_experts=8, top_k=2, n_draws=5, rng=np.random.default_rng(0))
        >>> chosen.shape
        (5, 3, 2)
    """
    if router_input.ndim != 2 or not np.isfinite(router_input).all():
        raise ValueError(
            f"`router_input` must be a finite matrix (token, d_model), got shape "
            f"{router_input.shape} with {int((~np.isfinite(router_input)).sum())} bad values."
        )
    if not 1 <= top_k <= n_experts or n_draws < 1:
        raise ValueError(
            f"`top_k` must lie between 1 and `n_experts` and `n_draws` be positive, got top_k="
            f"{top_k!r}, n_experts={n_experts!r}, n_draws={n_draws!r}."
        )
    chosen = np.empty((n_draws, len(router_input), top_k), dtype=np.int64)
    for draw in range(n_draws):
        router = rng.normal(size=(router_input.shape[1], n_experts))
        logits = router_input @ router
        chosen[draw] = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    return chosen
