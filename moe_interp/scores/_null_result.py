"""What a matched null found: the effect, the null, the match, and what changed elsewhere."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from moe_interp.experts import ExpertSet
from moe_interp.notebook import Shown
from moe_interp.scores._side_effects import OffTarget, SideEffect

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class MatchedNull(Shown):
    """The effect of a change, beside the same change at random experts matched on layer and use.

    Attributes:
        experts: The experts in question; empty if only vectors are added.
        metric: Name of the metric.
        unit: Its unit.
        mode: What is done to the experts.
        n_prompts: Prompts averaged over.
        baseline: Mean of the metric of the untouched model.
        observed: Mean of the metric under the change.
        low: Lower end of the 95 % t interval of the effect, across prompts.
        high: Upper end.
        null: Mean of the metric under each random counterpart.
        sets: The random experts, in the same order.
        p_value: How often random counterparts change the metric at least as much, as they are or
            scaled to the use of the experts in question; never 0.
        n_distinct: Different counterparts among the random ones.
        matched_on: Names of the measures of use that experts are matched on.
        use: Mean use of the experts in question, by each measure.
        null_use: Mean use of each random set.
        off_target: What the change does elsewhere, beside the same counterparts; None if neither
            harmless prompts nor neutral texts were given.
        specificity: The effect less that on the harmless prompts, beside that of the same
            counterparts; None without harmless prompts.
    """

    experts: ExpertSet
    metric: str
    unit: str
    mode: str
    n_prompts: int
    baseline: float
    observed: float
    low: float
    high: float
    null: Float[ndarray, " draw"]
    sets: tuple[ExpertSet, ...]
    p_value: float
    n_distinct: int
    matched_on: tuple[str, ...]
    use: Float[ndarray, " score"]
    null_use: Float[ndarray, "draw score"]
    off_target: OffTarget | None = field(default=None, repr=False)
    specificity: SideEffect | None = field(default=None, repr=False)

    @property
    def effect(self) -> float:
        """Change of the mean metric."""
        return self.observed - self.baseline

    def match(self) -> dict[str, dict[str, float]]:
        """How well the random sets match on use, by measure: both means, and the null's range."""
        found = {}
        for name, own, drawn in zip(self.matched_on, self.use, self.null_use.T, strict=True):
            low, high = np.quantile(drawn, [0.025, 0.975])
            found[name] = {
                "experts": float(own),
                "random": float(drawn.mean()),
                "random_low": float(low),
                "random_high": float(high),
            }
        return found

    def to_frame(self) -> "DataFrame":
        """Give one row per random counterpart: its experts, their use and the outcome."""
        import pandas as pd

        columns = {"experts": [str(experts) for experts in self.sets]}
        use = dict(zip(self.matched_on, self.null_use.T, strict=True))
        return pd.DataFrame(columns | use | {self.metric: self.null})

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON-safe values; experts by their labels."""
        elsewhere = [] if self.off_target is None else self.off_target.to_dict()["effects"]
        specific = self.specificity
        return dict(vars(self)) | {
            "experts": [str(expert) for expert in self.experts],
            "null": self.null.tolist(),
            "sets": [str(experts) for experts in self.sets],
            "matched_on": list(self.matched_on),
            "use": self.use.tolist(),
            "null_use": self.null_use.tolist(),
            "off_target": elsewhere,
            "specificity": None if specific is None else specific.to_dict(),
        }

    def summary(self) -> str:
        """Say the effect, the null, the match and what else changed in a few lines."""
        low, high = np.quantile(self.null, [0.025, 0.975])
        lines = [
            f"{self.mode} {self.experts}: {self.metric} {self.baseline:.3g} -> "
            f"{self.observed:.3g} ({self.n_prompts} prompts), effect {self.effect:.3g} "
            f"[{self.low:.3g}, {self.high:.3g}]",
            f"  {len(self.null)} random sets ({self.n_distinct} different) matched on layer and "
            f"use: mean {self.null.mean():.3g}, 95 % {low:.3g} to {high:.3g}; p = "
            f"{self.p_value:.3g}",
        ]
        for name, found in self.match().items():
            lines.append(f"  {name} {found['experts']:.3g}, random sets {found['random']:.3g}")
        if self.specificity is not None:
            lines.append(
                f"  effect less that on benign prompts {self.specificity.observed:.3g}; "
                f"p = {self.specificity.p_value:.3g}"
            )
        if self.off_target is not None:
            lines.append(self.off_target.summary())
        return "\n".join(lines)
