"""Count versus cause: scores of the same experts side by side, and how far their ranks agree."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from scipy import stats

from moe_interp.notebook import Shown
from moe_interp.scores._scores import Scores

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Comparison(Shown):
    """Scores of the same experts, and the rank correlations between them.

    Attributes:
        scores: The scores, in the order given.
        correlation: Spearman's rank correlation over experts, of the means over prompts.
        low: Lower end of its interval; NaN where a score has no prompts to resample.
        high: Upper end.
        confidence: Coverage of the intervals.
        n_experts: Experts that all scores have measured.
    """

    scores: tuple[Scores, ...]
    correlation: Float[ndarray, "score score"]
    low: Float[ndarray, "score score"]
    high: Float[ndarray, "score score"]
    confidence: float
    n_experts: int

    def to_frame(self) -> "DataFrame":
        """Give one row per expert: layer, expert, and every score averaged over prompts."""
        frame = self.scores[0].to_frame()
        for score in self.scores[1:]:
            frame[score.name] = score.mean.ravel()
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Give the correlations and their intervals as JSON-safe values."""

        def safe(values: Float[ndarray, "score score"]) -> list[list[float | None]]:
            return [[v if np.isfinite(v) else None for v in row] for row in values.tolist()]

        return {
            "scores": [score.name for score in self.scores],
            "correlation": safe(self.correlation),
            "low": safe(self.low),
            "high": safe(self.high),
            "confidence": self.confidence,
            "n_experts": self.n_experts,
        }

    def summary(self) -> str:
        """Name each pair of scores with its rank correlation in a line."""
        lines = [f"Spearman rank correlation over {self.n_experts} experts:"]
        for i, one in enumerate(self.scores):
            for j, other in enumerate(self.scores[:i]):
                line = f"  {other.name} ~ {one.name}: {self.correlation[i, j]:.2f}"
                if np.isfinite(self.low[i, j]):
                    line += f" [{self.low[i, j]:.2f}, {self.high[i, j]:.2f}]"
                lines.append(line)
        return "\n".join(lines)


def compare(
    *scores: Scores, rng: Generator, n_resamples: int = 999, confidence: float = 0.95
) -> Comparison:
    """Put scores of every expert side by side, with rank correlations and intervals.

    Counting how often an expert is chosen, predicting what its loss does and measuring it are
    three questions; this shows how far their answers agree. Intervals come from resampling
    prompts with replacement, the same ones for both scores of a pair; they say how far the
    correlation would move with other prompts of this kind, not with other experts.

    Args:
        *scores: Two or more scores of the same model; those with prompts must have the same ones.
        rng: Source of randomness for the intervals.
        n_resamples: Resamples of the prompts.
        confidence: Coverage of the intervals.

    Returns:
        The comparison.

    Raises:
        ValueError: If there are fewer than two scores, they differ in layers, experts, prompts or
            names, or fewer than three experts are measured by all.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> truth = rng.normal(size=(20, 1, 8)) + np.arange(8)
        >>> one = Scores.of_array("effect", "nats", truth, layers=(3,))
        >>> other = Scores.of_array("attribution", "nats", truth**3, layers=(3,))
        >>> print(compare(one, other, rng=rng).correlation.round(2)[0, 1])
        1.0
    """
    values = _checked(scores, confidence)
    measured = np.all([np.isfinite(score.mean) for score in scores], axis=0).ravel()
    if measured.sum() < 3:
        raise ValueError(
            f"Only {measured.sum()} experts are measured by all scores, 3 are needed for a rank "
            "correlation. Measure more experts."
        )
    flat = [value.reshape(len(value), -1)[:, measured] for value in values]
    correlation = _spearman([value.mean(0) for value in flat])
    n_prompts = max(len(value) for value in flat)
    low, high = np.full_like(correlation, np.nan), np.full_like(correlation, np.nan)
    resampled = []
    for _ in range(n_resamples if n_prompts > 1 else 0):
        drawn = rng.integers(n_prompts, size=n_prompts)
        resampled.append(_spearman([v[drawn].mean(0) if len(v) > 1 else v[0] for v in flat]))
    if resampled:
        tail = (1 - confidence) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
        still = np.array([len(value) == 1 for value in flat])
        low[np.ix_(still, still)], high[np.ix_(still, still)] = np.nan, np.nan
    return Comparison(tuple(scores), correlation, low, high, confidence, int(measured.sum()))


def _checked(
    scores: tuple[Scores, ...], confidence: float
) -> list[Float[ndarray, "prompt layer expert"]]:
    if len(scores) < 2:
        raise ValueError(f"`compare` needs at least two scores, got {len(scores)}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
    names = [score.name for score in scores]
    if len(set(names)) != len(names):
        raise ValueError(f"The scores must have different names to be told apart, got {names}.")
    first = scores[0]
    for score in scores[1:]:
        if score.layers != first.layers or score.n_experts != first.n_experts:
            raise ValueError(
                f"{score.name!r} has layers {score.layers} of {score.n_experts} experts, "
                f"{first.name!r} has {first.layers} of {first.n_experts}. Compare scores of one "
                "model."
            )
    arrays = [score.array.values for score in scores]
    arrays = [array if array.ndim == 3 else array[None] for array in arrays]
    counts = {len(array) for array in arrays if len(array) > 1}
    if len(counts) > 1:
        raise ValueError(
            f"The scores have {sorted(counts)} prompts. Score the same prompts, in the same order."
        )
    return arrays


def _spearman(means: list[Float[ndarray, " expert"]]) -> Float[ndarray, "score score"]:
    """Pearson's correlation of ranks; NaN for a score that is the same for all experts."""
    ranks = np.stack([stats.rankdata(mean) for mean in means])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return centred @ centred.T / np.outer(length, length)
