"""Draws of relabellings, in chunks of bounded memory, and the p-values counted from them."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.random import Generator

from moe_interp.stats._schemes import Exchange

# Numbers held at once by one chunk of a product: 2 million doubles, 16 MB, stay near the cache.
_CHUNK_NUMBERS = 2**21
# Sums that are equal on paper differ in the last bits; counting near ties as ties keeps the
# p-value from coming out too small (scipy.stats.permutation_test does the same).
TIE_TOLERANCE = 1e-9
_ROUNDING = 1e-12


def check_resamples(n_resamples: int, alpha: float) -> None:
    """Refuse a number of resamples that cannot reach the level.

    Args:
        n_resamples: Number of relabellings to draw.
        alpha: Level of the test.

    Raises:
        ValueError: If `alpha` is no probability or `n_resamples` too small for it.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must lie between 0 and 1, got {alpha!r}.")
    if n_resamples < 1 or 1 / (1 + n_resamples) > alpha:
        raise ValueError(
            f"`n_resamples` = {n_resamples!r} allows no p-value up to alpha = {alpha:g}; at least "
            f"{int(np.ceil(1 / alpha)) - 1} are needed, and 9999 are usual."
        )


def is_exhaustive(exchange: Exchange, n_resamples: int) -> bool:
    """Tell whether all sign patterns are so few that each is taken once.

    Args:
        exchange: The relabelling.
        n_resamples: Number of relabellings asked for.

    Returns:
        True if the patterns that differ by more than a total flip number at most `n_resamples`.
    """
    return (
        exchange.kind == "flip"
        and exchange.n_units <= 40
        and (2 ** (exchange.n_units - 1) <= n_resamples)
    )


def draw_labels(
    exchange: Exchange, n_resamples: int, rng: Generator, *, width: int
) -> Iterator[Int[ndarray, "draw unit"]]:
    """Yield relabellings in chunks.

    Signs are +1 and -1; permuted labels are codes as in `exchange.label`. If all sign patterns
    are few enough, each comes once (up to a total flip, which no squared statistic sees).

    Args:
        exchange: What is exchanged.
        n_resamples: How many relabellings to draw.
        rng: Source of randomness.
        width: How many numbers one relabelling needs while it is worked on.

    Yields:
        A chunk of relabellings.
    """
    size = max(1, _CHUNK_NUMBERS // max(width, exchange.n_units, 1))
    if is_exhaustive(exchange, n_resamples):
        total = 2 ** (exchange.n_units - 1)
        for start in range(0, total, size):
            patterns = np.arange(start, min(start + size, total))[:, None]
            bits = patterns >> np.arange(exchange.n_units) & 1
            yield 1 - 2 * bits
        return
    strata = [np.flatnonzero(exchange.stratum == s) for s in np.unique(exchange.stratum)]
    for start in range(0, n_resamples, size):
        n_draws = min(size, n_resamples - start)
        if exchange.kind == "flip":
            yield 1 - 2 * rng.integers(0, 2, size=(n_draws, exchange.n_units), dtype=np.int8)
            continue
        labels = np.tile(exchange.label, (n_draws, 1))
        for units in strata:
            labels[:, units] = rng.permuted(labels[:, units], axis=1)
        yield labels


class Tally:
    """Counts how many relabellings reach the observed ratio of square to variance.

    Args:
        square: The observed squares, one or several.
        variance: Their variances under the observed labels.
        exhaustive: Whether the relabellings are all there are, the observed one included.
    """

    def __init__(
        self,
        square: Float[ndarray, " statistic"],
        variance: Float[ndarray, " statistic"],
        *,
        exhaustive: bool,
    ) -> None:
        self._square = square * (1 - TIE_TOLERANCE) - _ROUNDING * variance
        self._variance = variance
        self._reached = np.zeros(len(square), dtype=int)
        self._draws = 0
        self._exhaustive = exhaustive

    def margin(
        self, square: Float[ndarray, "draw statistic"], variance: Float[ndarray, "draw statistic"]
    ) -> Float[ndarray, "draw statistic"]:
        """How far relabellings lie above the observed ratio, multiplied out.

        Args:
            square: Squares under relabelling.
            variance: Their variances.

        Returns:
            At least 0 where the observed ratio is reached.
        """
        return square * self._variance - self._square * variance

    def undecided(
        self,
        square: Float[ndarray, "draw statistic"],
        variance: Float[ndarray, "draw statistic"],
        error: Float[ndarray, "draw statistic"],
    ) -> Bool[ndarray, " draw"]:
        """Find relabellings whose rounding errors might change the count.

        Args:
            square: Squares under relabelling.
            variance: Their variances.
            error: Bounds of the squares' errors.

        Returns:
            True for relabellings to be computed in double precision.
        """
        near = np.abs(self.margin(square, variance)) <= error * self._variance
        # A statistic that is 0 for every relabelling is decided.
        return (near & (variance > 0)).any(axis=1)

    def add(
        self, square: Float[ndarray, "draw statistic"], variance: Float[ndarray, "draw statistic"]
    ) -> None:
        """Count one chunk.

        Args:
            square: Squares of the chunk's relabellings.
            variance: Their variances.
        """
        self._reached += (self.margin(square, variance) >= 0).sum(axis=0)
        self._draws += len(square)

    @property
    def n_draws(self) -> int:
        """Number of relabellings counted."""
        return self._draws

    @property
    def p_value(self) -> Float[ndarray, " statistic"]:
        """The p-values; a random draw adds the observed labelling to both counts."""
        if self._exhaustive:
            return self._reached / self._draws
        return (1 + self._reached) / (1 + self._draws)


def max_p_values(
    observed: Float[ndarray, " statistic"],
    maxima: Float[ndarray, " draw"],
    *,
    exhaustive: bool,
) -> Float[ndarray, " statistic"]:
    """Compare many statistics of one scale with the largest of each relabelling.

    Args:
        observed: Observed statistics; large is extreme.
        maxima: The largest statistic of each relabelling.
        exhaustive: Whether the relabellings are all there are, the observed one included.

    Returns:
        p-values adjusted for having looked at all statistics.
    """
    tolerance = TIE_TOLERANCE * (1 + observed)
    reached = len(maxima) - np.searchsorted(np.sort(maxima), observed - tolerance, side="left")
    return reached / len(maxima) if exhaustive else (1 + reached) / (1 + len(maxima))
