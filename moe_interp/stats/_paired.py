"""The primitive: a sign-flip test within matched pairs, all experts at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.random import Generator

from moe_interp.notebook import Shown
from moe_interp.stats._product import product_error
from moe_interp.stats._relabel import TIE_TOLERANCE, max_p_values
from moe_interp.stats._results import format_p, plain

if TYPE_CHECKING:
    import pandas as pd

# Half a million single-precision numbers, 2 MB, stay in the cache while they are counted.
_CHUNK_NUMBERS = 2**19
# An expert with more undecided draws than this share of a chunk is computed again as a whole.
_MANY = 1 / 16


@dataclass(frozen=True, eq=False)
class PairedTest(Shown):
    """Result of `paired_permutation_test`, one value an expert.

    Attributes:
        effect: Mean of harmful minus harmless, in the unit of the scores.
        statistic: Sum of the differences over the root of their sum of squares; between minus
            and plus the root of the number of pairs, 0 if all differences are 0.
        p_value: Two-sided p-value of the expert alone.
        p_adjusted: p-value adjusted for having looked at all experts (max-T, family-wise).
        n_pairs: Number of pairs.
        n_resamples: Number of sign patterns.
    """

    effect: Float[ndarray, " expert"]
    statistic: Float[ndarray, " expert"]
    p_value: Float[ndarray, " expert"]
    p_adjusted: Float[ndarray, " expert"]
    n_pairs: int
    n_resamples: int

    def to_frame(self) -> "pd.DataFrame":
        """Return one row an expert."""
        import pandas as pd

        return pd.DataFrame(
            {
                "effect": self.effect,
                "statistic": self.statistic,
                "p_value": self.p_value,
                "p_adjusted": self.p_adjusted,
            }
        ).rename_axis("expert")

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON-safe values."""
        return plain(vars(self))

    def summary(self) -> str:
        """Return the strongest expert in a sentence."""
        best = int(np.argmax(np.abs(self.statistic)))
        found = int((self.p_adjusted <= 0.05).sum())
        return (
            f"{found} of {len(self.effect)} experts differ at the 5 % family-wise level over "
            f"{self.n_pairs} pairs; the strongest is expert {best} (effect "
            f"{self.effect[best]:+.3g}, adjusted {format_p(self.p_adjusted[best])})."
        )


def paired_permutation_test(
    harmful: Float[ndarray, "pair expert"],
    harmless: Float[ndarray, "pair expert"],
    *,
    n_resamples: int = 9999,
    rng: Generator,
) -> PairedTest:
    r"""Test, expert by expert, whether harm shifts the score within matched pairs.

    Both prompts of a pair share topic and wording, so if harm does not matter the sign of a
    pair's difference is arbitrary. One sign a *pair*, shared by all experts, keeps the
    dependence between experts, so that the largest statistic of each pattern corrects for having
    looked at all of them. Pairs must be independent: pairs that share their wording are not.

    The observed pattern is counted among the draws, so p is never 0 [1]:
    :math:`p = (1 + \#\{|t^*| \ge |t|\}) / (1 + n_\text{resamples})`.

    Args:
        harmful: Scores of the harmful member of each pair.
        harmless: Scores of the harmless member, in the same pair and expert order.
        n_resamples: Number of random sign patterns.
        rng: Source of randomness; the same state gives the same result.

    Returns:
        Statistic, p-value and adjusted p-value of each expert.

    Raises:
        ValueError: If the two arrays differ in shape or hold NaN, there are fewer than two
            pairs, or `n_resamples` is not positive.

    References:
        [1] Phipson and Smyth (2010), "Permutation p-values should never be zero".

    Example:
        >>> rng = np.random.default_rng(0)
        >>> harmless = rng.normal(size=(40, 3))
        >>> harmful = harmless + [1.0, 0.0, 0.0] + 0.1 * rng.normal(size=(40, 3))
        >>> test = paired_permutation_test(harmful, harmless, n_resamples=999, rng=rng)
        >>> print(test.p_value[0], test.p_value[1] > 0.05)
        0.001 True
    """
    harmful, harmless = np.asarray(harmful), np.asarray(harmless)
    if harmful.shape != harmless.shape or harmful.ndim != 2:
        raise ValueError(
            f"`harmful` and `harmless` must have the same shape (pair, expert), got "
            f"{harmful.shape} and {harmless.shape}."
        )
    n_pairs, n_experts = harmful.shape
    if n_pairs < 2:
        raise ValueError(f"At least two pairs are needed, got {n_pairs}.")
    if n_resamples < 1:
        raise ValueError(f"`n_resamples` must be positive, got {n_resamples!r}.")
    differences = harmful.astype(np.float64) - harmless
    if not np.isfinite(differences).all():
        raise ValueError(
            f"The scores hold {int((~np.isfinite(differences)).sum())} NaN or infinite "
            f"differences; leave out those pairs or experts."
        )
    length = np.sqrt((differences**2).sum(axis=0))
    scaled = np.divide(differences, length, out=np.zeros_like(differences), where=length > 0)
    null = _Null(scaled)
    size = max(1, _CHUNK_NUMBERS // max(n_pairs, n_experts))
    for start in range(0, n_resamples, size):
        n_draws = min(size, n_resamples - start)
        null.add(1 - 2 * rng.integers(0, 2, size=(n_draws, n_pairs), dtype=np.int8))
    statistic = null.statistic
    return PairedTest(
        effect=differences.mean(axis=0),
        statistic=statistic,
        p_value=(1 + null.reached) / (1 + n_resamples),
        p_adjusted=max_p_values(np.abs(statistic), np.concatenate(null.maxima), exhaustive=False),
        n_pairs=n_pairs,
        n_resamples=n_resamples,
    )


class _Null:
    """Counts of sign patterns: in single precision, and in double where that does not decide.

    Args:
        scaled: Differences, each expert's of length 1 (or all 0).
    """

    def __init__(self, scaled: Float[ndarray, "pair expert"]) -> None:
        # An expert's numbers stand together, so that a few of them are read in one piece.
        self._rows = np.ascontiguousarray(scaled.T)
        self._single = scaled.astype(np.float32)
        self.statistic = scaled.sum(axis=0)
        size = np.abs(self.statistic)
        self._threshold = size - TIE_TOLERANCE * (1 + size)
        # What the product may be off, and what comparing in single precision adds.
        error = product_error(scaled) + 4 * float(np.finfo(np.float32).eps) * (1 + size)
        self._low = (self._threshold - error).astype(np.float32)
        self._high = (self._threshold + error).astype(np.float32)
        self._reach = np.float32(2 * error.max())
        self.reached = np.zeros(scaled.shape[1], dtype=int)
        self.maxima: list[Float[ndarray, " draw"]] = []

    def add(self, signs: Int[ndarray, "draw pair"]) -> None:
        """Count a chunk of sign patterns."""
        found = signs.astype(np.float32) @ self._single
        np.abs(found, out=found)
        largest = found.max(axis=1)
        over = found >= self._high
        undecided = found >= self._low
        undecided ^= over
        self.reached += over.sum(axis=0, dtype=np.int32)
        undecided |= found >= (largest - self._reach)[:, None]
        # What lies above `high` is counted already and is here for the largest alone.
        self.maxima.append(np.zeros(len(signs)))
        for draw, expert, exact in self._again(signs, *_places(undecided)):
            np.maximum.at(self.maxima[-1], draw, exact)
            late = (exact >= self._threshold[expert]) & ~over[draw, expert]
            self.reached += np.bincount(expert[late], minlength=len(self.reached))

    def _again(
        self,
        signs: Int[ndarray, "draw pair"],
        draw: Int[ndarray, " some"],
        expert: Int[ndarray, " some"],
    ) -> Iterator[tuple[ndarray, ndarray, ndarray]]:
        """Yield draws and experts with their statistics in double precision."""
        counts = np.bincount(expert, minlength=len(self.reached))
        many = np.flatnonzero(counts > _MANY * len(signs))
        if len(many):
            columns = np.abs(signs.astype(np.float64) @ self._rows[many].T)
            own = np.isin(expert, many)
            place = np.searchsorted(many, expert[own])
            yield draw[own], expert[own], columns[draw[own], place]
            draw, expert = draw[~own], expert[~own]
        size = max(1, _CHUNK_NUMBERS // signs.shape[1])
        for start in range(0, len(draw), size):
            some = slice(start, start + size)
            exact = np.einsum("ep,ep->e", signs[draw[some]], self._rows[expert[some]])
            yield draw[some], expert[some], np.abs(exact)


def _places(mask: Bool[ndarray, "draw expert"]) -> tuple[Int[ndarray, " some"], ...]:
    """As `numpy.nonzero`, which takes 13 times as long with two axes."""
    return np.divmod(np.flatnonzero(mask), mask.shape[1])
