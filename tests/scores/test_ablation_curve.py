"""Curves of ablation: each point is the ablation it says, and random orders are like experts."""

from itertools import pairwise

import numpy as np
import pytest

from moe_interp import Ban, RefusalOpening, ablation_curve, run
from moe_interp.experts import Expert
from moe_interp.scores import AblationCurve, _ablation_curve

ORDER = ["L0E3", "L3E9", "L2E1", "L3E8"]


@pytest.fixture(scope="module")
def curve(topic_model, halves, refusal, use):
    return ablation_curve(
        topic_model,
        halves[1],
        ORDER,
        metric=refusal,
        match=use,
        n_draws=25,
        rng=np.random.default_rng(0),
    )


def of(shown, null=()):
    null = np.array(null, dtype=float).reshape(-1, len(shown))
    order = tuple(Expert(0, n) for n in range(len(shown) - 1))
    return AblationCurve(order, np.array(shown), null, "metric", 0.0)


def test_each_point_is_the_ablation_of_the_first_few(curve, topic_model, halves, refusal):
    for n in range(len(ORDER) + 1):
        recipe = [Ban(",".join(ORDER[:n]))] if n else []
        found = run(topic_model, halves[1], recipe).logits
        assert curve.shown[n] == float((refusal(found) > 0).float().mean())
    assert curve.order == (Expert(0, 3), Expert(3, 9), Expert(2, 1), Expert(3, 8))


def test_the_planted_experts_must_both_go(curve):
    assert curve.shown[0] >= 0.95
    assert curve.n_needed() == 4
    assert curve.p_value() == 1 / 26
    assert "4 experts must be ablated to halve that" in curve.summary()
    assert "Of 25 random orders of experts of like use 0 halve it" in curve.summary()


def test_a_fraction_may_be_asked_of_a_metric_of_ones(topic_model, halves, refusal):
    found = ablation_curve(
        topic_model, halves[1], ORDER[1:], metric=RefusalOpening(refusal), threshold=0.5
    )
    assert found.shown[-1] <= 0.05
    assert found.null.shape == (0, 4)
    assert found.to_frame()["null_mean"].isna().all()
    with pytest.raises(ValueError, match="There are no random orders to compare with"):
        found.p_value()
    assert found.summary().endswith("halve that.")


def test_the_number_needed_is_the_first_that_is_enough():
    found = of(
        [0.8, 0.6, 0.4, 0.5, 0.1], [[0.8, 0.8, 0.4, 0.4, 0.4], [0.8] * 5, [0.8, 0.1] * 2 + [0]]
    )
    assert found.n_needed() == 2
    assert found.n_needed(0.6) == 2
    assert found.n_needed(0.75) == 1
    assert found.n_needed(0.1) is None
    assert found.p_value() == (1 + 2) / 4
    assert found.p_value(0.1) == 1
    # Thirds add up to a hair more than their half.
    assert of([0.6, 0.1 + 0.2]).n_needed() == 1
    assert "more than 2 experts must be ablated" in of([1.0, 0.9, 0.8]).summary()
    assert "; 1 expert must be" in of([1.0, 0.5]).summary()


def test_random_orders_keep_to_the_layers_and_leave_the_order_alone(
    topic_model, halves, refusal, use, monkeypatch
):
    asked = []
    real = _ablation_curve.measure_many
    monkeypatch.setattr(
        _ablation_curve,
        "measure_many",
        lambda model, prompts, sets, **options: (
            asked.extend(sets) or real(model, prompts, sets, **options)
        ),
    )
    options = {"metric": refusal, "match": use, "n_draws": 3}
    first = ablation_curve(topic_model, halves[1], ORDER, rng=np.random.default_rng(1), **options)
    for draw in range(1, 4):
        sets = asked[5 * draw : 5 * draw + 5]
        added = [next(iter(b - a)) for a, b in pairwise(sets)]
        assert [expert.layer for expert in added] == [0, 3, 2, 3]
        assert not {str(expert) for expert in added} & set(ORDER)
    again = ablation_curve(topic_model, halves[1], ORDER, rng=np.random.default_rng(1), **options)
    np.testing.assert_array_equal(first.null, again.null)


def test_tables_hold_the_curve(curve):
    frame = curve.to_frame()
    assert list(frame["expert"]) == ["", *ORDER]
    np.testing.assert_allclose(frame["null_mean"], curve.null.mean(axis=0))
    assert (frame["null_low"] <= frame["null_high"]).all()
    assert curve.to_dict()["order"] == ORDER


def test_what_is_no_order_is_refused(topic_model, halves, refusal, use):
    with pytest.raises(ValueError, match=r"`order` must name experts, each once, got L3E8, L3E8"):
        ablation_curve(topic_model, halves[1], ["L3E8", "L3E8"], metric=refusal)
    with pytest.raises(ValueError, match="each once, got none"):
        ablation_curve(topic_model, halves[1], [], metric=refusal)
    with pytest.raises(ValueError, match="Random orders need `match`"):
        ablation_curve(topic_model, halves[1], ORDER, metric=refusal, n_draws=5)
    with pytest.raises(ValueError, match=r"`part` must lie in \[0, 1\), got 1\.0"):
        of([1.0, 0.0]).n_needed(1.0)
    with pytest.raises(ValueError, match="No prompt shows the behaviour"):
        of([0.0, 0.0]).n_needed()


def test_a_prompt_at_the_threshold_does_not_show_it(topic_model, halves):
    found = ablation_curve(
        topic_model, halves[1].select(range(2)), ["L0E3"], metric=lambda logits: 0 * logits[:, 0]
    )
    assert found.shown.tolist() == [0, 0]
