"""Entropic optimal transport with a prior: who goes where, at the least cost, near what is known.

References:
    Cuturi (2013), "Sinkhorn Distances: Lightspeed Computation of Optimal Transport". Chizat, Peyré,
    Schmitzer and Vialard (2018), "Scaling Algorithms for Unbalanced Optimal Transport Problems",
    for totals that are only held near their aim. Peyré and Cuturi (2019), "Computational Optimal
    Transport", section 4.4, for sums in log space.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import logsumexp

from moe_interp.errors import DesignError


@dataclass(frozen=True)
class TransportPlan:
    """The plan that was found.

    Attributes:
        plan: Mass that goes from each row to each column.
        n_iterations: Rounds of scaling it took.
        error: Largest change that one more round would make to a column's logarithm of scale; where
            totals of columns hold exactly, their largest relative error.
    """

    plan: Float[ndarray, "row column"]
    n_iterations: int
    error: float


def transport_plan(
    cost: Float[ndarray, "row column"],
    prior: Float[ndarray, "row column"],
    *,
    rows: Float[ndarray, " row"],
    columns: Float[ndarray, " column"],
    epsilon: float,
    column_weight: float | None = None,
    tolerance: float = 1e-9,
    max_iterations: int = 10_000,
) -> TransportPlan:
    r"""Find the plan of least cost that stays near a prior and has given totals.

    .. math:: \min_\pi \langle \pi, C \rangle + \epsilon\,\mathrm{KL}(\pi \| P)
              + \rho\,\mathrm{KL}(\pi^\top 1 \| c), \qquad \pi 1 = r

    by Sinkhorn's scaling of the kernel :math:`K = P \odot e^{-C/\epsilon}`, in log space. With
    `column_weight` :math:`\rho` None the totals of the columns hold exactly. Then a cost that
    depends on the column alone changes nothing: :math:`\langle \pi, C \rangle = \sum_j c_j C_j`
    is the same for every plan. With 0 the columns are free, and each row is tilted by itself.

    Args:
        cost: Cost of a unit of mass from each row to each column.
        prior: What the plan is kept near, from 0 on; where it is 0 the plan is 0.
        rows: Total of each row, above 0.
        columns: Aim for the total of each column, above 0; the same sum.
        epsilon: Weight of the prior, above 0, in the unit of the cost.
        column_weight: Weight of the columns' aim, in the unit of the cost; None holds it exactly.
        tolerance: Change of the logarithms of the scaling factors that counts as none.
        max_iterations: Rounds after which the search is given up.

    Returns:
        The plan.

    Raises:
        ValueError: If shapes do not fit or a number is out of range.
        DesignError: If the search does not converge, or a row or column has no prior mass.

    Example:
        >>> plan = transport_plan(
        ...     np.array([[0.0, 1.0], [1.0, 0.0]]), np.full((2, 2), 0.25),
        ...     rows=np.full(2, 0.5), columns=np.full(2, 0.5), epsilon=0.5,
        ... ).plan
        >>> plan.round(3).tolist()
        [[0.44, 0.06], [0.06, 0.44]]
    """
    _check(cost, prior, rows, columns, epsilon, column_weight)
    with np.errstate(divide="ignore"):
        kernel = np.log(prior) - cost / epsilon
    power = 1.0 if column_weight is None else column_weight / (column_weight + epsilon)
    right = np.zeros(len(columns))
    for n in range(1, max_iterations + 1):
        left = np.log(rows) - logsumexp(kernel + right, axis=1)
        scaled = power * (np.log(columns) - logsumexp(kernel + left[:, None], axis=0))
        error = float(np.abs(scaled - right).max())
        if error <= tolerance:
            return TransportPlan(np.exp(left[:, None] + kernel + right), n, error)
        right = scaled
    raise DesignError(
        f"Sinkhorn's scaling still moved by {error:.2g} after {max_iterations} rounds (allowed: "
        f"{tolerance:.2g}). Raise `epsilon` ({epsilon:g}) or `max_iterations`; where the prior is "
        "0 too often, no plan has these totals: give a `column_weight`."
    )


def _check(
    cost: Float[ndarray, "row column"],
    prior: Float[ndarray, "row column"],
    rows: Float[ndarray, " row"],
    columns: Float[ndarray, " column"],
    epsilon: float,
    column_weight: float | None,
) -> None:
    shape = (len(rows), len(columns))
    if cost.shape != shape or prior.shape != shape:
        raise ValueError(
            f"`cost` and `prior` must have the shape (row, column) of the totals, {shape}, got "
            f"{cost.shape} and {prior.shape}."
        )
    if not np.isfinite(cost).all() or not np.isfinite(prior).all() or (prior < 0).any():
        raise ValueError("`cost` must be finite, and `prior` finite and nowhere below 0.")
    if not ((rows > 0).all() and (columns > 0).all() and np.isclose(rows.sum(), columns.sum())):
        raise ValueError(
            "`rows` and `columns` must be above 0 and have the same sum, got the sums "
            f"{rows.sum():.6g} and {columns.sum():.6g}."
        )
    if not epsilon > 0 or (column_weight is not None and not 0 <= column_weight < np.inf):
        raise ValueError(
            "`epsilon` must be above 0 and `column_weight` None or a finite number from 0 on, got "
            f"{epsilon} and {column_weight}."
        )
    if not (prior.sum(axis=0) > 0).all() or not (prior.sum(axis=1) > 0).all():
        raise DesignError(
            "A row or column has no mass in `prior`, so that no plan reaches it. Leave it out."
        )
