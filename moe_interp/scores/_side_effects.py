"""Results of looking beside the target: one number each, with interval and random counterparts."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from moe_interp.notebook import Shown

if TYPE_CHECKING:
    from pandas import DataFrame

BENIGN, NEUTRAL = "benign prompts", "neutral texts"


@dataclass(frozen=True)
class SideEffect:
    """One number that interventions should leave alone, with and without them.

    Attributes:
        name: What is measured.
        unit: Its unit.
        of: ``"benign prompts"`` or ``"neutral texts"``.
        n: Prompts or texts averaged over.
        baseline: Mean of the untouched model.
        observed: Mean under the interventions.
        low: Lower end of the 95 % t interval of the difference, across prompts or texts.
        high: Upper end; both are NaN for a single prompt.
        difference: The difference of each prompt or text.
        null: Mean under each random counterpart; None where none was run.
        p_value: How often random counterparts change it at least as much; None without them.
    """

    name: str
    unit: str
    of: str
    n: int
    baseline: float
    observed: float
    low: float
    high: float
    difference: Float[ndarray, " prompt"] = field(repr=False)
    null: Float[ndarray, " draw"] | None = field(default=None, repr=False)
    p_value: float | None = None

    @property
    def effect(self) -> float:
        """Observed less baseline."""
        return self.observed - self.baseline

    def to_dict(self) -> dict[str, Any]:
        """Give the numbers as JSON-safe values, those of single prompts left out."""
        row = dict(vars(self)) | {"effect": self.effect}
        row["null"] = None if self.null is None else self.null.tolist()
        del row["difference"]
        return {name: _safe(value) for name, value in row.items()}


@dataclass(frozen=True)
class OffTarget(Shown):
    """Everything that was looked at beside the target.

    Attributes:
        interventions: What was done, in words.
        effects: The numbers.
    """

    interventions: tuple[str, ...]
    effects: tuple[SideEffect, ...]

    def __getitem__(self, name: str) -> SideEffect:
        found = {effect.name: effect for effect in self.effects}
        if name not in found:
            raise KeyError(f"{name!r} was not measured. Measured: {', '.join(found)}.")
        return found[name]

    @property
    def perplexity(self) -> tuple[float, float]:
        """Perplexity of the neutral texts, untouched and changed: exp of their mean loss.

        Raises:
            KeyError: If no neutral texts were given.
        """
        loss = self["neutral_loss"]
        return float(np.exp(loss.baseline)), float(np.exp(loss.observed))

    def to_frame(self) -> "DataFrame":
        """Give one row per number."""
        import pandas as pd

        return pd.DataFrame([effect.to_dict() for effect in self.effects]).drop(columns="null")

    def to_dict(self) -> dict[str, Any]:
        """Give the numbers as JSON-safe values."""
        effects = [effect.to_dict() for effect in self.effects]
        return {"interventions": list(self.interventions), "effects": effects}

    def summary(self) -> str:
        """Say each number in a line."""
        lines = [f"Off target, under {', '.join(self.interventions) or 'no intervention'}:"]
        for one in self.effects:
            line = (
                f"  {one.name} of {one.n} {one.of}: {one.baseline:.3g} -> {one.observed:.3g} "
                f"{one.unit}, effect {one.effect:.3g} [{one.low:.3g}, {one.high:.3g}]"
            )
            if one.null is not None:
                line += f"; random counterparts {one.null.mean():.3g}, p = {one.p_value:.3g}"
            lines.append(line)
            if one.name == "neutral_loss":
                before, after = self.perplexity
                lines.append(f"    perplexity {before:.4g} -> {after:.4g}")
        return "\n".join(lines)


def difference_interval(difference: Float[ndarray, " prompt"]) -> tuple[float, float]:
    """The 95 % t interval of a mean difference across prompts; NaN for a single prompt."""
    if len(difference) < 2:
        return float("nan"), float("nan")
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    reach = stats.t.ppf(0.975, len(difference) - 1) * error
    return float(difference.mean() - reach), float(difference.mean() + reach)


def welch_interval(
    first: Float[ndarray, " prompt"], second: Float[ndarray, " other"]
) -> tuple[float, float]:
    """The 95 % Welch interval of a difference of means; NaN for a single prompt on a side.

    Written out because scipy warns of lost precision where all prompts of a side changed alike,
    which is what an ablation that ends every refusal does.
    """
    if min(len(first), len(second)) < 2:
        return float("nan"), float("nan")
    parts = np.array([side.var(ddof=1) / len(side) for side in (first, second)])
    centre, variance = float(first.mean() - second.mean()), float(parts.sum())
    if variance == 0:
        return centre, centre
    freedom = variance**2 / (parts**2 / [len(first) - 1, len(second) - 1]).sum()
    reach = float(stats.t.ppf(0.975, freedom) * np.sqrt(variance))
    return centre - reach, centre + reach


def _safe(value: Any) -> Any:  # noqa: ANN401
    return None if isinstance(value, float) and not np.isfinite(value) else value
