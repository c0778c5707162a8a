r"""Ridge regression of harm on features, in closed form and linear in the labels.

The decoder has a free intercept in each topic, so that it learns what harm does *inside* topics:

.. math:: \min_{w, b} \sum_i (h_i - b_{t(i)} - x_i^\top w)^2 + \lambda \lVert w \rVert^2

Scores of the test prompts are a fixed matrix times the labels of the training prompts, so that
all relabellings of a fold are one matrix product. The penalty does not look at labels either:
:math:`\lambda = c \cdot \operatorname{mean}_i \lVert x_i - \bar x_{t(i)} \rVert^2`, which for
c = 1 is the best one (the posterior mean) if features and noise explain half of harm each.
Deleting prompts from the fit is in closed form too.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.linalg.lapack import dpotrf, dpotri

from moe_interp.stats._transfer_folds import Fold

# Deviations from the mean that are rounding alone, as part of the largest number.
_ROUNDING = 1e-12
_RIDGE_OF_BLOCKS = 1e-11


@dataclass(frozen=True, eq=False)
class Smoother:
    """One fold's decoder, before any label is known.

    Attributes:
        scores: Scores of the test prompts are this times the training labels.
        inverse: Weights of the training prompts in the decoder are this times their labels.
    """

    scores: Float[ndarray, "test train"]
    inverse: Float[ndarray, "train train"]

    def deleted(
        self, labels: Float[ndarray, " train"], group: Int[ndarray, " train"], n_groups: int
    ) -> Float[ndarray, "test group"]:
        """Scores of the test prompts, with each group in turn deleted from the fit.

        Exact, up to a number that is the same for all test prompts of a topic: the rows and
        columns of a group are taken out of the inverse as blocks. The penalty is kept.

        Args:
            labels: Training labels.
            group: Group of each training prompt.
            n_groups: Number of groups, of which some may not occur here.

        Returns:
            The scores, one column a group.
        """
        found = np.repeat((self.scores @ labels)[:, None], n_groups, axis=1)
        coefficients = self.inverse @ labels
        present, sizes = np.unique(group, return_counts=True)
        for size in np.unique(sizes):
            numbers = present[sizes == size]
            rows = np.stack([np.flatnonzero(group == number) for number in numbers])
            blocks = self.inverse[rows[:, :, None], rows[:, None, :]]
            # A whole topic deleted takes its intercept along: one direction of the block is 0,
            # and so are the coefficients in it.
            blocks[:, np.arange(size), np.arange(size)] += _RIDGE_OF_BLOCKS * blocks.max()
            solved = np.linalg.solve(blocks, coefficients[rows][:, :, None])[:, :, 0]
            found[:, numbers] -= np.einsum("tgr,gr->tg", self.scores[:, rows], solved)
        return found


def gram_matrix(features: Float[ndarray, "prompt feature"]) -> Float[ndarray, "prompt prompt"]:
    """Products of the prompts' features, less the mean prompt.

    Args:
        features: One row a prompt.

    Returns:
        The products; exactly 0 where features differ by rounding alone.
    """
    features = np.asarray(features, dtype=np.float64)
    shifted = features - features.mean(axis=0)
    shifted[np.abs(shifted) <= _ROUNDING * np.abs(features).max(initial=0.0)] = 0.0
    return shifted @ shifted.T


def smoother(
    gram: Float[ndarray, "prompt prompt"],
    fold: Fold,
    topic: Int[ndarray, " prompt"],
    *,
    penalty: float,
) -> Smoother:
    """Fit the decoder of a fold to no labels yet.

    Test prompts are scored from the mean of their topic's training prompts, or from the mean of
    all training prompts if the topic is new.

    Args:
        gram: Products of all prompts' features.
        fold: Prompts to learn from and to test on.
        topic: Topic code of each prompt.
        penalty: The penalty c, in units of the mean squared norm of the centred features.

    Returns:
        The decoder; 0 throughout if features do not vary inside topics.
    """
    topics, own = np.unique(topic[fold.train], return_inverse=True)
    own = own.reshape(-1)
    n_train, n_topics = len(own), len(topics)
    # Rows that average over each topic's training prompts and, last, over all of them.
    average = np.zeros((n_topics + 1, n_train))
    average[own, np.arange(n_train)] = 1 / np.bincount(own)[own]
    average[-1] = 1 / n_train
    place = np.searchsorted(topics, topic[fold.test])
    known = topics[np.minimum(place, n_topics - 1)] == topic[fold.test]
    origin = np.where(known, place, n_topics)
    inner = gram[np.ix_(fold.train, fold.train)]
    across = gram[np.ix_(fold.test, fold.train)]
    mean_rows = average @ inner
    means = mean_rows @ average.T
    inner = inner - mean_rows[own] - mean_rows[own].T + means[np.ix_(own, own)]
    across = across - mean_rows[origin] - (across @ average.T)[:, own] + means[np.ix_(origin, own)]
    scale = np.trace(inner) / n_train
    if scale <= _ROUNDING * np.trace(gram) / len(gram):
        return Smoother(np.zeros_like(across), np.eye(n_train))
    strength = penalty * scale
    inverse = _inverse(inner, strength)
    scores = across @ inverse
    inverse -= (own[:, None] == own) / (strength * np.bincount(own)[own])
    return Smoother(scores, inverse)


def _inverse(matrix: Float[ndarray, "row row"], ridge: float) -> Float[ndarray, "row row"]:
    """Invert a symmetric matrix with `ridge` added to its diagonal; positive definite then."""
    shifted = matrix.copy()
    shifted[np.diag_indices_from(shifted)] += ridge
    factor, _ = dpotrf(shifted, lower=1, clean=1)
    half, _ = dpotri(factor, lower=1)
    half = np.tril(half)
    return half + np.tril(half, -1).T
