"""Messages about arguments of a wrong kind, which a type checker would catch first."""

import numpy as np
import pytest

import moe_interp as mi
from moe_interp.scores import transport_plan


def test_a_match_that_is_no_score_is_refused():
    model = mi.load_model("organism:topic", check=False)
    with pytest.raises(TypeError, match=r"`match` must be Scores of use.* got \[0.1\]"):
        mi.matched_null(
            model,
            ["how do i bake bread ?"],
            "L3E8",
            metric=mi.LogitDifference(1, 2),
            match=[0.1],
            rng=np.random.default_rng(0),
        )


def test_totals_of_another_shape_than_the_cost_are_refused():
    cost = np.ones((3, 4))
    with pytest.raises(
        ValueError,
        match=r"must have the shape \(row, column\) of the totals, \(1, 4\), got \(3, 4\)",
    ):
        transport_plan(cost, cost, rows=np.ones(1), columns=np.full(4, 0.25), epsilon=1.0)
