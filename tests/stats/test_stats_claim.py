import json

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from moe_interp.stats import Verdict, routing_claim


def verdict_of(label):
    return Verdict(label, f"It is {label}.", "user", None, None, 0.05, 0.1, 99, None, None)


@pytest.mark.parametrize(
    ("label", "state"),
    [
        ("topic_driven", "supported"),
        ("harm_driven", "contradicted"),
        ("both", "contradicted"),
        ("neither", "undetermined"),
        ("undetermined", "undetermined"),
    ],
)
def test_the_first_half_is_the_verdict(label, state):
    claim = routing_claim(verdict_of(label))
    assert claim.follows_topic.state == state
    assert claim.follows_topic.reason == f"It is {label}."
    assert claim.safety_apart.state == "not tested"


def change(mean, spread, n=30):
    """Numbers with exactly this mean and about this spread."""
    values = np.linspace(-spread, spread, n)
    return mean + values - values.mean()


@pytest.mark.parametrize(
    ("moved", "behaviour", "state"),
    [
        (change(0.01, 0.01), change(1.0, 0.0), "supported"),
        (change(0.3, 0.1), change(1.0, 0.0), "contradicted"),
        (change(0.1, 0.3), change(1.0, 0.0), "undetermined"),
        (change(0.01, 0.01), change(0.1, 0.2), "not tested"),
        (change(0.01, 0.01), change(0.55, 0.9), "not tested"),
    ],
)
@pytest.mark.parametrize("label", ["topic_driven", "harm_driven"])
def test_the_second_half_does_not_ask_for_the_first(moved, behaviour, state, label):
    claim = routing_claim(verdict_of(label), routing_change=moved, behaviour_change=behaviour)
    assert claim.safety_apart.state == state
    assert state.capitalize() in claim.summary() or state in claim.summary()
    json.dumps(claim.to_dict(), allow_nan=False)


def test_limits_are_students(rng):
    moved, behaviour = rng.random(20), 1 + 0.1 * rng.normal(size=20)
    numbers = routing_claim(
        verdict_of("both"), routing_change=moved, behaviour_change=behaviour
    ).safety_apart.numbers
    # A one-sided limit at 5 % is where the one-sided t-test has p = 0.05.
    for bound, side in (("routing_low", "greater"), ("routing_high", "less")):
        assert ttest_1samp(moved, numbers[bound], alternative=side).pvalue == pytest.approx(0.05)
    tested = ttest_1samp(behaviour, numbers["behaviour_low"], alternative="greater")
    assert tested.pvalue == pytest.approx(0.05)


def test_prompts_of_one_unit_count_once(rng):
    moved = np.repeat(rng.random(6), 10)
    given = {"routing_change": moved, "behaviour_change": np.ones(60)}
    by_unit = routing_claim(
        verdict_of("both"), unit=np.repeat(np.arange(6), 10), **given
    ).safety_apart.numbers
    once = routing_claim(
        verdict_of("both"), routing_change=moved[::10], behaviour_change=np.ones(6)
    ).safety_apart.numbers
    assert by_unit == pytest.approx(once)
    assert by_unit["routing_high"] > routing_claim(
        verdict_of("both"), **given
    ).safety_apart.numbers["routing_high"]  # fmt: skip


def test_the_yardstick_is_the_change_by_topic():
    given = {"routing_change": change(0.05, 0.01), "behaviour_change": change(1.0, 0.0)}
    states = [
        routing_claim(verdict_of("both"), topic_change=topic, **given).safety_apart.state
        for topic in (None, 0.8, 0.3)
    ]
    assert states == ["supported", "supported", "contradicted"]


def test_refuses_what_does_not_fit():
    found = verdict_of("both")
    one, two = [1.0, 1.0, 1.0], [0.0, 0.1, 0.2]
    with pytest.raises(ValueError, match="Give both `routing_change` and `behaviour_change`"):
        routing_claim(found, routing_change=two)
    with pytest.raises(ValueError, match="has 3 values and `behaviour_change` 2"):
        routing_claim(found, routing_change=two, behaviour_change=one[:2])
    with pytest.raises(ValueError, match="`routing_change` must hold one finite number"):
        routing_claim(found, routing_change=[0.1, np.nan], behaviour_change=one[:2])
    with pytest.raises(ValueError, match="`unit` has 2 values for 3 prompts"):
        routing_claim(found, routing_change=two, behaviour_change=one, unit=["a", "b"])
    with pytest.raises(ValueError, match="All prompts are one `unit`"):
        routing_claim(found, routing_change=two, behaviour_change=one, unit=["a"] * 3)
    with pytest.raises(ValueError, match="`topic_change` must lie between 0 and 1, got 0"):
        routing_claim(found, routing_change=two, behaviour_change=one, topic_change=0.0)
    with pytest.raises(ValueError, match=r"`alpha` must lie between 0 and 0.5"):
        routing_claim(found, routing_change=two, behaviour_change=one, alpha=0.7)
