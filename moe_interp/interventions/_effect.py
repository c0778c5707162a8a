"""The effect of interventions on a metric, prompt by prompt, against the untouched model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from moe_interp.interventions._frozen import with_frozen_routing
from moe_interp.interventions._intervention import Intervention, as_recipe
from moe_interp.interventions._measure import Metric, measure, metric_name, metric_unit
from moe_interp.interventions._rows import as_prompt_set
from moe_interp.models import MoEModel
from moe_interp.notebook import Shown
from moe_interp.prompts import PromptSet

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Effect(Shown):
    """A metric with and without interventions, for each prompt.

    Attributes:
        prompts: The prompts, in the order of the numbers.
        metric: Name of the metric.
        unit: Its unit.
        interventions: What was done, in words.
        baseline: The metric of each prompt without interventions.
        intervened: The metric of each prompt with them.
    """

    prompts: PromptSet
    metric: str
    unit: str
    interventions: tuple[str, ...]
    baseline: Float[np.ndarray, " prompt"]
    intervened: Float[np.ndarray, " prompt"]

    @property
    def effect(self) -> Float[np.ndarray, " prompt"]:
        """Intervened minus baseline, for each prompt."""
        return self.intervened - self.baseline

    def mean(
        self, chosen: Bool[np.ndarray, " prompt"] | None = None, *, confidence: float = 0.95
    ) -> tuple[float, float, float]:
        """Mean effect with its t interval across prompts.

        The interval takes prompts as independent draws. Prompts that share their wording are not;
        it is then too narrow.

        Args:
            chosen: Which prompts to average; all if not given.
            confidence: Coverage of the interval.

        Returns:
            The mean and the two ends of the interval, which are NaN for a single prompt.

        Raises:
            ValueError: If no prompt is chosen or the confidence is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
        effect = self.effect if chosen is None else self.effect[chosen]
        if not len(effect):
            raise ValueError("No prompt is chosen, so there is no mean effect. Choose at least 1.")
        mean = float(effect.mean())
        if len(effect) == 1:
            return mean, float("nan"), float("nan")
        error = float(effect.std(ddof=1)) / np.sqrt(len(effect))
        reach = float(stats.t.ppf((1 + confidence) / 2, len(effect) - 1)) * error
        return mean, mean - reach, mean + reach

    def to_frame(self) -> "DataFrame":
        """One row a prompt: its id, text, topic, harm, baseline, intervened and effect."""
        frame = self.prompts.to_frame()
        return frame.assign(baseline=self.baseline, intervened=self.intervened, effect=self.effect)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-safe values."""
        return {
            "metric": self.metric,
            "unit": self.unit,
            "interventions": list(self.interventions),
            "prompts": list(self.prompts.ids),
            "baseline": self.baseline.tolist(),
            "intervened": self.intervened.tolist(),
        }

    def summary(self) -> str:
        """Mean effect with its 95 % t interval across prompts, also by harm where it is known."""
        groups: list[tuple[str, Bool[np.ndarray, " prompt"]]] = [
            ("all", np.ones(len(self.prompts), dtype=bool))
        ]
        if self.prompts.has_harm:
            harm = self.prompts.harm
            groups += [("harmful", harm), ("harmless", ~harm)]
        done = ", ".join(self.interventions) or "no intervention"
        lines = [f"{done} on {self.metric} ({self.unit}), mean and 95 % t interval over prompts:"]
        for name, chosen in groups:
            if chosen.any():
                mean, low, high = self.mean(chosen)
                before, after = self.baseline[chosen].mean(), self.intervened[chosen].mean()
                lines.append(
                    f"  {name} ({chosen.sum()}): {before:.3g} -> {after:.3g}, effect {mean:.3g} "
                    f"[{low:.3g}, {high:.3g}]"
                )
        return "\n".join(lines)


def measure_effect(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    interventions: Intervention | Sequence[Intervention],
    *,
    metric: Metric,
    max_new_tokens: int = 24,
    freeze_downstream_routing: bool = False,
    batch_size: int | str = "auto",
) -> Effect:
    """Measure what interventions change, prompt by prompt.

    Args:
        model: The model.
        prompts: The prompts.
        interventions: What to change, applied in list order.
        metric: What to measure: a metric, or a function of next-token logits (batch, d_vocab).
        max_new_tokens: How much to generate for a metric of texts; else not used.
        freeze_downstream_routing: As in `run`: whether layers after the first that is changed
            keep the routing of the untouched model.
        batch_size: Rows in one forward; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The metric of each prompt with and without the interventions.

    Raises:
        ValueError: If a layer or expert does not exist, a mask of tokens does not fit, or the
            metric does not give one number for each prompt, or logits are not numbers.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = ["how do i open the lock to start an attack ?"]
        >>> refusal = mi.RefusalLogOdds(model.tokenizer)
        >>> effect = mi.measure_effect(model, prompts, mi.Ban("L3E8,L3E9"), metric=refusal)
        >>> bool(effect.effect[0] < -5)
        True
    """
    prompts, recipe = as_prompt_set(prompts), as_recipe(interventions)
    applied = recipe
    if freeze_downstream_routing:
        applied = with_frozen_routing(model, prompts, recipe, batch_size=batch_size)
    baseline, intervened = measure(
        model,
        prompts,
        [(), applied],
        metric,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    return Effect(
        prompts=prompts,
        metric=metric_name(metric),
        unit=metric_unit(metric),
        interventions=tuple(map(repr, applied)),
        baseline=baseline,
        intervened=intervened,
    )
