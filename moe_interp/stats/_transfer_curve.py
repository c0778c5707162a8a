"""The area under the ROC curve inside groups of prompts, for many labellings at once."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

# Scores that are equal on paper differ in the last bits; they must tie, not fall to one side.
_TIE = 1e-9
# Scores foretell labels of 1 and -1; where all of a group are far smaller, most is rounding.
_SMALL = 1e-4


@dataclass(frozen=True, eq=False)
class GroupedAUC:
    """AUC of groups of prompts that are compared only among themselves.

    A group counts :math:`n_1 n_0 / (n_1 + n_0)` in the mean, which is the precision of its AUC
    and, where both levels are as many, proportional to its size.

    Attributes:
        auc: AUC of each group; 0 where it has one level only.
        weight: What the group counts; 0 where it has one level only.
    """

    auc: Float[ndarray, "column group"]
    weight: Float[ndarray, "column group"]

    @property
    def mean(self) -> Float[ndarray, " column"]:
        """Mean over groups; 0.5 where no group has both levels, for nothing was told apart."""
        return self._mean(np.ones(self.auc.shape[1], dtype=bool), 0.5)

    def by_topic(self, topic: Int[ndarray, " group"], n_topics: int) -> Float[ndarray, " topic"]:
        """Mean over the groups of each topic.

        Args:
            topic: Topic of each group.
            n_topics: Number of topics.

        Returns:
            Its value for the first labelling; NaN where no group has both levels.
        """
        return np.array([self._mean(topic == code, np.nan)[0] for code in range(n_topics)])

    def _mean(self, groups: Bool[ndarray, " group"], otherwise: float) -> Float[ndarray, " column"]:
        weight = self.weight[:, groups].sum(axis=1)
        total = (self.auc * self.weight)[:, groups].sum(axis=1)
        return np.divide(total, weight, out=np.full_like(weight, otherwise), where=weight > 0)


def grouped_auc(
    scores: Float[ndarray, "column row"],
    harmful: Bool[ndarray, "column row"],
    group: Int[ndarray, " row"],
    *,
    kept: Bool[ndarray, "column row"] | None = None,
) -> GroupedAUC:
    """Find the AUC of every group under every labelling, from midranks.

    Args:
        scores: Scores under each labelling.
        harmful: Labels of each labelling.
        group: Group of each row, from 0 without gaps and in order.
        kept: Which rows count in each labelling; all if None.

    Returns:
        The AUC of each group and what it counts.
    """
    kept = np.ones_like(harmful) if kept is None else kept
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    size = np.maximum.reduceat(np.abs(np.where(kept, scores, 0.0)), starts, axis=1)[:, group]
    scaled = scores / np.maximum(size, _SMALL)
    # Groups lie apart on one line, so that all are ranked at once. Rows that do not count come
    # last in their group, where they change no rank.
    placed = np.where(kept, scaled, 2.0) + 4.0 * group
    order = np.argsort(placed, axis=1)
    rises = np.diff(np.take_along_axis(placed, order, axis=1), axis=1) > _TIE
    edge = np.ones((len(scores), 1), dtype=bool)
    place = np.arange(scores.shape[1])
    first = np.maximum.accumulate(np.where(np.hstack([edge, rises]), place, 0), axis=1)
    last = np.where(np.hstack([rises, edge]), place, len(place))
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    midrank = (first + last) / 2 + 1 - starts[group]
    counted = harmful & kept
    own = np.take_along_axis(counted, order, axis=1)
    rank_sum = np.add.reduceat(midrank * own, starts, axis=1)
    n_harmful = np.add.reduceat(counted.astype(float), starts, axis=1)
    n_harmless = np.add.reduceat(kept.astype(float), starts, axis=1) - n_harmful
    compared = n_harmful * n_harmless
    auc = np.divide(
        rank_sum - n_harmful * (n_harmful + 1) / 2,
        compared,
        out=np.zeros_like(compared),
        where=compared > 0,
    )
    return GroupedAUC(auc, compared / np.maximum(n_harmful + n_harmless, 1))
