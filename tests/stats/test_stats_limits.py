import json
from dataclasses import replace

import numpy as np
import pytest

from moe_interp.stats import decide, harm_test, routing_shares

N_RANDOM = 39


@pytest.fixture
def parts(simulate, rng):
    """Shares and tests of routing that follows topic, beside random routers that do so less."""
    labels = simulate.labels("pair", n_topics=3, n_wordings=8)
    profile = simulate.profile(labels, simulate.shares(labels, rng, topic=1.0, harm=0.25))
    random = np.stack([simulate.shares(labels, rng, topic=0.3) for _ in range(N_RANDOM)])
    shares = routing_shares(profile, random_profiles=random)
    return shares, harm_test(profile, n_resamples=199, rng=rng)


def limits_of(found):
    return {limits.name: limits for limits in found.limits}


def with_reached(shares, factor, n_reached):
    """Let so many random routers reach the factor's share."""
    random = {name: values.copy() for name, values in shares.random.items()}
    random[factor][:n_reached, -1] = 1.0
    random[factor][n_reached:, -1] = 0.0
    return replace(shares, random=random)


def test_room_among_random_routers_is_what_decides(simulate, rng):
    labels = simulate.labels("pair", n_topics=3, n_wordings=8)
    profile = simulate.profile(labels, simulate.shares(labels, rng))
    random = np.stack([simulate.shares(labels, rng, topic=0.3) for _ in range(119)])
    test = harm_test(profile, n_resamples=199, rng=rng)
    shares = routing_shares(profile, random_profiles=random)
    # (1 + n) / 120 is at most 0.025 for two routers and no more.
    for n_reached in range(5):
        found = decide(with_reached(shares, "topic", n_reached), test)
        assert limits_of(found)["topic"].random_room == 2 - n_reached
        assert (found.topic.p_random <= 0.025) == (limits_of(found)["topic"].random_room >= 0)


def test_the_margin_flips_the_status_where_it_says(parts):
    shares, test = parts
    found = decide(shares, test)
    flip = limits_of(found)["harm"].margin_flip
    assert flip > 0.10
    assert found.harm.status != "negligible"
    below, above = (decide(shares, test, margin=flip + step) for step in (-2e-3, 2e-3))
    assert below.harm.status != "negligible"
    assert above.harm.status == "negligible"
    assert limits_of(above)["harm"].margin_flip == pytest.approx(flip)


def test_a_factor_that_outweighs_the_other_is_negligible_at_no_margin(parts):
    assert limits_of(decide(*parts))["topic"].margin_flip is None


def test_more_units_with_the_same_excess_would_suffice(parts):
    shares, test = parts
    # An excess that hangs on the prompts.
    unsteady = shares.replicates["topic"].copy()
    unsteady[::2] += 0.3
    shares = replace(shares, replicates={**shares.replicates, "topic": unsteady})
    found = decide(shares, test)
    assert found.topic.status == "undecided"
    needed = limits_of(found)["topic"].units_needed
    assert needed > shares.n_units
    # The error falls with the root of the number of units.
    reach = (found.topic.excess - found.topic.excess_low) * np.sqrt(shares.n_units)
    assert reach / np.sqrt(needed) <= found.topic.excess < reach / np.sqrt(needed - 1)
    assert f"about {needed} exchange units (now {shares.n_units})" in found.what_would_change


def test_no_number_of_units_helps_a_share_below_that_of_random_routers(parts):
    shares, test = parts
    found = decide(with_reached(shares, "harm_total", N_RANDOM), test)
    assert limits_of(found)["harm"].units_needed is None
    assert "its excess over random routers were larger" in found.what_would_change
    assert f"{N_RANDOM} fewer random routers reached its share" in found.what_would_change


def test_room_below_alpha_is_told(parts):
    shares, test = parts
    found = decide(shares, test)
    assert limits_of(found)["topic"].p_room == pytest.approx(0.05 - found.topic.p_value)
    assert "Topic would no longer be beyond random routers if 1 more of them" in (
        found.what_would_change
    )
    missed = decide(shares, replace(test, topic=np.full_like(test.topic, 0.2)))
    assert "if its p-value fell by 0.15" in missed.what_would_change


def test_limits_are_part_of_the_dictionary(parts):
    told = json.loads(json.dumps(decide(*parts).to_dict(), allow_nan=False))
    assert set(told["limits"]) == {"topic", "harm"}
    assert told["what_would_change"].startswith("Topic would")


def test_constant_routing_and_missing_tests_have_no_limits(simulate, rng):
    from moe_interp.stats import verdict

    labels = simulate.labels("pair", n_wordings=8)
    constant = simulate.profile(labels, np.full((labels.n, 1, 4), 0.25))
    random = np.stack([simulate.shares(labels, rng, n_layers=1, n_experts=4)] * N_RANDOM)
    found = verdict(constant, random, n_resamples=199, rng=rng)
    assert found.what_would_change.startswith("Only other prompts would")
    json.dumps(found.to_dict(), allow_nan=False)
    few = simulate.labels("wording_pair", n_wordings=3)
    profile = simulate.profile(few, simulate.shares(few, rng))
    random = np.stack([simulate.shares(few, rng) for _ in range(N_RANDOM)])
    found = verdict(profile, random, n_resamples=199, rng=rng)
    assert found.limits == ()
    json.dumps(found.to_dict(), allow_nan=False)
