"""Where a ranking puts chosen experts, beside where it puts random experts of like use."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.random import Generator
from scipy.stats import rankdata

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import as_expert_set
from moe_interp.notebook import Shown
from moe_interp.scores._matching import as_scores, log_likeness, mean_use
from moe_interp.scores._scores import Scores

# Scores that differ by less than this part of the largest differ in their rounding only.
_TIE = 1e-9


@dataclass(frozen=True, eq=False)
class MatchedRanks(Shown):
    """The ranks of some experts, beside those of random experts of like layers and use.

    Attributes:
        score: Name of the score that ranks.
        experts: The experts in question.
        ranks: Rank of each, in their order: 1 for the largest score; ties share their mean rank.
        n_ranked: Experts that the score has measured, all layers together.
        null: Mean rank of each random set.
        p_value: How often a random set has a mean rank at least as small; never 0.
        matched_on: Names of the measures of use that experts are matched on.
        use: Mean use of the experts in question, by each measure.
        null_use: Mean use of each random set.
    """

    score: str
    experts: ExpertSet
    ranks: Float[ndarray, " chosen"]
    n_ranked: int
    null: Float[ndarray, " draw"]
    p_value: float
    matched_on: tuple[str, ...]
    use: Float[ndarray, " score"]
    null_use: Float[ndarray, "draw score"]

    @property
    def mean_rank(self) -> float:
        """Mean rank of the experts in question."""
        return float(self.ranks.mean())

    def to_dict(self) -> dict[str, Any]:
        """Give the ranks and the null in short, as JSON-safe values."""
        low, high = np.quantile(self.null, [0.025, 0.975])
        return {
            "score": self.score,
            "experts": [str(expert) for expert in self.experts],
            "ranks": self.ranks.tolist(),
            "n_ranked": self.n_ranked,
            "mean_rank": self.mean_rank,
            "null_mean": float(self.null.mean()),
            "null_low": float(low),
            "null_high": float(high),
            "p_value": self.p_value,
            "n_draws": len(self.null),
            "matched_on": list(self.matched_on),
            "use": self.use.tolist(),
            "null_use": self.null_use.mean(axis=0).tolist(),
        }

    def summary(self) -> str:
        """Say the ranks and those of random experts in a sentence."""
        low, high = np.quantile(self.null, [0.025, 0.975])
        ranks = ", ".join(f"{rank:g}" for rank in self.ranks)
        return (
            f"By {self.score}, {self.experts} have the ranks {ranks} of {self.n_ranked}, "
            f"{self.mean_rank:.1f} on average; random experts of like layers and use have "
            f"{self.null.mean():.1f} (95 % {low:.1f} to {high:.1f}), p = {self.p_value:.3g}."
        )


def matched_ranks(
    scores: Scores,
    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str,
    *,
    match: Scores | Sequence[Scores],
    n_draws: int = 999,
    rng: Generator,
) -> MatchedRanks:
    r"""Ask whether a ranking puts some experts before others of their layers and like use.

    An expert whose score varies much stands near an end of a ranking whatever the score means: on
    a finite set of prompts, one that is used at all has larger differences than one that is not.
    So a rank is not compared with those of all experts but with those of random sets: each expert
    is replaced by one of its layer, itself included, without repeats, and one with use
    :math:`f'` takes the place of one with :math:`f` with probability in proportion to
    :math:`\exp(-\tfrac12 (\log_2 f'/f)^2)`; given several measures of use, the exponents add up.

    .. math:: p = \frac{1 + \#\{\text{draws with a mean rank at least as small}\}}
              {1 + n_\text{draws}}

    The null hypothesis: among experts of its layer and use, which one the score ranks high has
    nothing to do with which are in question. Where a layer has few experts of like use the experts
    in question are drawn again themselves, and p cannot be small. A score that *is* use cannot be
    judged by it, for nothing of like use has another rank.

    Args:
        scores: The ranking: larger is earlier. Negate it for the other end, or take ``abs``.
        experts: The experts in question; not chosen by this score.
        match: Use of every expert: `selection_frequency` or `mean_routing_weight` of a record, or
            several of them.
        n_draws: Random sets, at least 19, so that p can reach 0.05.
        rng: Source of randomness.

    Returns:
        The ranks, the random sets' mean ranks, and the p-value.

    Raises:
        ValueError: If there are no experts, one was not measured or does not exist, `match`
            belongs to other experts or does not measure use, or `n_draws` is too small.
        TypeError: If `match` holds no scores.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> use = Scores.of_array("use", "fraction", rng.uniform(0.1, 0.2, (2, 32)), layers=(4, 5))
        >>> effect = Scores.of_array("effect", "nats", rng.normal(size=(2, 32)), layers=(4, 5))
        >>> best = [expert for expert, _ in effect.top(2)]
        >>> matched_ranks(effect, best, match=use, rng=rng).mean_rank
        1.5
    """
    chosen = as_expert_set(experts)
    by = as_scores(match)
    if not len(chosen):
        raise ValueError("`experts` is empty. Give at least one expert to rank.")
    if n_draws < 19:
        raise ValueError(f"`n_draws` must be at least 19, got {n_draws}: fewer cannot give 0.05.")
    _check(scores, by, chosen)
    ranks = _ranks(scores.mean)
    draws = _draw(scores, by, chosen, n_draws, rng, measured=np.isfinite(ranks))
    mine = np.array([ranks[scores.layers.index(one.layer), one.expert] for one in chosen])
    null = ranks.ravel()[draws].mean(axis=1)
    reached = int((null <= mine.mean() + _TIE).sum())
    return MatchedRanks(
        score=scores.name,
        experts=chosen,
        ranks=mine,
        n_ranked=int(np.isfinite(ranks).sum()),
        null=null,
        p_value=(1 + reached) / (1 + n_draws),
        matched_on=tuple(one.name for one in by),
        use=mean_use(chosen, by),
        null_use=np.stack([one.mean.ravel()[draws].mean(axis=1) for one in by], axis=1),
    )


def _check(scores: Scores, match: Sequence[Scores], experts: ExpertSet) -> None:
    for one in match:
        if one.layers != scores.layers or one.n_experts != scores.n_experts:
            raise ValueError(
                f"{one.name!r} has layers {one.layers} of {one.n_experts} experts, "
                f"{scores.name!r} has {scores.layers} of {scores.n_experts}. Match on the use of "
                "the same experts."
            )
    for expert in experts:
        known = expert.layer in scores.layers and expert.expert < scores.n_experts
        if not known or not np.isfinite(scores.of(expert.layer, expert.expert)):
            raise ValueError(
                f"{scores.name!r} does not say anything of {expert}: it was not measured. Ask "
                "about experts that were."
            )


def _ranks(values: Float[ndarray, "layer expert"]) -> Float[ndarray, "layer expert"]:
    """Ranks from 1, the largest first; NaN where nothing was measured."""
    measured = np.isfinite(values)
    step = _TIE * max(float(np.abs(values[measured]).max()), np.finfo(float).tiny)
    ranks = np.full(values.shape, np.nan)
    ranks[measured] = rankdata(-np.round(values[measured] / step))
    return ranks


def _draw(
    scores: Scores,
    match: Sequence[Scores],
    experts: ExpertSet,
    n_draws: int,
    rng: Generator,
    *,
    measured: Bool[ndarray, "layer expert"],
) -> Int[ndarray, "draw chosen"]:
    """Places, counted through all layers, of random sets: one for each expert, none twice."""
    columns = []
    rows = np.arange(n_draws)
    for layer, ids in experts.by_layer().items():
        place = scores.layers.index(layer)
        odds = np.stack([log_likeness(match, Expert(layer, expert)) for expert in ids])
        odds[:, ~measured[place]] = -np.inf
        free = np.ones((n_draws, scores.n_experts), dtype=bool)
        drawn = np.empty((n_draws, len(ids)), dtype=np.int64)
        # In random order: the last expert gets what the others left.
        order = rng.permuted(np.tile(np.arange(len(ids)), (n_draws, 1)), axis=1)
        for who in order.T:
            # The largest of log odds with Gumbel noise falls on each in proportion to its odds.
            noisy = odds[who] + rng.gumbel(size=free.shape)
            drawn[rows, who] = np.where(free, noisy, -np.inf).argmax(axis=1)
            free[rows, drawn[rows, who]] = False
        columns.append(place * scores.n_experts + drawn)
    return np.concatenate(columns, axis=1)
