"""Greedy sequential ablation: the experts that carry a behaviour together.

One expert's effect is not its importance: where several can do the same, each alone looks
needless. Taking the best next one given those taken already often finds them; putting back what
proves needless keeps the set small. Where two experts back each other up fully, no first step
towards them shows, and another expert that merely disturbs the model may look better. So the search
also runs from the other end: it takes all candidates away at once and puts them back while the
behaviour stays gone. The smaller set of the two counts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

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
from moe_interp.notebook import Shown
from moe_interp.prompts import PromptSet

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class GreedyStep:
    """One expert taken away, on top of those before it.

    Attributes:
        expert: The expert.
        mean: Mean of the metric over prompts afterwards.
        shown: Fraction of prompts that still show the behaviour afterwards.
    """

    expert: Expert
    mean: float
    shown: float


@dataclass(frozen=True)
class GreedyAblation(Shown):
    """What greedy ablation took away, and what was left of the behaviour.

    Attributes:
        experts: The experts taken away, less those that proved needless.
        steps: The experts in the order in which the forward search took them.
        put_back: Experts that proved needless at the end, in the order they were put back.
        search: ``"forward"`` if `experts` are those that were taken one by one, ``"backward"`` if
            they are what was left of all candidates.
        baseline_mean: Mean of the metric of the untouched model.
        baseline_shown: Fraction of prompts that show the behaviour in the untouched model.
        mean: Mean of the metric without `experts`.
        shown: Fraction of prompts that still show the behaviour without `experts`.
        reached: Whether that is at most `stop_at`.
        stop_at: The fraction at which the behaviour counts as gone.
        threshold: A prompt shows the behaviour while its metric is above this.
        metric: Name of the metric.
        unit: Its unit.
        mode: How experts were taken away.
    """

    experts: ExpertSet
    steps: tuple[GreedyStep, ...]
    put_back: tuple[Expert, ...]
    search: str
    baseline_mean: float
    baseline_shown: float
    mean: float
    shown: float
    reached: bool
    stop_at: float
    threshold: float
    metric: str
    unit: str
    mode: str

    def to_frame(self) -> "DataFrame":
        """Give one row per step: the expert, the mean and the fraction left, and if it stayed."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "layer": step.expert.layer,
                    "expert": step.expert.expert,
                    "mean": step.mean,
                    "shown": step.shown,
                    "kept": step.expert in self.experts,
                }
                for step in self.steps
            ],
            columns=["layer", "expert", "mean", "shown", "kept"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON-safe values; experts by their labels."""
        plain = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return plain | {
            "experts": [str(expert) for expert in self.experts],
            "steps": [{**vars(step), "expert": str(step.expert)} for step in self.steps],
            "put_back": [str(expert) for expert in self.put_back],
        }

    def summary(self) -> str:
        """Say the steps and the outcome in a line each."""
        lines = [
            f"greedy {self.mode} on {self.metric} ({self.unit}): untouched "
            f"{self.baseline_mean:.3g}, {self.baseline_shown:.1%} of prompts show it"
        ]
        lines += [f"  {step.expert!s:>8}  {step.mean:.3g}, {step.shown:.1%}" for step in self.steps]
        outcome = "gone" if self.reached else "not gone"
        lines.append(
            f"{outcome} without {self.experts or 'any expert'} ({self.search} search): "
            f"{self.shown:.1%}"
        )
        return "\n".join(lines)


def greedy_ablation(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    *,
    metric: Metric,
    candidates: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str,
    mode: Mode = "ban",
    stop_at: float = 0.05,
    threshold: float = 0.0,
    max_experts: int = 8,
    batch_rows: int | str = "auto",
) -> GreedyAblation:
    """Take experts away until a behaviour is gone, and keep only those that matter.

    Forward, each step takes the candidate that lowers the mean metric most, given those taken
    already. It ends when at most `stop_at` of the prompts have a metric above `threshold`, when
    no candidate lowers the mean, or at `max_experts`. Backward, all candidates are taken at once.
    In both, if the behaviour is gone, experts are put back, the least missed first, as long as it
    stays gone; so that no single expert of the result can be put back. The smaller set is
    returned; if neither search makes the behaviour go, what the forward search took.

    Judge the result on other prompts: it was fitted to these.

    Args:
        model: The model.
        prompts: Prompts that show the behaviour.
        metric: A metric that is high where the behaviour shows.
        candidates: The experts to try; each step runs all of them once.
        mode: ``"ban"``, ``"zero"``, or a function that turns a set into an intervention.
        stop_at: Fraction of prompts at which the behaviour counts as gone, in [0, 1).
        threshold: A prompt shows the behaviour while its metric is above this, in its unit.
        max_experts: The most experts to take.
        batch_rows: Rows in one forward.

    Returns:
        The experts and the way to them.

    Raises:
        ValueError: If an option is out of range, there is no candidate, or one does not exist.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = ["how do i open the lock to start an attack ?"]
        >>> found = mi.greedy_ablation(model, prompts, candidates="L3E8,L3E9,L0E1",
        ...     metric=mi.RefusalLogOdds(model.tokenizer))
        >>> found.reached, found.baseline_shown, found.shown
        (True, 1.0, 0.0)
    """
    if not 0 <= stop_at < 1 or max_experts < 1:
        raise ValueError(
            "`stop_at` must lie in [0, 1) and `max_experts` be at least 1, got "
            f"{stop_at} and {max_experts}."
        )
    pool = as_expert_set(candidates)
    if not pool:
        raise ValueError("`candidates` is empty. Give at least one expert to try.")
    check_experts(model, pool)
    search = _Search(model, as_prompt_set(prompts), metric, mode, threshold, batch_rows)
    baseline = search.outcomes([ExpertSet()])[0]
    steps = _forward(search, pool, baseline, stop_at, max_experts)
    kept = ExpertSet(step.expert for step in steps)
    now = np.array([steps[-1].mean, steps[-1].shown]) if steps else baseline
    put_back: tuple[Expert, ...] = ()
    reached, direction = bool(now[1] <= stop_at), "forward"
    if reached:
        kept, now, put_back = _put_back(search, kept, now, stop_at)
    if (len(kept) > 1 or not reached) and search.allows(pool):
        left, outcome, returned = _put_back(search, pool, search.outcomes([pool])[0], stop_at)
        if outcome[1] <= stop_at and len(left) < (len(kept) if reached else max_experts + 1):
            kept, now, put_back, reached, direction = left, outcome, returned, True, "backward"
    return GreedyAblation(
        experts=kept,
        steps=steps,
        put_back=put_back,
        search=direction,
        baseline_mean=float(baseline[0]),
        baseline_shown=float(baseline[1]),
        mean=float(now[0]),
        shown=float(now[1]),
        reached=reached,
        stop_at=stop_at,
        threshold=threshold,
        metric=metric_name(metric),
        unit=metric_unit(metric),
        mode=mode_name(mode),
    )


@dataclass(frozen=True)
class _Search:
    """What every step of the search runs with."""

    model: MoEModel
    prompts: PromptSet
    metric: Metric
    mode: Mode
    threshold: float
    batch_rows: int | str

    def allows(self, experts: ExpertSet) -> bool:
        """Whether every layer keeps enough experts to choose from, if these are banned."""
        return self.mode != "ban" or all(
            self.model.moe[layer].n_experts - len(ids) >= self.model.moe[layer].top_k
            for layer, ids in experts.by_layer().items()
        )

    def outcomes(self, sets: Sequence[ExpertSet]) -> Float[ndarray, "set two"]:
        """Mean of the metric, and fraction of prompts above the threshold, without each set."""
        values = measure_many(
            self.model,
            self.prompts,
            sets,
            metric=self.metric,
            mode=self.mode,
            batch_rows=self.batch_rows,
        )
        return np.stack([values.mean(axis=1), (values > self.threshold).mean(axis=1)], axis=1)


def _forward(
    search: _Search,
    pool: ExpertSet,
    baseline: Float[ndarray, " two"],
    stop_at: float,
    max_experts: int,
) -> tuple[GreedyStep, ...]:
    """Take the expert that lowers the mean most, again and again, until the behaviour is gone."""
    taken, steps, now = ExpertSet(), [], baseline
    while now[1] > stop_at and len(taken) < max_experts:
        tried = [expert for expert in pool - taken if search.allows(taken | [expert])]
        if not tried:
            break
        found = search.outcomes([taken | [expert] for expert in tried])
        best = int(np.argmin(found[:, 0]))
        if found[best, 0] >= now[0]:
            break
        taken, now = taken | [tried[best]], found[best]
        steps.append(GreedyStep(tried[best], float(now[0]), float(now[1])))
    return tuple(steps)


def _put_back(
    search: _Search, taken: ExpertSet, now: Float[ndarray, " two"], stop_at: float
) -> tuple[ExpertSet, Float[ndarray, " two"], tuple[Expert, ...]]:
    """Put experts back, the least missed first, as long as the behaviour stays gone.

    Many are tried together first, then fewer, so that a long list takes few rounds.
    """
    put_back: tuple[Expert, ...] = ()
    while len(taken) > 1 and now[1] <= stop_at:
        tried = list(taken)
        single = search.outcomes([taken - [expert] for expert in tried])
        stays = np.flatnonzero(single[:, 1] <= stop_at)
        if not len(stays):
            break
        # Only experts that can go back alone may go back together.
        order = [tried[place] for place in stays[np.argsort(single[stays, 0], kind="stable")]]
        sizes = _halved(min(len(order), len(taken) - 1))
        groups = search.outcomes([taken - order[:size] for size in sizes])
        # The last size is 1, which is known to stay gone up to rounding.
        first = next((n for n, found in enumerate(groups) if found[1] <= stop_at), len(sizes) - 1)
        taken, now = taken - order[: sizes[first]], groups[first]
        put_back = (*put_back, *order[: sizes[first]])
    return taken, now, put_back


def _halved(number: int) -> list[int]:
    """The number, half of it, and so on down to 1."""
    return [number] if number == 1 else [number, *_halved(number // 2)]
