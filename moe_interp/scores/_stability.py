"""Stability selection: how often an expert is among the largest when prompts are drawn again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.experts import Expert, ExpertSet
from moe_interp.notebook import Shown
from moe_interp.scores._scores import Scores

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class StabilitySelection(Shown):
    """How often each expert was selected over resamples of the prompts.

    Attributes:
        probability: The part of the resamples that selected each expert, in [0, 1].
        excluded: The same among the prompts to exclude; None if there were none.
        n: Experts selected in each resample.
        n_resamples: Number of resamples.
        threshold: The probability from which an expert counts as selected.
    """

    probability: Scores
    excluded: Scores | None
    n: int
    n_resamples: int
    threshold: float

    @property
    def experts(self) -> ExpertSet:
        """The selected: stable here, and not among those to exclude."""
        stable = self._stable(self.probability)
        return stable if self.excluded is None else stable - self._stable(self.excluded)

    @property
    def intersection(self) -> ExpertSet:
        """Those that every single resample selected."""
        rows = np.argwhere(self.probability.mean >= 1)
        return ExpertSet(Expert(self.probability.layers[row], int(e)) for row, e in rows)

    def _stable(self, probability: Scores) -> ExpertSet:
        rows = np.argwhere(probability.mean >= self.threshold)
        return ExpertSet(Expert(probability.layers[row], int(expert)) for row, expert in rows)

    def to_frame(self) -> "DataFrame":
        """Give one row per expert: its probabilities, and whether it was selected."""
        frame = self.probability.to_frame()
        if self.excluded is not None:
            frame["excluded_probability"] = self.excluded.mean.ravel()
        chosen = self.experts
        places = zip(frame["layer"], frame["expert"], strict=True)
        frame["selected"] = [Expert(int(layer), int(e)) in chosen for layer, e in places]
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON-safe values."""
        return {
            "experts": [str(expert) for expert in self.experts],
            "probability": self.probability.to_dict(),
            "excluded": None if self.excluded is None else self.excluded.to_dict(),
            "n": self.n,
            "n_resamples": self.n_resamples,
            "threshold": self.threshold,
        }

    def summary(self) -> str:
        """Say which experts were selected."""
        return (
            f"In at least {self.threshold:.0%} of {self.n_resamples} resamples among the "
            f"{self.n} largest: {self.experts or 'none'}."
        )


def stability_selection(
    scores: Scores,
    *,
    n: int,
    n_resamples: int = 200,
    threshold: float = 0.9,
    exclude: Scores | None = None,
    units: Sequence[int] | None = None,
    exclude_units: Sequence[int] | None = None,
    rng: Generator,
) -> StabilitySelection:
    r"""Find the experts that stay among the `n` largest when the prompts are drawn again.

    Prompts are drawn with replacement, the scores averaged, the `n` largest of all layers taken;
    the part of the draws in which an expert is taken is its probability. Taking the intersection
    of all draws is the threshold 1. Where scores tie at the edge, the tied experts share the
    places that are left, so that the order of experts does not decide.

    Args:
        scores: Scores of each prompt, such as `selection_frequency` of a record.
        n: Experts to take in each draw.
        n_resamples: Number of draws.
        threshold: The probability from which an expert counts as stable, in (0, 1].
        exclude: Scores of other prompts; experts that are stable there are taken out.
        units: The unit of each prompt, drawn whole: prompts that share a pair or a wording.
        exclude_units: The same for the prompts to exclude.
        rng: Source of randomness.

    Returns:
        The probabilities and the selected experts.

    Raises:
        ValueError: If the scores are not by prompt, or an option is out of range.

    References:
        Meinshausen and Bühlmann (2010), "Stability selection". SAFEx (2025), arXiv 2506.17368,
        takes the intersection of all draws.

    Example:
        >>> use = np.array([[[0.9, 0.1, 0.0]], [[0.8, 0.0, 0.2]], [[0.7, 0.2, 0.1]]])
        >>> scores = Scores.of_array("use", "fraction", use, layers=(4,))
        >>> print(stability_selection(scores, n=1, rng=np.random.default_rng(0)).experts)
        L4E0
    """
    for one in (scores, exclude):
        if one is not None and "prompt" not in one.array.dims:
            raise ValueError(
                f"Scores of each prompt are needed, {one.name!r} has none. Prompts are what is "
                "drawn again."
            )
    n_all = len(scores.layers) * scores.n_experts
    if not 1 <= n < n_all:
        raise ValueError(f"`n` must lie between 1 and {n_all - 1}, got {n!r}.")
    if n_resamples < 1 or not 0 < threshold <= 1:
        raise ValueError(
            f"`n_resamples` must be positive and `threshold` in (0, 1], got {n_resamples!r} and "
            f"{threshold!r}."
        )
    found = _probability(scores, n, n_resamples, units, rng)
    other = None
    if exclude is not None:
        other = _probability(exclude, n, n_resamples, exclude_units, rng)
    return StabilitySelection(found, other, n, n_resamples, threshold)


def _probability(
    scores: Scores, n: int, n_resamples: int, units: Sequence[int] | None, rng: Generator
) -> Scores:
    values = scores.array.values
    owner = np.arange(len(values)) if units is None else np.asarray(units)
    if len(owner) != len(values):
        raise ValueError(f"`units` must name one unit for each of {len(values)} prompts.")
    names, owner = np.unique(owner, return_inverse=True)
    flat = rearrange(values, "prompt layer expert -> prompt (layer expert)")
    total = np.zeros(flat.shape[1])
    for _ in range(n_resamples):
        drawn = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        weight = drawn[owner]
        total += _taken(weight @ flat / weight.sum(), n)
    shape = values.shape[1:]
    name, unit = "selection_probability", "fraction of resamples"
    return Scores.of_array(name, unit, (total / n_resamples).reshape(shape), layers=scores.layers)


def _taken(mean: Float[ndarray, " any"], n: int) -> Float[ndarray, " any"]:
    """1 for the `n` largest; at the edge, tied numbers share the places that are left."""
    edge = np.partition(mean, -n)[-n]
    near = np.isclose(mean, edge, rtol=1e-9, atol=1e-12)
    above = (mean > edge) & ~near
    return above + near * ((n - above.sum()) / near.sum())
