"""Probabilities of harm from decoder scores, calibrated inside each training fold."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError
from moe_interp.stats._design import Design
from moe_interp.stats._results import plain
from moe_interp.stats._transfer_decode import Decoded
from moe_interp.stats._transfer_folds import Fold, HoldOut, make_split
from moe_interp.stats._transfer_ridge import smoother

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("platt", "isotonic")
# Parts that a training fold is dealt into to get scores of prompts a decoder has not seen.
_INNER_PARTS = 3
_N_BINS = 10


@dataclass(frozen=True, eq=False)
class Calibration:
    """Out-of-fold probabilities of harm and how far they can be believed.

    Attributes:
        method: ``"platt"`` or ``"isotonic"``.
        brier: Mean squared difference between probability and harm (0 or 1); 0 is best.
        brier_reference: The same for predicting each training fold's share of harmful prompts.
        harmful: Whether each tested prompt is harmful.
        probability: Its probability of being harmful, from prompts held out from it.
    """

    method: str
    brier: float
    brier_reference: float
    harmful: Bool[ndarray, " tested"] = field(repr=False)
    probability: Float[ndarray, " tested"] = field(repr=False)

    def to_frame(self) -> "pd.DataFrame":
        """Return the reliability table: ten bins of probability, those that are empty left out."""
        import pandas as pd

        bins = np.minimum((self.probability * _N_BINS).astype(int), _N_BINS - 1)
        found = pd.DataFrame(
            {"bin": bins, "predicted": self.probability, "harmful": self.harmful.astype(float)}
        ).groupby("bin")
        table = found.mean().assign(n_prompts=found.size())
        table.insert(0, "high", (table.index + 1) / _N_BINS)
        table.insert(0, "low", table.index / _N_BINS)
        return table.reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the Brier scores and the reliability table as JSON-safe values."""
        return plain(
            {
                "method": self.method,
                "brier": self.brier,
                "brier_reference": self.brier_reference,
                "reliability": self.to_frame().to_dict("records"),
            }
        )


def calibrate(
    decoded: Decoded,
    gram: Float[ndarray, "prompt prompt"],
    hold_out: HoldOut,
    design: Design,
    *,
    method: str,
    penalty: float,
    rng: Generator,
) -> Calibration:
    """Turn held-out scores into probabilities without a look at the held-out labels.

    The training fold is split once more in the same way; the scores that its prompts get from
    decoders which have not seen them are what the calibration is fitted to.

    Args:
        decoded: The decoders of one split.
        gram: Products of all prompts' features.
        hold_out: Topics and units.
        design: Labels.
        method: ``"platt"`` or ``"isotonic"``.
        penalty: The decoder's penalty.
        rng: Source of randomness.

    Returns:
        The probabilities with their Brier score.

    Raises:
        DesignError: If a training fold cannot be split once more, or has one harm level.
    """
    fit = {"platt": _platt, "isotonic": _isotonic}[method]
    split, labels, harmful = decoded.split, design.harm, design.harm > 0
    probabilities, rates = [], []
    for fold, decoder in zip(split.folds, decoded.decoders, strict=True):
        own = decoder @ labels[fold.train]
        seen, unseen = [], []
        for inner in _inner_folds(split.name, hold_out.select(fold.train), rng):
            inner = Fold(train=fold.train[inner.train], test=fold.train[inner.test])
            again = smoother(gram, inner, design.topic, penalty=penalty)
            seen.append(inner.test)
            unseen.append(again.scores @ labels[inner.train])
        level = harmful[np.concatenate(seen)]
        if level.all() or not level.any():
            raise DesignError(
                f"Split {split.name!r} cannot be calibrated: a training fold has "
                f"{'harmful' if level.all() else 'harmless'} prompts only, as that which tests "
                f"topic {design.topics[design.topic[fold.test[0]]]!r}. Add prompts of the other "
                f"level, or pass calibration=None."
            )
        probabilities.append(fit(np.concatenate(unseen), level)(own))
        rates.append(np.full(len(fold.test), harmful[fold.train].mean()))
    probability = np.concatenate(probabilities)
    tested = harmful[split.tested]
    return Calibration(
        method=method,
        brier=float(np.mean((probability - tested) ** 2)),
        brier_reference=float(np.mean((np.concatenate(rates) - tested) ** 2)),
        harmful=tested,
        probability=probability,
    )


def _inner_folds(name: str, design: HoldOut, rng: Generator) -> list[Fold]:
    try:
        return make_split(
            name, design, n_folds=_INNER_PARTS, max_topic_folds=_INNER_PARTS, rng=rng
        ).folds
    except DesignError as error:
        raise DesignError(
            f"Split {name!r} cannot be calibrated, for its training folds cannot be split once "
            f"more. {error} Add prompts, or pass calibration=None."
        ) from error


def _platt(
    scores: Float[ndarray, " row"], harmful: Bool[ndarray, " row"]
) -> Callable[[ndarray], ndarray]:
    """Fit a logistic curve to softened labels, as Platt (1999, section 2.2) does."""
    from sklearn.linear_model import LogisticRegression

    scale = scores.std() or 1.0
    n_harmful, n_harmless = harmful.sum(), (~harmful).sum()
    soft = np.where(harmful, (n_harmful + 1) / (n_harmful + 2), 1 / (n_harmless + 2))
    # A soft label is two hard ones of that weight; without it separable scores have no optimum.
    curve = LogisticRegression(C=1e10).fit(
        np.concatenate([scores, scores])[:, None] / scale,
        np.repeat([True, False], len(scores)),
        sample_weight=np.concatenate([soft, 1 - soft]),
    )
    return lambda values: curve.predict_proba(values[:, None] / scale)[:, 1]


def _isotonic(
    scores: Float[ndarray, " row"], harmful: Bool[ndarray, " row"]
) -> Callable[[ndarray], ndarray]:
    from sklearn.isotonic import IsotonicRegression

    curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    return curve.fit(scores, harmful.astype(float)).predict
