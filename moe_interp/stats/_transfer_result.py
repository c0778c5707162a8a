"""What `transfer_auc` returns: an AUC for each way of holding out, beside its baselines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from numpy import ndarray

from moe_interp.notebook import Shown
from moe_interp.stats._results import format_p, plain
from moe_interp.stats._transfer_calibration import Calibration

if TYPE_CHECKING:
    import pandas as pd

ROUTING = "routing"


@dataclass(frozen=True, eq=False)
class BaselineAUC(Shown):
    """Decoding from other features of the same prompts in the same folds.

    Attributes:
        name: What the features are.
        auc: AUC; the mean over draws if the features are drawn at random.
        low: Lower end of its 95 % interval.
        high: Upper end.
        difference: AUC of routing less this one.
        difference_low: Lower end of the paired 95 % interval of the difference.
        difference_high: Upper end.
        calibration: Probabilities with their Brier score, if they were asked for.
        draws: AUC of each draw; a single one if the features are fixed.
    """

    name: str
    auc: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    calibration: Calibration | None
    draws: Float[ndarray, " draw"] = field(repr=False)

    def summary(self) -> str:
        """Return how routing compares with it."""
        draws = f" (mean of {len(self.draws)} draws)" if len(self.draws) > 1 else ""
        if self.difference_low > 0:
            verb = "beats"
        elif self.difference_high < 0:
            verb = "falls behind"
        else:
            verb = "is not told apart from"
        return (
            f"routing {verb} {self.name} {self.auc:.3f}{draws}: difference {self.difference:+.3f} "
            f"[{self.difference_low:+.3f}, {self.difference_high:+.3f}]"
        )


@dataclass(frozen=True, eq=False)
class SplitAUC(Shown):
    """How well harm is decoded from routing when prompts are held out in one way.

    Attributes:
        split: ``"within_topic"``, ``"leave_topic_out"`` or ``"leave_wording_out"``.
        words: What was held out, in words.
        auc: Area under the ROC curve, between 0 and 1; 0.5 is chance.
        low: Lower end of its 95 % interval.
        high: Upper end.
        chance: Mean AUC of the relabellings.
        p_value: Permutation p-value against chance, one-sided.
        p_adjusted: The same, adjusted for looking at several splits (largest statistic).
        by_topic: AUC inside each topic that was tested.
        left_out: Topics that could not be tested.
        n_folds: Number of decoders.
        n_tested: Prompts that were tested.
        baselines: Decoding from other features in the same folds.
        calibration: Probabilities with their Brier score, if they were asked for.
        null: AUC of each relabelling.
    """

    split: str
    words: str
    auc: float
    low: float
    high: float
    chance: float
    p_value: float
    p_adjusted: float
    by_topic: Mapping[str, float]
    left_out: tuple[str, ...]
    n_folds: int
    n_tested: int
    baselines: tuple[BaselineAUC, ...]
    calibration: Calibration | None
    null: Float[ndarray, " draw"] = field(repr=False)

    def baseline(self, name: str) -> BaselineAUC:
        """Return a baseline by its name.

        Args:
            name: A name given in `baselines`.

        Returns:
            The baseline.

        Raises:
            KeyError: If there is none of that name.
        """
        for own in self.baselines:
            if own.name == name:
                return own
        raise KeyError(f"No baseline {name!r}; given: {tuple(own.name for own in self.baselines)}.")

    def summary(self) -> str:
        """Return the AUC, its p-value and the comparisons, one line each."""
        lines = [
            f"{self.split} ({self.words}): AUC {self.auc:.3f} [{self.low:.3f}, {self.high:.3f}], "
            f"{format_p(self.p_value)}, over all splits {format_p(self.p_adjusted)}"
        ]
        lines += [f"  {own.summary()}" for own in self.baselines]
        if self.calibration is not None:
            lines.append(
                f"  probabilities ({self.calibration.method}): Brier score "
                f"{self.calibration.brier:.3f}, of the share of harmful prompts alone "
                f"{self.calibration.brier_reference:.3f}"
                + "".join(
                    f", from {own.name} {own.calibration.brier:.3f}"
                    for own in self.baselines
                    if own.calibration is not None
                )
            )
        if self.left_out:
            lines.append(f"  not tested: topics {', '.join(map(repr, self.left_out))}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class TransferAUC(Shown):
    """How well harm is decoded from routing, in topics and in words that were held out.

    Attributes:
        span: The token set.
        layers: Absolute decoder layers whose routing was used.
        n_features: Number of (layer, expert) shares the decoder reads.
        splits: Split to its result.
        refused: Split to the reason why the prompts do not allow it.
        scheme: Name of the exchange scheme.
        words: What was exchanged, in words.
        n_prompts: Prompts that took part.
        n_units: Exchange units.
        n_resamples: Relabellings that were counted.
        exhaustive: Whether these were all there are.
    """

    span: str
    layers: tuple[int, ...]
    n_features: int
    splits: Mapping[str, SplitAUC]
    refused: Mapping[str, str]
    scheme: str
    words: str
    n_prompts: int
    n_units: int
    n_resamples: int
    exhaustive: bool

    def __getitem__(self, split: str) -> SplitAUC:
        """Return the result of a split.

        Args:
            split: Its name.

        Returns:
            The result.

        Raises:
            KeyError: If the split was refused or not asked for.
        """
        if split in self.splits:
            return self.splits[split]
        if split in self.refused:
            raise KeyError(f"Split {split!r} was refused: {self.refused[split]}")
        raise KeyError(f"No split {split!r}; there are {tuple(self.splits)}.")

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a split for routing and one for each baseline."""
        import pandas as pd

        rows = []
        for own in self.splits.values():
            rows.append(
                {
                    "span": self.span,
                    "split": own.split,
                    "features": ROUTING,
                    "auc": own.auc,
                    "auc_low": own.low,
                    "auc_high": own.high,
                    "p_value": own.p_value,
                    "p_adjusted": own.p_adjusted,
                    **_brier(own.calibration),
                }
            )
            for other in own.baselines:
                rows.append(
                    {
                        "span": self.span,
                        "split": own.split,
                        "features": other.name,
                        "auc": other.auc,
                        "auc_low": other.low,
                        "auc_high": other.high,
                        "routing_minus": other.difference,
                        "routing_minus_low": other.difference_low,
                        "routing_minus_high": other.difference_high,
                        **_brier(other.calibration),
                    }
                )
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the table's rows, the topics and the design as JSON-safe values."""
        return plain(
            {
                "rows": self.to_frame().to_dict("records"),
                "splits": {
                    name: {
                        "held_out": own.words,
                        "chance": own.chance,
                        "by_topic": own.by_topic,
                        "left_out": own.left_out,
                        "n_folds": own.n_folds,
                        "n_tested": own.n_tested,
                        "calibration": own.calibration and own.calibration.to_dict(),
                        "baseline_calibrations": {
                            other.name: other.calibration and other.calibration.to_dict()
                            for other in own.baselines
                        },
                    }
                    for name, own in self.splits.items()
                },
                "refused": self.refused,
                "scheme": self.scheme,
                "exchanged": self.words,
                "n_prompts": self.n_prompts,
                "n_units": self.n_units,
                "n_features": self.n_features,
                "n_resamples": self.n_resamples,
                "exhaustive": self.exhaustive,
            }
        )

    def summary(self) -> str:
        """Return each split in a few lines, those refused with the reason."""
        lines = [
            f"Harm decoded from routing on {self.span!r} tokens: {self.n_prompts} prompts, "
            f"{self.n_features} shares, exchanging {self.words} ({self.n_units} units):"
        ]
        for own in self.splits.values():
            lines += [f"  {line}" for line in own.summary().splitlines()]
        lines += [f"  {name} was refused: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)


def _brier(calibration: Calibration | None) -> dict[str, float]:
    return {} if calibration is None else {"brier": calibration.brier}
