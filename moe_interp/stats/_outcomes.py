"""Yes or no before and after, prompt by prompt: what was lost, what was gained, McNemar's test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.stats import binomtest

from moe_interp.notebook import Shown
from moe_interp.stats._results import format_p


@dataclass(frozen=True)
class PairedOutcomes(Shown):
    """A yes-or-no outcome of the same prompts before and after a change.

    Attributes:
        both: Prompts with the outcome before and after.
        lost: Prompts with it before only.
        gained: Prompts with it after only.
        neither: Prompts without it.
        p_value: Of McNemar's exact test, two-sided; 1 if no prompt moved.
    """

    both: int
    lost: int
    gained: int
    neither: int
    p_value: float

    @property
    def n(self) -> int:
        """Number of prompts."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def before(self) -> int:
        """Prompts with the outcome before."""
        return self.both + self.lost

    @property
    def after(self) -> int:
        """Prompts with the outcome after."""
        return self.both + self.gained

    def to_dict(self) -> dict[str, Any]:
        """Give the counts and the p-value."""
        return dict(vars(self)) | {"n": self.n, "before": self.before, "after": self.after}

    def summary(self) -> str:
        """Say the counts in a line."""
        return (
            f"{self.before} -> {self.after} of {self.n}: {self.lost} lost, {self.gained} gained; "
            f"McNemar {format_p(self.p_value)}"
        )


def mcnemar(before: Bool[ndarray, " prompt"], after: Bool[ndarray, " prompt"]) -> PairedOutcomes:
    """Compare a yes-or-no outcome of the same prompts, before and after a change.

    McNemar's exact test: of the prompts that moved, as many should have moved either way if the
    change does nothing. It takes prompts for independent; prompts that share their wording are
    not, and then p is too small. It says nothing of what another change would have done.

    Args:
        before: The outcome of each prompt without the change.
        after: The outcome of the same prompts with it.

    Returns:
        The counts and the p-value.

    Raises:
        ValueError: If the two differ in length or there is no prompt.

    References:
        McNemar (1947), "Note on the sampling error of the difference between correlated
        proportions or percentages".

    Example:
        >>> print(mcnemar(np.array([True] * 6), np.array([False] * 5 + [True])).summary())
        6 -> 1 of 6: 5 lost, 0 gained; McNemar p = 0.062
    """
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise ValueError(
            f"`before` and `after` must hold one outcome for each prompt, got the shapes "
            f"{before.shape} and {after.shape}."
        )
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    p_value = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    return PairedOutcomes(both, lost, gained, neither, float(p_value))


def holm(p_values: Sequence[float]) -> Float[ndarray, " test"]:
    """Adjust p-values for having made several tests (Holm, 1979): family-wise, no assumptions.

    Args:
        p_values: The p-values.

    Returns:
        The adjusted p-values, in the same order.

    Raises:
        ValueError: If one does not lie in [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=float)
    if given.ndim != 1 or not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"`p_values` must be numbers in [0, 1], got {p_values!r}.")
    order = np.argsort(given, kind="stable")
    scaled = given[order] * (len(given) - np.arange(len(given)))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
