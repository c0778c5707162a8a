"""Transport with a prior: equal to scaling by hand, and to what general optimisers find."""

import re

import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from moe_interp.errors import DesignError
from moe_interp.scores import transport_plan


def problem(seed, n_rows=3, n_columns=4):
    rng = np.random.default_rng(seed)
    cost = rng.random((n_rows, n_columns))
    prior = rng.random((n_rows, n_columns)) + 0.05
    rows, columns = rng.random(n_rows) + 0.2, rng.random(n_columns) + 0.2
    return cost, prior, rows / rows.sum(), columns / columns.sum()


def plain_scaling(cost, prior, rows, columns, epsilon, power):
    kernel = prior * np.exp(-cost / epsilon)
    v = np.ones(len(columns))
    for _ in range(20_000):
        u = rows / (kernel @ v)
        v = (columns / (kernel.T @ u)) ** power
    u = rows / (kernel @ v)
    return u[:, None] * kernel * v


def divergence(a, b):
    return float((a * np.log(a / b) - a + b).sum())


@pytest.mark.parametrize("weight", [None, 0.0, 0.3])
def test_the_plan_is_what_scaling_by_hand_gives(weight):
    cost, prior, rows, columns = problem(0)
    found = transport_plan(
        cost, prior, rows=rows, columns=columns, epsilon=0.2, column_weight=weight
    )
    power = 1.0 if weight is None else weight / (weight + 0.2)
    np.testing.assert_allclose(
        found.plan, plain_scaling(cost, prior, rows, columns, 0.2, power), rtol=1e-7
    )
    np.testing.assert_allclose(found.plan.sum(axis=1), rows, rtol=1e-12)
    assert found.error <= 1e-9


@pytest.mark.parametrize("weight", [None, 0.3])
def test_no_other_plan_costs_less(weight):
    cost, prior, rows, columns = problem(1, 2, 3)
    epsilon = 0.25

    def objective(flat):
        plan = flat.reshape(cost.shape)
        total = (plan * cost).sum() + epsilon * divergence(plan, prior)
        return total + (0 if weight is None else weight * divergence(plan.sum(axis=0), columns))

    held = [{"type": "eq", "fun": lambda flat: flat.reshape(cost.shape).sum(axis=1) - rows}]
    if weight is None:
        # One total follows from the others.
        held.append(
            {"type": "eq", "fun": lambda flat: (flat.reshape(cost.shape).sum(0) - columns)[1:]}
        )
    start = np.outer(rows, columns).ravel()
    best = minimize(
        objective,
        start,
        method="SLSQP",
        constraints=held,
        bounds=[(1e-9, 1)] * cost.size,
        options={"ftol": 1e-14, "maxiter": 500},
    )
    found = transport_plan(
        cost, prior, rows=rows, columns=columns, epsilon=epsilon, column_weight=weight
    ).plan
    np.testing.assert_allclose(found.ravel(), best.x, atol=1e-5)
    assert objective(found.ravel()) <= best.fun + 1e-9


def test_with_little_weight_on_the_prior_it_is_the_linear_programme():
    cost, prior, rows, columns = problem(2)
    n, m = cost.shape
    totals = np.zeros((n + m, n * m))
    for i in range(n):
        totals[i, i * m : (i + 1) * m] = 1
    for j in range(m):
        totals[n + j, j::m] = 1
    best = linprog(cost.ravel(), A_eq=totals, b_eq=np.concatenate([rows, columns]))
    found = transport_plan(cost, prior, rows=rows, columns=columns, epsilon=0.003).plan
    assert (found * cost).sum() == pytest.approx(best.fun, abs=1e-3)


def test_a_cost_of_columns_changes_nothing_where_their_totals_are_held():
    _, prior, rows, columns = problem(3)
    cost = np.broadcast_to([0.0, 1.0, 5.0, 2.0], prior.shape)
    held = {"rows": rows, "columns": columns, "epsilon": 0.5}
    with_cost = transport_plan(cost, prior, **held).plan
    np.testing.assert_allclose(
        with_cost, transport_plan(0 * cost, prior, **held).plan, rtol=1e-7, atol=1e-12
    )
    near = transport_plan(cost, prior, **held, column_weight=0.5).plan.sum(axis=0)
    assert near[2] < 0.2 * transport_plan(0 * cost, prior, **held).plan.sum(axis=0)[2]


def test_free_columns_tilt_each_row_by_itself():
    cost, prior, rows, columns = problem(4)
    tilted = prior * np.exp(-cost / 0.3)
    expected = rows[:, None] * tilted / tilted.sum(axis=1, keepdims=True)
    found = transport_plan(cost, prior, rows=rows, columns=columns, epsilon=0.3, column_weight=0.0)
    np.testing.assert_allclose(found.plan, expected, rtol=1e-12)


def test_what_the_prior_rules_out_stays_out_and_huge_costs_do_no_harm():
    cost, prior, rows, columns = problem(5)
    prior[0, 1], cost[2, 3] = 0.0, 1e6
    found = transport_plan(
        cost, prior, rows=rows, columns=columns, epsilon=0.1, column_weight=1.0
    ).plan
    assert found[0, 1] == 0
    assert found[2, 3] == 0
    np.testing.assert_allclose(found.sum(axis=1), rows, rtol=1e-12)


def test_it_refuses_what_does_not_converge():
    cost, prior, rows, columns = problem(6)
    with pytest.raises(DesignError, match=r"still moved by .* after 3 rounds .*Raise `epsilon`"):
        transport_plan(cost, prior, rows=rows, columns=columns, epsilon=0.01, max_iterations=3)
    # The first row can reach the first column only, whose total is too small for it.
    blocked = np.array([[1.0, 0.0], [1.0, 1.0]])
    uneven = {"rows": np.array([0.7, 0.3]), "columns": np.array([0.5, 0.5])}
    with pytest.raises(DesignError, match="no plan has these totals: give a `column_weight`"):
        transport_plan(np.zeros((2, 2)), blocked, **uneven, epsilon=1.0, max_iterations=500)
    eased = transport_plan(np.zeros((2, 2)), blocked, **uneven, epsilon=1.0, column_weight=1.0)
    np.testing.assert_allclose(eased.plan.sum(axis=1), [0.7, 0.3])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"columns": np.full(4, 0.3)}, "have the same sum, got the sums 1 and 1.2"),
        ({"epsilon": 0.0}, "`epsilon` must be above 0"),
        ({"epsilon": 0.1, "column_weight": np.inf}, "None or a finite number from 0 on"),
        ({"cost": np.full((3, 4), np.nan)}, "`cost` must be finite"),
        ({"prior": -np.ones((3, 4))}, "nowhere below 0"),
    ],
)
def test_what_is_out_of_range_is_refused(changed, said):
    cost, prior, rows, columns = problem(7)
    given = {"cost": cost, "prior": prior, "rows": rows, "columns": columns, "epsilon": 0.1}
    with pytest.raises(ValueError, match=re.escape(said)):
        transport_plan(**given | changed)


def test_a_column_without_prior_mass_is_refused():
    cost, prior, rows, columns = problem(8)
    prior[:, 2] = 0
    with pytest.raises(DesignError, match="A row or column has no mass in `prior`"):
        transport_plan(cost, prior, rows=rows, columns=columns, epsilon=0.1)
