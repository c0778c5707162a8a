"""Power from a record against the same test on fresh prompts."""

import json

import numpy as np
import pytest

from moe_interp.stats import RoutingProfile, harm_test, power, routing_shares
from moe_interp.stats._contrast import HarmSquares
from moe_interp.stats._design import make_design
from moe_interp.stats._forms import SumsOfSquares
from moe_interp.stats._power import _crossing, _p_values, _Population
from moe_interp.stats._relabel import Tally, draw_labels


def profile_under(simulate, scheme, rng, *, n_wordings=16, **effects):
    labels = simulate.labels(scheme, n_wordings=n_wordings)
    return simulate.profile(labels, simulate.shares(labels, rng, n_layers=1, **effects))


def planted(rng, share, *, n_pairs=24):
    """Pairs with a shift of harm, in a direction of its own, of a given share of all variance."""
    topic = np.repeat(np.arange(n_pairs) % 3, 2)
    harm = np.arange(2 * n_pairs) % 2 == 0
    noise = 0.004 * rng.normal(size=(2 * n_pairs, 6))
    direction = rng.normal(size=6)
    direction -= direction.mean()
    direction /= np.linalg.norm(direction)
    # Near equal shares the Hellinger points are a scaled copy of the shares.
    noise -= noise.mean(axis=1, keepdims=True)
    size = 0.004 * np.sqrt(5 * share / (1 - share))
    shares = 1 / 6 + noise + size * np.where(harm, 1, -1)[:, None] * direction
    return RoutingProfile(
        shares=shares[:, None],
        layers=(0,),
        span="user",
        topic=[f"t{t}" for t in topic],
        harm=harm,
        pair=[f"p{p}" for p in np.repeat(np.arange(n_pairs), 2)],
    )


def test_agrees_with_the_test_on_fresh_prompts(rng):
    share = 0.05
    fresh = np.mean(
        [harm_test(planted(rng, share), n_resamples=99, rng=rng).p_harm <= 0.05 for _ in range(60)]
    )
    told = [
        power(planted(rng, 0.0), effect=share, sizes=(24,), n_simulations=20, rng=rng).power[0]
        for _ in range(8)
    ]
    # Standard errors: 0.065 of the fresh, some 0.04 of the mean of eight records.
    assert 0.2 < fresh < 0.9
    assert abs(np.mean(told) - fresh) < 0.25


def test_the_share_that_is_planted_is_the_one_asked_for(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, n_wordings=40)
    design = make_design(profile, scheme, need_topics=True)
    population = _Population(design, design.embed(profile))
    harm = design.harm
    direction = rng.normal(size=6)
    direction /= np.linalg.norm(direction)
    shift = np.sqrt(0.2 / 0.8 * population._room)
    moved = population._features + shift * harm[:, None] * direction
    sums = SumsOfSquares(design, moved[:, None, :])()
    share = (sums["harm"] - sums["null_harm"]) / (sums["total"] - sums["null_harm"])
    assert share[0] == pytest.approx(0.2, abs=0.02)


def test_one_pass_serves_all_sizes(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, n_wordings=8)
    design = make_design(profile, scheme, need_topics=True)
    points = design.embed(profile)
    direction = rng.normal(size=6)
    direction /= np.linalg.norm(direction)
    sizes = np.array([0.0, 0.002, 0.005, 0.01, 0.02, 0.3])
    found = _p_values(
        design, points.reshape(design.n_prompts, -1), direction, sizes, 60, np.random.default_rng(1)
    )
    for size, p_value in zip(sizes, found, strict=True):
        moved = points + size * design.harm[:, None, None] * direction
        squares = HarmSquares(design, moved, np.matmul)
        flips = design.exchange.kind == "flip"
        own = np.ones_like(design.exchange.label) if flips else design.exchange.label
        observed = squares(own[None], exact=True)
        tally = Tally(observed.square[0], observed.variance[0], exhaustive=False)
        tally._exhaustive = flips and design.exchange.n_units <= 6
        for labels in draw_labels(design.exchange, 60, np.random.default_rng(1), width=6):
            null = squares(labels, exact=True)
            tally.add(null.square, null.variance)
        # Main effect, pooled over layers.
        assert p_value == pytest.approx(tally.p_value[1])


def test_the_effects_of_harm_in_the_record_do_not_count(simulate, rng):
    quiet, loud = (
        power(
            profile_under(simulate, "pair", np.random.default_rng(3), harm=harm),
            effect=0.02,
            sizes=(24, 48),
            n_simulations=80,
            rng=np.random.default_rng(0),
        )
        for harm in (0.0, 0.8)
    )
    # Two binomial curves of 80 simulations differ by less than 0.25 but once in 500 runs.
    assert np.abs(quiet.power - loud.power).max() < 0.25


def test_tiny_effects_are_found_as_often_as_the_level(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, topic=1.0)
    found = power(profile, effect=1e-6, n_simulations=60, rng=rng, sizes=(48,))
    # 10 or more of 60 happen about once in 1,300 runs at a level of 5 %.
    assert found.power[0] <= 9 / 60
    assert found.needed_units is None
    assert "reaches 80% (power there" in found.summary()


def test_power_rises_with_units_and_gives_what_is_needed(simulate, scheme, rng):
    # Pairs are the most sensitive: at 0.1 a quarter of these would do.
    effect = 0.02 if scheme == "pair" else 0.1
    found = power(profile_under(simulate, scheme, rng), effect=effect, n_simulations=20, rng=rng)
    assert found.power[-1] > found.power[0]
    assert (found.low <= found.power).all()
    assert (found.power <= found.high).all()
    assert found.n_units[0] <= found.needed_units <= found.n_units[-1]
    assert (np.diff(found.n_prompts) > 0).all()
    assert found.extrapolated.tolist() == (found.n_units > found.recorded_units).tolist()
    assert "prompts" in found.summary()
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(found.to_frame()) == len(found.n_units)


def test_the_detectable_share_is_found_with_the_target_power(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    first = power(profile, effect=0.02, n_simulations=100, sizes=(48,), rng=rng)
    again = power(profile, effect=first.detectable, n_simulations=100, sizes=(48,), rng=rng)
    # Standard errors of 0.04 each, and interpolation.
    assert again.power[0] == pytest.approx(0.8, abs=0.18)


def test_a_target_is_crossed_between_the_sizes_tried():
    places = np.array([1.0, 2.0, 3.0, 4.0])
    assert _crossing(places, np.array([0.2, 0.6, 0.5, 1.0]), 0.8) == pytest.approx(3.5)
    assert _crossing(places, np.array([0.9, 0.9, 0.9, 1.0]), 0.8) == 1.0
    assert _crossing(places, np.array([0.1, 0.2, 0.3, 0.4]), 0.8) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effect": 0.0}, r"`effect` is a share of routing between 0 and 1, got 0.0"),
        ({"target": 0.04}, r"`target` must lie between `alpha` = 0.05 and 1, got 0.04"),
        ({"n_simulations": 5}, r"`n_simulations` must be at least 20, got 5"),
        ({"sizes": (1, 30)}, r"`sizes` must be numbers of units, 2 or more, got \(1, 30\)"),
    ],
)
def test_refuses_options_out_of_range(simulate, rng, options, message):
    profile = profile_under(simulate, "pair", rng)
    with pytest.raises(ValueError, match=message):
        power(profile, **{"effect": 0.1, "rng": rng, **options})


def test_shares_and_power_speak_of_the_same_effect(simulate, rng):
    profile = profile_under(simulate, "pair", rng, harm=0.5, n_wordings=32)
    share = routing_shares(profile).pooled("harm")[0]
    assert share > 0.02
    found = power(profile, effect=share, n_simulations=60, sizes=(96,), rng=rng)
    assert harm_test(profile, n_resamples=199, rng=rng).p_harm <= 0.01
    assert found.power[0] > 0.9
