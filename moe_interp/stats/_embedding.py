r"""From shares to points whose distances are Hellinger distances, fair to prompts of any length.

The root is curved, so the root of a share counted from few tokens is smaller on average than
that of the same share counted from many: harmful prompts that are merely shorter would lie
apart from harmless ones. A share is therefore replaced by what it would be on average over all
subsets of :math:`m` of the prompt's :math:`n` tokens, :math:`m` the fewest tokens of any prompt,

.. math:: y = E\sqrt{K / m k} / \sqrt 2, \quad K \sim \text{Hypergeometric}(n, c, m)

where the expert was chosen by :math:`c` of the tokens and each token fills :math:`k` slots. If
tokens are exchangeable within a prompt its mean does not depend on :math:`n` [1]; the spread
does. With equal lengths it is the root of the share itself.

References:
    [1] Hurlbert (1971), "The nonconcept of species diversity"; rarefaction, here of the root.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.special import gammaln

_ROUNDING = 1e-12
# Half-precision shares of a few thousand slots are whole counts within this.
_WHOLE = 0.1


def hellinger_embedding(shares: Float[ndarray, "*axes"]) -> Float[ndarray, "*axes"]:
    """Map shares to points whose squared Euclidean distance is squared Hellinger distance.

    Args:
        shares: Shares that sum to 1 over the last axis.

    Returns:
        The points, in double precision.
    """
    return np.sqrt(np.asarray(shares, dtype=np.float64) / 2)


def length_fair_embedding(
    shares: Float[ndarray, " prompt *rest"],
    n_slots: Int[ndarray, " prompt"] | None,
    top_k: int,
    *,
    whole: bool = True,
) -> Float[ndarray, " prompt *rest"]:
    """Map shares to Hellinger points as if every prompt were as short as the shortest.

    Args:
        shares: Shares of each prompt's slots.
        n_slots: Slots of each prompt; lengths are taken as equal if None.
        top_k: Slots that a token fills, each with another expert.
        whole: Whether shares must be whole numbers of slots. Random routers share a slot where
            two experts nearly tie; a half slot then lies halfway between its two neighbours.

    Returns:
        The points.

    Raises:
        ValueError: If some share is no whole number of its prompt's slots, and has to be.
    """
    if n_slots is None or len(set(n_slots.tolist())) <= 1:
        return hellinger_embedding(shares)
    n_tokens = n_slots // top_k
    fewest = int(n_tokens.min())
    points = np.empty(shares.shape)
    for length in np.unique(n_tokens):
        own = n_tokens == length
        exact = np.asarray(shares[own], dtype=np.float64) * (length * top_k)
        broken = whole and (np.abs(np.rint(exact) - exact) > _WHOLE).any()
        if broken or exact.max() > length + _WHOLE:
            raise ValueError(
                f"Shares of prompts with {length * top_k} slots in `n_slots` ({length} tokens of "
                f"`top_k` = {top_k}) must be whole numbers of slots, at most one a token for each "
                f"expert, got {shares[own].max():.4g}. Mend `n_slots` and `top_k`, or leave "
                f"`n_slots` out; lengths then count as equal."
            )
        roots = _mean_root(int(length), fewest) / np.sqrt(2 * top_k)
        if whole:
            points[own] = roots[np.rint(exact).astype(int)]
            continue
        below = np.clip(exact.astype(int), 0, length - 1)
        points[own] = roots[below] + np.diff(roots)[below] * (exact - below)
    return points


@lru_cache(maxsize=4096)
def _mean_root(length: int, fewest: int) -> Float[ndarray, " count"]:
    """Mean root of the frequency in `fewest` of `length` tokens, for each count of the whole."""
    drawn, count = np.arange(fewest + 1), np.arange(length + 1)[:, None]
    possible = (drawn <= count) & (fewest - drawn <= length - count)
    log_chance = (
        _log_choose(count, np.minimum(drawn, count))
        + _log_choose(length - count, np.clip(fewest - drawn, 0, length - count))
        - _log_choose(length, fewest)
    )
    return np.where(possible, np.exp(log_chance), 0.0) @ np.sqrt(drawn / fewest)


def _log_choose(whole: int | ndarray, part: int | ndarray) -> float | ndarray:
    return gammaln(whole + 1.0) - gammaln(part + 1.0) - gammaln(whole - part + 1.0)


def centred(points: Float[ndarray, "prompt layer expert"]) -> Float[ndarray, "prompt layer expert"]:
    """Take off the mean profile, which no share depends on.

    Args:
        points: Points of all prompts.

    Returns:
        The points less their mean, exactly 0 where they differ by rounding alone: a layer that
        routes every prompt alike must not be tested on its last bits.
    """
    shifted = points - points.mean(axis=0)
    shifted[np.abs(shifted) < _ROUNDING] = 0.0
    return shifted
