"""Probabilities of harm from decoder scores, calibrated inside each training fold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.random import Generator
from scipy.special import expit

from moe_interp.errors import DesignError
from moe_interp.stats._design import Design
from moe_interp.stats._results import plain
from moe_interp.stats._transfer_decode import Decoded
from moe_interp.stats._transfer_folds import Fold, HoldOut, Split, make_split
from moe_interp.stats._transfer_ridge import smoother

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("platt", "isotonic")
# Parts that a training fold is dealt into to get scores of prompts a decoder has not seen.
_INNER_PARTS = 3
_N_BINS = 10
_NEWTON_STEPS = 100
_FLAT = 1e-10


@dataclass(frozen=True, eq=False)
class Calibration:
    """Out-of-fold probabilities of harm and how far they can be believed.

    Attributes:
        method: ``"platt"`` or ``"isotonic"``.
        brier: Mean squared difference between probability and harm (0 or 1); 0 is best.
        brier_reference: The same for predicting each training fold's share of harmful prompts.
        harmful: Whether each tested prompt is harmful; draw after draw, if features are drawn.
        probability: Its probability of being harmful, from decoders that have not seen it.
        n_draws: How often the features were drawn; 1 if they are fixed.
    """

    method: str
    brier: float
    brier_reference: float
    harmful: Bool[ndarray, " tested"] = field(repr=False)
    probability: Float[ndarray, " tested"] = field(repr=False)
    n_draws: int = 1

    def to_frame(self) -> "pd.DataFrame":
        """Return the reliability table: ten bins of probability, those that are empty left out.

        `n_prompts` is the mean over draws.
        """
        import pandas as pd

        bins = np.minimum((self.probability * _N_BINS).astype(int), _N_BINS - 1)
        found = pd.DataFrame(
            {"bin": bins, "predicted": self.probability, "harmful": self.harmful.astype(float)}
        ).groupby("bin")
        table = found.mean().assign(n_prompts=found.size() / self.n_draws)
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


@dataclass(frozen=True, eq=False)
class Calibrator:
    """How scores of one split become probabilities: alike for routing and for its baselines.

    Attributes:
        split: The split.
        method: ``"platt"`` or ``"isotonic"``.
        inner: For each fold, the folds that its training prompts are split into once more.
    """

    split: Split
    method: str
    inner: list[list[Fold]]


def make_calibrator(
    split: Split, hold_out: HoldOut, design: Design, *, method: str, rng: Generator
) -> Calibrator:
    """Split every training fold once more, in the same way.

    Args:
        split: The split.
        hold_out: Topics and units.
        design: Labels.
        method: ``"platt"`` or ``"isotonic"``.
        rng: Source of randomness.

    Returns:
        The inner folds, for `calibrate`.

    Raises:
        DesignError: If a training fold cannot be split once more, or has one harm level.
    """
    every = []
    for fold in split.folds:
        inner = [
            Fold(train=fold.train[own.train], test=fold.train[own.test])
            for own in _inner_folds(split.name, hold_out.select(fold.train), rng)
        ]
        level = design.harm[np.concatenate([own.test for own in inner])] > 0
        if level.all() or not level.any():
            raise DesignError(
                f"Split {split.name!r} cannot be calibrated: a training fold has "
                f"{'harmful' if level.all() else 'harmless'} prompts only, as that which tests "
                f"topic {design.topics[design.topic[fold.test[0]]]!r}. Add prompts of the other "
                f"level, or pass calibration=None."
            )
        every.append(inner)
    return Calibrator(split, method, every)


def calibrate(
    decoded: Decoded,
    gram: Float[ndarray, "prompt prompt"],
    calibrator: Calibrator,
    design: Design,
    penalty: float,
) -> Calibration:
    """Turn held-out scores into probabilities without a look at the held-out labels.

    The calibration of a fold is fitted to the scores that its training prompts get from decoders
    which have not seen them.

    Args:
        decoded: The decoders of one split.
        gram: Products of all prompts' features.
        calibrator: The inner folds of that split.
        design: Labels.
        penalty: The decoder's penalty.

    Returns:
        The probabilities with their Brier score.
    """
    fit = {"platt": _platt, "isotonic": _isotonic}[calibrator.method]
    split, labels, harmful = decoded.split, design.harm, design.harm > 0
    probabilities, rates = [], []
    for fold, decoder, folds in zip(split.folds, decoded.decoders, calibrator.inner, strict=True):
        again = [smoother(gram, inner, design.topic, penalty=penalty) for inner in folds]
        unseen = [own.scores @ labels[inner.train] for own, inner in zip(again, folds, strict=True)]
        level = harmful[np.concatenate([inner.test for inner in folds])]
        probabilities.append(fit(np.concatenate(unseen), level)(decoder @ labels[fold.train]))
        rates.append(np.full(len(fold.test), harmful[fold.train].mean()))
    probability, tested = np.concatenate(probabilities), harmful[split.tested]
    return Calibration(
        method=calibrator.method,
        brier=float(np.mean((probability - tested) ** 2)),
        brier_reference=float(np.mean((np.concatenate(rates) - tested) ** 2)),
        harmful=tested,
        probability=probability,
    )


def averaged(draws: Sequence[Calibration]) -> Calibration:
    """Put calibrations of features that were drawn at random side by side.

    Args:
        draws: One a draw, of the same split.

    Returns:
        All their probabilities, draw after draw; the Brier score is the mean over draws.
    """
    return replace(
        draws[0],
        brier=float(np.mean([own.brier for own in draws])),
        harmful=np.concatenate([own.harmful for own in draws]),
        probability=np.concatenate([own.probability for own in draws]),
        n_draws=len(draws),
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
    """Fit a logistic curve to softened labels, as Platt (1999, section 2.2) does.

    By Newton's method with step halving; soft labels have an optimum even if scores separate.
    """
    scale = scores.std() or 1.0
    n_harmful, n_harmless = harmful.sum(), (~harmful).sum()
    soft = np.where(harmful, (n_harmful + 1) / (n_harmful + 2), 1 / (n_harmless + 2))
    rows = np.stack([np.ones(len(scores)), scores / scale], axis=1)

    def loss(line: Float[ndarray, "2"]) -> float:
        height = rows @ line
        return float(np.sum(np.logaddexp(0, height) - soft * height))

    line = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        chance = expit(rows @ line)
        slope = rows.T @ (chance - soft)
        if np.abs(slope).max() < _FLAT * len(scores):
            break
        # The ridge is for scores that are all equal.
        curvature = (rows.T * (chance * (1 - chance))) @ rows + _FLAT * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        while loss(line - step) > loss(line) - 1e-4 * slope @ step:
            step = step / 2
        line = line - step
    return lambda values: expit(line[0] + line[1] * values / scale)


def _isotonic(
    scores: Float[ndarray, " row"], harmful: Bool[ndarray, " row"]
) -> Callable[[ndarray], ndarray]:
    from sklearn.isotonic import IsotonicRegression

    curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    return curve.fit(scores, harmful.astype(float)).predict
