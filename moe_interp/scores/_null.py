"""The matched null: what as many random experts of the same layers and like use would do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import (
    Metric,
    Mode,
    as_expert_set,
    as_prompt_set,
    check_experts,
    measure_many,
    metric_name,
    metric_unit,
    mode_name,
)
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores._scores import Scores

if TYPE_CHECKING:
    from pandas import DataFrame

# Width of the kernel in log frequency: an expert used twice as much is one width away.
_WIDTH = np.log(2)
# Frequencies below this are alike: on a few hundred prompts they are a token or two.
_SMALLEST = 1e-3
# Effects closer than this count as equal: the same run differs by as much from batch to batch, and
# a set without any effect must not beat another such set by its rounding.
_TIE = 1e-5


@dataclass(frozen=True)
class MatchedNull:
    """The effect of taking experts away, beside random experts matched on layer and use.

    Attributes:
        experts: The experts in question.
        metric: Name of the metric.
        unit: Its unit.
        mode: How experts are taken away.
        n_prompts: Prompts averaged over.
        baseline: Mean of the metric of the untouched model.
        observed: Mean of the metric without the experts.
        null: Mean of the metric without each random set.
        sets: The random sets, in the same order.
        p_value: How often random experts change the metric at least as much, never 0.
        n_distinct: Different sets among the random ones.
        frequency: Mean selection frequency of the experts in question.
        null_frequency: Mean selection frequency of each random set.
    """

    experts: ExpertSet
    metric: str
    unit: str
    mode: str
    n_prompts: int
    baseline: float
    observed: float
    null: Float[ndarray, " draw"]
    sets: tuple[ExpertSet, ...]
    p_value: float
    n_distinct: int
    frequency: float
    null_frequency: Float[ndarray, " draw"]

    @property
    def effect(self) -> float:
        """Change of the mean metric by taking the experts away."""
        return self.observed - self.baseline

    def match(self) -> dict[str, float]:
        """How well the random sets match on use: mean frequencies, and the null's 95 % range."""
        low, high = np.quantile(self.null_frequency, [0.025, 0.975])
        return {
            "frequency": self.frequency,
            "null_frequency": float(self.null_frequency.mean()),
            "null_frequency_low": float(low),
            "null_frequency_high": float(high),
        }

    def to_frame(self) -> "DataFrame":
        """Give one row per random set: its experts, frequency and outcome."""
        import pandas as pd

        return pd.DataFrame(
            {
                "experts": [str(experts) for experts in self.sets],
                "frequency": self.null_frequency,
                self.metric: self.null,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON-safe values; experts by their labels."""
        return dict(vars(self)) | {
            "experts": [str(expert) for expert in self.experts],
            "null": self.null.tolist(),
            "sets": [str(experts) for experts in self.sets],
            "null_frequency": self.null_frequency.tolist(),
        }

    def summary(self) -> str:
        """Say the effect, the null and the match in a few lines."""
        low, high = np.quantile(self.null, [0.025, 0.975])
        return (
            f"{self.mode} {self.experts}: {self.metric} {self.baseline:.3g} -> "
            f"{self.observed:.3g} ({self.n_prompts} prompts)\n"
            f"  {len(self.null)} random sets ({self.n_distinct} different) matched on layer and "
            f"use: mean {self.null.mean():.3g}, 95 % {low:.3g} to {high:.3g}; p = "
            f"{self.p_value:.3g}\n"
            f"  selection frequency {self.frequency:.3g}, random sets "
            f"{self.null_frequency.mean():.3g}"
        )


def matched_null(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str,
    *,
    metric: Metric,
    frequency: Scores,
    mode: Mode = "ban",
    n_draws: int = 100,
    rng: Generator,
    max_new_tokens: int = 24,
    batch_rows: int | str = "auto",
) -> MatchedNull:
    r"""Compare taking experts away with taking away random experts of like use.

    The null hypothesis: these experts matter no more than others of their layers that are used
    as much. Each random set replaces every expert by one of the same layer that is not in
    question, without repeats. A candidate with frequency :math:`f'` replaces one with
    :math:`f` with probability in proportion to :math:`\exp(-\tfrac12 (\log_2 f'/f)^2)`. Where a
    layer has few experts the same set is drawn more than once: it runs once, and

    .. math:: p = \max\left(\frac{1 + \#\{\text{draws}\}}{1 + n_\text{draws}},
              \frac{1 + \#\{\text{distinct}\}}{1 + n_\text{distinct}}\right)

    counts the random sets that change the mean metric at least as much, in either direction.
    What can be wrong is the match: see `MatchedNull.match`.

    Args:
        model: The model.
        prompts: The prompts; not those the experts were chosen on.
        experts: The experts in question.
        metric: What to measure.
        frequency: Selection frequency of every expert, from `selection_frequency`.
        mode: ``"ban"``, ``"zero"``, or a function that turns a set into an intervention.
        n_draws: Random sets, at least 19, so that p can reach 0.05.
        rng: Source of randomness.
        max_new_tokens: How much to generate for a metric of texts; else not used.
        batch_rows: Rows in one forward.

    Returns:
        The effect, the null, and how well it matches.

    Raises:
        ValueError: If there are no experts, one does not exist, or `n_draws` is too small.
        DesignError: If a layer has no experts left to draw from.
    """
    chosen, prompts = as_expert_set(experts), as_prompt_set(prompts)
    if not chosen:
        raise ValueError("`experts` is empty. Give at least one expert to compare.")
    if n_draws < 19:
        raise ValueError(f"`n_draws` must be at least 19, got {n_draws}: fewer cannot give 0.05.")
    check_experts(model, chosen)
    sets = [_draw_set(chosen, frequency, rng) for _ in range(n_draws)]
    measured = measure_many(
        model,
        prompts,
        [ExpertSet(), chosen, *sets],
        metric=metric,
        mode=mode,
        max_new_tokens=max_new_tokens,
        batch_rows=batch_rows,
    ).mean(axis=1)
    baseline, observed, null = float(measured[0]), float(measured[1]), measured[2:]
    n_distinct = len(set(sets))
    return MatchedNull(
        experts=chosen,
        metric=metric_name(metric),
        unit=metric_unit(metric),
        mode=mode_name(mode),
        n_prompts=len(prompts),
        baseline=baseline,
        observed=observed,
        null=null,
        sets=tuple(sets),
        p_value=_p_value(observed - baseline, null - baseline, sets),
        n_distinct=n_distinct,
        frequency=_mean_frequency(chosen, frequency),
        null_frequency=np.array([_mean_frequency(drawn, frequency) for drawn in sets]),
    )


def _draw_set(chosen: ExpertSet, frequency: Scores, rng: Generator) -> ExpertSet:
    drawn: list[Expert] = []
    for layer, ids in chosen.by_layer().items():
        use = np.log(np.maximum(frequency.of_layer(layer), _SMALLEST))
        free = np.setdiff1d(np.arange(len(use)), ids)
        if len(free) < len(ids):
            raise DesignError(
                f"Layer {layer} has {len(use)} experts, {len(ids)} of which are in question: too "
                "few are left for a random set. Ask about fewer experts of this layer."
            )
        # In random order: the last expert gets what the others left.
        for expert in rng.permutation(ids):
            distance = (use[free] - use[expert]) / _WIDTH
            # Less the smallest distance, so that the nearest is likely however far it is.
            weight = np.exp(-0.5 * (distance**2 - (distance**2).min()))
            pick = rng.choice(free, p=weight / weight.sum())
            drawn.append(Expert(layer, int(pick)))
            free = free[free != pick]
    return ExpertSet(drawn)


def _p_value(effect: float, null: Float[ndarray, " draw"], sets: Sequence[ExpertSet]) -> float:
    reaches = np.abs(null) >= abs(effect) - _TIE
    of_distinct = dict(zip(sets, reaches, strict=True))
    by_draw = (1 + reaches.sum()) / (1 + len(reaches))
    by_distinct = (1 + sum(of_distinct.values())) / (1 + len(of_distinct))
    return float(max(by_draw, by_distinct))


def _mean_frequency(experts: ExpertSet, frequency: Scores) -> float:
    return float(np.mean([frequency.of(expert.layer, expert.expert) for expert in experts]))
