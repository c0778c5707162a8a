r"""Standard errors from leaving units out.

Two of them. `jackknife_error` takes units as drawn from one population. Where the design fixes how
many units each cell of topic and harm has, leaving one out also changes the balance of cells,
which is no part of the error: the replicates of a `Jackknife` are compared within *strata*, units
with prompts in the same cells (Jones 1974, "Jackknife estimation of functions of stratum means").
Where there are several strata, its factor :math:`(n_h - 1) / n_h` is left out, as in the HC3 errors
of regression (MacKinnon and White 1985): strata are small, and with it intervals cover too seldom.
With one stratum both errors are the same.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.stats import t as student_t

MAX_GROUPS = 64


@dataclass(frozen=True, eq=False)
class Jackknife:
    """What is left out in turn, and what it is compared with.

    Attributes:
        group: Jackknife group of each prompt: its exchange unit, or a bundle of units of one
            stratum if there are more than 64.
        stratum: Stratum of each group.
        parts: Units of the group's stratum over units of the group.
    """

    group: Int[ndarray, " prompt"]
    stratum: Int[ndarray, " group"]
    parts: Float[ndarray, " group"]

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.stratum)

    def error(
        self, whole: Float[ndarray, " *rest"], replicates: Float[ndarray, " group *rest"]
    ) -> Float[ndarray, " *rest"]:
        """Standard error from delete-one-group values.

        Bundles of unequal size count by their pseudo-values (Busing et al. 1999, "Delete-m
        jackknife for unequal m").

        Args:
            whole: The estimate with nothing left out.
            replicates: The estimate with each group left out in turn.

        Returns:
            The standard error.
        """
        if not self.degrees:
            return np.full_like(whole, np.nan, dtype=float)
        parts = self.parts.reshape(-1, *(1 for _ in whole.shape))
        values = parts * whole - (parts - 1) * replicates
        square = np.zeros_like(whole, dtype=float)
        for stratum in range(int(self.stratum.max()) + 1):
            own = self.stratum == stratum
            off = (values[own] - values[own].mean(axis=0)) ** 2 / (parts[own] - 1)
            square = square + off.sum(axis=0) / (own.sum() - 1)
        factor = 1.0 if self.stratum.any() else (self.n_groups - 1) / self.n_groups
        return np.asarray(np.sqrt(factor * square))

    def reach(self, level: float = 0.975) -> float:
        """Number of standard errors to a quantile of Student's t; infinite for a single group.

        Args:
            level: Quantile, between 0 and 1.
        """
        return float(student_t.ppf(level, self.degrees)) if self.degrees else float("inf")

    @property
    def degrees(self) -> int:
        """Degrees of freedom."""
        return self.n_groups - int(self.stratum.max()) - 1


def make_jackknife(
    unit: Int[ndarray, " prompt"], topic: Int[ndarray, " prompt"], harm: Float[ndarray, " prompt"]
) -> Jackknife:
    """Choose strata, and bundles of units in each.

    Args:
        unit: Exchange unit of each prompt.
        topic: Topic code of each prompt.
        harm: +1 for harmful, -1 for harmless.

    Returns:
        The groups, as many as there are units or about 64 if there are more.
    """
    stratum = _strata(unit, 2 * topic + (harm > 0))
    sizes = np.bincount(stratum)
    n_units = len(stratum)
    shrink = min(1.0, MAX_GROUPS / n_units)
    n_groups = np.clip(np.round(sizes * shrink).astype(int), np.minimum(sizes, 2), None)
    group = np.empty(n_units, dtype=int)
    for own, (start, count) in enumerate(
        zip(np.cumsum(n_groups) - n_groups, n_groups, strict=True)
    ):
        members = np.flatnonzero(stratum == own)
        group[members] = start + np.arange(len(members)) % count
    of_group = np.repeat(np.arange(len(sizes)), n_groups)
    return Jackknife(
        group=group[unit],
        stratum=of_group,
        parts=sizes[of_group] / np.bincount(group),
    )


def _strata(unit: Int[ndarray, " prompt"], cell: Int[ndarray, " prompt"]) -> Int[ndarray, " unit"]:
    """Group units whose prompts lie in the same cells; those that are alone are put together."""
    cells = np.zeros((int(unit.max()) + 1, int(cell.max()) + 1), dtype=bool)
    cells[unit, cell] = True
    stratum = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(stratum)
    lone = sizes[stratum] == 1
    if lone.sum() == 1:
        # With nobody to be compared with, it goes where one more matters least.
        stratum[lone] = np.argmax(sizes)
    else:
        stratum[lone] = len(sizes)
    return np.unique(stratum, return_inverse=True)[1].reshape(-1)


def jackknife_error(replicates: Float[ndarray, " group *rest"]) -> Float[ndarray, " *rest"]:
    """Standard error from delete-one-group values of units from one population.

    Args:
        replicates: The estimate with each group left out in turn.

    Returns:
        The standard error.
    """
    n_groups = len(replicates)
    return np.asarray(np.sqrt((n_groups - 1) * replicates.var(axis=0)))


def interval_factor(n_groups: int, level: float = 0.975) -> float:
    """Number of standard errors to the given quantile; Student's t, for units may be few.

    Args:
        n_groups: Number of jackknife groups.
        level: Quantile, between 0 and 1.

    Returns:
        The factor; infinite if a single group leaves nothing to estimate the error from.
    """
    return float(student_t.ppf(level, n_groups - 1)) if n_groups > 1 else float("inf")
