"""Which experts are chosen together, and how alike two routers choose."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer
from numpy import ndarray


@dataclass(frozen=True)
class Coactivation:
    """How often two experts of a layer are chosen by the same token.

    Attributes:
        count: Tokens that chose both; on the diagonal those that chose the expert.
        share: Of the tokens that chose the first (row), the part that chose the second as well;
            NaN where no token chose the first, 0 on the diagonal.
        expected: The share that the use of the experts alone would give.
    """

    count: Int[ndarray, "layer expert expert"]
    share: Float[ndarray, "layer expert expert"]
    expected: Float[ndarray, "layer expert expert"]


def coactivation(index: Integer[ndarray, "token layer top_k"], n_experts: int) -> Coactivation:
    r"""Count, over all pairs of chosen experts, which are chosen by the same tokens.

    The share is :math:`N_{ij} / N_i`. Its rows add up to ``top_k - 1``, and so do those of what
    use alone gives, :math:`(k - 1) N_j / \sum_{m \ne i} N_m`: the other places of a token filled
    in proportion to how much every other expert is used.

    Args:
        index: The experts that each token chose; no expert twice.
        n_experts: Experts in each layer.

    Returns:
        The counts, and the shares beside what use alone gives.

    Raises:
        ValueError: If an expert does not exist.

    References:
        Muennighoff et al. (2024), "OLMoE", arXiv 2409.02060, section 5.2: all pairs, as the
        paper defines it; its released code counts neighbours in rank only.

    Example:
        >>> found = coactivation(np.array([[[0, 1]], [[1, 0]], [[0, 2]]]), 3)
        >>> found.share[0, 1].tolist()
        [1.0, 0.0, 0.0]
    """
    index = np.asarray(index)
    if index.size and not (index.min() >= 0 and index.max() < n_experts):
        raise ValueError(f"`index` must lie in 0 to {n_experts - 1}, got {index.max()}.")
    n_tokens, n_layers, top_k = index.shape
    count = np.zeros((n_layers, n_experts, n_experts), dtype=np.int64)
    for layer in range(n_layers):
        chosen = np.zeros((n_tokens, n_experts), dtype=np.float64)
        np.put_along_axis(chosen, index[:, layer].astype(np.int64), 1.0, axis=1)
        count[layer] = np.rint(chosen.T @ chosen)
    use = np.einsum("lee->le", count)
    share = np.full(count.shape, np.nan)
    np.divide(count, use[:, :, None], out=share, where=use[:, :, None] > 0)
    others = use.sum(axis=1)[:, None] - use
    expected = np.full(count.shape, np.nan)
    np.divide(
        (top_k - 1.0) * use[:, None, :],
        others[:, :, None],
        out=expected,
        where=others[:, :, None] > 0,
    )
    for square in (share, expected):
        square[:, range(n_experts), range(n_experts)] = 0
    return Coactivation(count, share, expected)


def router_saturation(
    first: Integer[ndarray, "token layer top_k"], second: Integer[ndarray, "token layer top_k"]
) -> Float[ndarray, "token layer"]:
    """How many of the experts that one router chose another chooses too, token by token.

    Two routers that choose at random agree on ``top_k / n_experts`` of them.

    Args:
        first: The experts that each token chose.
        second: The experts that the same tokens chose in the other model.

    Returns:
        The part of the experts in common, in [0, 1].

    Raises:
        ValueError: If the shapes differ.

    References:
        Muennighoff et al. (2024), "OLMoE", arXiv 2409.02060, section 5.1.

    Example:
        >>> router_saturation(np.array([[[0, 1]]]), np.array([[[1, 2]]])).tolist()
        [[0.5]]
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(
            f"`first` and `second` must have the same shape (token, layer, top_k), got "
            f"{first.shape} and {second.shape}. Record both models on the same tokens."
        )
    return (first[..., :, None] == second[..., None, :]).any(axis=-1).mean(axis=-1)
