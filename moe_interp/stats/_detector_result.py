"""What `detect_harm` returns: how well held-out prompts are told apart, and from what."""

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


@dataclass(frozen=True, eq=False)
class Detected(Shown):
    """A detector that reads one set of features.

    Attributes:
        features: What it reads.
        auc: Area under the ROC curve on held-out prompts; the mean over draws if the features
            are drawn at random.
        low: Lower end of its 95 % interval over exchange units.
        high: Upper end.
        chance: Mean AUC when harm labels are exchanged between units; NaN for drawn features.
        p_value: One-sided permutation p-value against that; NaN for drawn features.
        difference: AUC of the first features less this one; 0 for the first itself.
        difference_low: Lower end of the paired 95 % interval of the difference.
        difference_high: Upper end.
        by_fold: AUC on the prompts of each fold, by the names that were held out.
        calibration: Probabilities of the held-out prompts; None if training folds cannot be
            split once more, or for drawn features.
        null: AUC of each relabelling.
        draws: AUC of each draw; a single one if the features are fixed.
    """

    features: str
    auc: float
    low: float
    high: float
    chance: float
    p_value: float
    difference: float
    difference_low: float
    difference_high: float
    by_fold: Mapping[str, float]
    calibration: Calibration | None
    null: Float[ndarray, " relabelling"] = field(repr=False)
    draws: Float[ndarray, " draw"] = field(repr=False)

    def summary(self) -> str:
        """Say the AUC, what exchanged labels give, and the Brier score."""
        said = f"{self.features} {self.auc:.3f} [{self.low:.3f}, {self.high:.3f}]"
        if len(self.null):
            said += f", exchanged labels {self.chance:.3f} ({format_p(self.p_value)})"
        if self.calibration is not None:
            said += (
                f", Brier score {self.calibration.brier:.3f} "
                f"(share of harmful prompts alone {self.calibration.brier_reference:.3f})"
            )
        return said


@dataclass(frozen=True, eq=False)
class Detection(Shown):
    """Detectors of harm, each tested on groups of prompts it has not seen.

    Attributes:
        held_out: What the groups are, in a word.
        span: The token set.
        detectors: Features to the detector that reads them, the one in question first.
        topics_seen: Share of the tested prompts whose topic the detector had learnt from.
        wordings_seen: The same for wordings; None if no prompt has one.
        n_folds: Number of times that groups were held out.
        n_tested: Prompts that were tested.
        words: What relabelling exchanges, in words.
        n_units: Exchange units.
        n_resamples: Relabellings that were counted.
        exhaustive: Whether these were all there are.
    """

    held_out: str
    span: str
    detectors: Mapping[str, Detected]
    topics_seen: float
    wordings_seen: float | None
    n_folds: int
    n_tested: int
    words: str
    n_units: int
    n_resamples: int
    exhaustive: bool

    def __getitem__(self, features: str) -> Detected:
        """Return the detector that reads some features.

        Args:
            features: Their name.

        Returns:
            The detector.

        Raises:
            KeyError: If there is none.
        """
        if features in self.detectors:
            return self.detectors[features]
        raise KeyError(f"No detector reads {features!r}; there are {tuple(self.detectors)}.")

    def to_frame(self) -> "pd.DataFrame":
        """Give one row for each detector."""
        import pandas as pd

        rows = []
        for found in self.detectors.values():
            brier = found.calibration and found.calibration.brier
            reference = found.calibration and found.calibration.brier_reference
            rows.append(
                {
                    "held_out": self.held_out,
                    "features": found.features,
                    "auc": found.auc,
                    "low": found.low,
                    "high": found.high,
                    "exchanged_labels": found.chance,
                    "p": found.p_value,
                    "first_minus": found.difference,
                    "first_minus_low": found.difference_low,
                    "first_minus_high": found.difference_high,
                    "brier": brier,
                    "brier_reference": reference,
                    "topics_seen": self.topics_seen,
                    "wordings_seen": self.wordings_seen,
                }
            )
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Give everything but the relabellings as JSON-safe values."""
        return plain(
            {
                "rows": self.to_frame().astype(object).to_dict("records"),
                "by_fold": {name: own.by_fold for name, own in self.detectors.items()},
                "calibration": {
                    name: own.calibration and own.calibration.to_dict()
                    for name, own in self.detectors.items()
                },
                "span": self.span,
                "n_folds": self.n_folds,
                "n_tested": self.n_tested,
                "exchanged": self.words,
                "n_units": self.n_units,
                "n_resamples": self.n_resamples,
                "exhaustive": self.exhaustive,
            }
        )

    def summary(self) -> str:
        """Say how each detector does, one line each."""
        seen = f"{self.topics_seen:.0%} of the tested prompts' topics"
        if self.wordings_seen is not None:
            seen += f" and {self.wordings_seen:.0%} of their wordings"
        head = (
            f"Harm of held-out prompts ({self.held_out} left out, {self.n_folds} folds, "
            f"{self.n_tested} prompts, {self.span!r} tokens); seen in training: {seen}."
        )
        return "\n".join([head, *(f"  {own.summary()}" for own in self.detectors.values())])
