r"""Logistic regression with an L2 penalty, under many labellings and weightings at once.

.. math:: \min_{b, \beta} \sum_i w_i \ln(1 + e^{-y_i (b + z_i^\top \beta)})
          + \tfrac{\lambda}{2} \lVert \beta \rVert^2

Prompts are described by their principal coordinates, of which there are no more than prompts. In
these the curvature is at most :math:`\operatorname{diag}(n, \Lambda) / 4 + \lambda` under every
labelling [1], so that all of them take the same steps, accelerated [2], in two matrix products.

References:
    [1] Böhning and Lindsay (1988), "Monotonicity of quadratic-approximation algorithms".
    [2] O'Donoghue and Candès (2015), "Adaptive restart for accelerated gradient schemes".
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.optimize import minimize
from scipy.special import expit

# Directions this much weaker than the first are rounding.
_ROUNDING = 1e-10
_TOLERANCE = 1e-5
_MAX_STEPS = 5000
_NO_PENALTY = 1e-9
# Labellings that have settled are dropped once they are so many that copying the rest pays.
_WORTH_DROPPING = 0.8


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Training and test prompts in the principal coordinates of the training prompts.

    Attributes:
        train: Coordinates of the training prompts; each column sums to 0.
        test: Coordinates of the test prompts.
        strength: Sum of squares of each training column.
        penalty: The penalty, in the units of the coordinates.
    """

    train: Float[ndarray, "train component"]
    test: Float[ndarray, "test component"]
    strength: Float[ndarray, " component"]
    penalty: float


def coordinates(
    train: Float[ndarray, "train feature"], test: Float[ndarray, "test feature"], *, penalty: float
) -> Coordinates:
    """Standardise features by the training prompts and rotate them.

    A feature that does not vary among the training prompts is left out. The penalty is
    `penalty` times the mean squared norm of the standardised prompts over 4, the curvature of the
    logistic loss; it does not look at labels, so that relabellings are fitted alike.

    Args:
        train: Features of the training prompts.
        test: Features of the test prompts.
        penalty: The penalty in those units.

    Returns:
        The coordinates; none if nothing varies.
    """
    mean, spread = train.mean(axis=0), train.std(axis=0)
    varies = spread > _ROUNDING * max(float(np.abs(train).max(initial=0.0)), 1e-300)
    scaled, other = (
        (values[:, varies] - mean[varies]) / spread[varies] for values in (train, test)
    )
    strength, directions = np.linalg.eigh(scaled @ scaled.T)
    kept = strength > _ROUNDING * max(float(strength.max(initial=0.0)), _ROUNDING)
    strength, directions = strength[kept], directions[:, kept]
    root = np.sqrt(strength)
    return Coordinates(
        train=directions * root,
        test=(other @ scaled.T) @ directions / root,
        strength=strength,
        penalty=penalty * max(float(strength.sum()) / len(train), _ROUNDING) / 4,
    )


def logistic_scores(
    place: Coordinates,
    labels: Float[ndarray, "draw train"],
    weights: Float[ndarray, "draw train"],
) -> Float[ndarray, "draw test"]:
    """Score the test prompts under each labelling and weighting of the training prompts.

    Args:
        place: Coordinates of the prompts.
        labels: 1 or -1.
        weights: What each training prompt counts, between 0 and 1.

    Returns:
        The log-odds of label 1; the intercept is part of them. All 0 where only one label counts.
    """
    counted = np.where(weights > 0, labels, np.nan)
    both = (np.nanmax(counted, axis=1) > np.nanmin(counted, axis=1))[:, None]
    weights = np.where(both, weights, 0.0)
    rows = np.hstack([np.ones((len(place.train), 1)), place.train])
    ridge = np.concatenate([[0.0], np.full(len(place.strength), place.penalty)])
    size = np.concatenate([[len(rows)], place.strength])
    bound = size / 4 + ridge
    settled = np.zeros((len(labels), rows.shape[1]))
    left = np.arange(len(labels))
    current, pace = settled.copy(), np.ones((len(labels), 1))
    ahead = current
    for _ in range(_MAX_STEPS):
        pull = labels * weights * expit(-labels * (ahead @ rows.T))
        slope = ridge * ahead - pull @ rows
        new = ahead - slope / bound
        moved = new - current
        # A labelling whose last step went uphill starts its acceleration anew.
        uphill = (slope * moved).sum(axis=1, keepdims=True) > 0
        pace = np.where(uphill, 1.0, pace)
        faster = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        ahead = new + np.where(uphill, 0.0, (pace - 1) / faster) * moved
        current, pace = new, faster
        settled[left] = new
        moves = np.sqrt((moved**2 * size).sum(axis=1) / len(rows)) >= _TOLERANCE
        if not moves.any():
            break
        if moves.mean() < _WORTH_DROPPING:
            left, labels, weights = left[moves], labels[moves], weights[moves]
            current, ahead, pace = current[moves], ahead[moves], pace[moves]
    else:
        warnings.warn(
            f"A logistic regression had not settled after {_MAX_STEPS} steps; raise `penalty`.",
            stacklevel=2,
        )
    return settled[:, :1] + settled[:, 1:] @ place.test.T


def platt_probabilities(
    scores: Float[ndarray, " train"],
    harmful: Bool[ndarray, " train"],
    others: Float[ndarray, " test"],
) -> Float[ndarray, " test"]:
    """Turn scores into probabilities by a logistic curve through softened labels [1].

    [1] Platt (1999), "Probabilistic outputs for support vector machines", section 2.2.

    Args:
        scores: Scores of prompts that the detector had not seen.
        harmful: Whether they are harmful.
        others: Scores of the prompts in question.

    Returns:
        Their probabilities of being harmful.
    """
    n_harmful, n_harmless = harmful.sum(), (~harmful).sum()
    soft = np.where(harmful, (n_harmful + 1) / (n_harmful + 2), 1 / (n_harmless + 2))
    centre, spread = scores.mean(), scores.std() or 1.0
    rows = np.stack([np.ones(len(scores)), (scores - centre) / spread], axis=1)

    def loss(curve: Float[ndarray, "2"]) -> float:
        odds = rows @ curve
        return float((np.logaddexp(0, odds) - soft * odds).sum())

    def slope(curve: Float[ndarray, "2"]) -> Float[ndarray, "2"]:
        return (expit(rows @ curve) - soft) @ rows

    def bend(curve: Float[ndarray, "2"]) -> Float[ndarray, "2 2"]:
        found = expit(rows @ curve)
        # The last term is for scores that are all alike, which leave the slope open.
        return (rows.T * (found * (1 - found))) @ rows + _NO_PENALTY * np.eye(2)

    best = minimize(loss, np.zeros(2), method="trust-exact", jac=slope, hess=bend)
    return expit(best.x[0] + best.x[1] * (others - centre) / spread)
