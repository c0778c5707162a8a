import json

import numpy as np
import pytest

from moe_interp.stats import RoutingProfile, routing_shares

FACTORS = ("topic", "harm", "interaction", "harm_total")


def profile_under(simulate, scheme, rng, *, n_wordings=8, **effects):
    labels = simulate.labels(scheme, n_wordings=n_wordings)
    return simulate.profile(labels, simulate.shares(labels, rng, **effects))


def random_profiles(profile, rng, n_draws=5):
    return rng.dirichlet(
        np.ones(profile.n_experts), size=(n_draws, profile.n_prompts, profile.n_layers)
    )


def test_shares_average_zero_when_nothing_happens(simulate, scheme, rng):
    found = []
    for _ in range(40):
        profile = profile_under(simulate, scheme, rng, n_wordings=4, topic=0.0, wording=0.3)
        shares = routing_shares(profile)
        found.append([shares.pooled(factor)[0] for factor in FACTORS])
    # The mean of 40 lies within 4 standard errors, but for about one run in 4,000.
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(40)
    assert (np.abs(mean) < 4 * error).all(), dict(zip(FACTORS, mean / error, strict=True))


def test_finds_topic_harm_and_harm_by_topic_where_they_are(simulate, scheme, rng):
    topic = routing_shares(profile_under(simulate, scheme, rng, topic=2.0))
    harm = routing_shares(profile_under(simulate, scheme, rng, topic=0.0, harm=1.0))
    by_topic = routing_shares(profile_under(simulate, scheme, rng, topic=0.0, by_topic=2.0))
    assert topic.pooled("topic")[1] > 0.3
    assert abs(topic.pooled("harm_total")[0]) < 0.05
    assert harm.pooled("harm")[1] > 0.3
    assert abs(harm.pooled("interaction")[0]) < 0.1
    assert by_topic.pooled("interaction")[1] > 0.2
    total = by_topic.pooled("harm")[0] + by_topic.pooled("interaction")[0]
    assert np.isclose(by_topic.pooled("harm_total")[0], total, atol=0.05)


@pytest.mark.parametrize("factor", ["topic", "harm", "interaction"])
def test_routing_that_shows_one_factor_and_nothing_else_is_its_whole(simulate, scheme, factor):
    labels = simulate.labels(scheme, n_topics=2, n_wordings=4)
    topic, harm = np.array(labels.topic) == "topic1", np.array(labels.harm)
    chosen = {"topic": topic, "harm": harm, "interaction": topic ^ harm}[factor].astype(int)
    shares = routing_shares(simulate.profile(labels, np.eye(6)[chosen][:, None])).shares
    found = {name: float(own[0]) for name, own in shares.items()}
    expected = {name: float(name == factor) for name in found}
    expected["harm_total"] = float(factor != "topic")
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_share_is_on_average_that_of_very_many_prompts(simulate, scheme, rng):
    """Few units and large effects, of which relabelling takes a good part."""
    few, many = (simulate.labels(scheme, n_topics=2, n_wordings=n) for n in (5, 150))
    topic, main, by_topic = 0.5 * rng.normal(size=(3, 1, 1, 6))

    def drawn(labels):
        side = np.where(labels.harm, 1.0, -1.0)[:, None, None]
        which = np.where(np.array(labels.topic) == "topic1", 1.0, -1.0)[:, None, None]
        odds = np.exp(which * topic + side * main + side * which * by_topic)
        odds = odds * simulate.shares(labels, rng, topic=0.0, n_layers=1, noise=0.3, pair=0.3)
        return simulate.profile(labels, odds / odds.sum(axis=2, keepdims=True))

    truth = routing_shares(drawn(many))
    found = [routing_shares(drawn(few)) for _ in range(60)]
    for factor in FACTORS:
        values = np.array([own.pooled(factor)[0] for own in found])
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - truth.pooled(factor)[0]) < 4 * error + 0.005, factor


def test_replicates_are_the_shares_with_one_unit_left_out(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, n_wordings=4, harm=0.3)
    shares = routing_shares(profile)
    units = {
        "wording_pair": profile.wording,
        "wording": profile.wording,
        "pair": profile.pair,
        "within_topic": np.arange(profile.n_prompts),
    }[scheme]
    left_out = [routing_shares(profile.select(units != unit)) for unit in set(units)]
    for factor in FACTORS:
        expected = np.sort([other.pooled(factor)[0] for other in left_out])
        assert np.allclose(np.sort(shares.replicates[factor][:, -1]), expected), factor


def test_interval_is_the_jackknife_with_students_t(simulate, rng):
    shares = routing_shares(profile_under(simulate, "wording_pair", rng))
    replicates = shares.replicates["topic"][:, -1]
    # Each wording is in every cell, so that there is one stratum.
    error = np.sqrt(7 / 8 * ((replicates - replicates.mean()) ** 2).sum())
    share, low, high = shares.pooled("topic")
    # 2.3646 is the 97.5 % quantile of Student's t with 7 degrees of freedom.
    assert np.allclose([share - low, high - share], 2.364624 * error)


@pytest.mark.slow
def test_intervals_cover_the_share_of_many_prompts(simulate, rng):
    labels = simulate.labels("pair", n_topics=4, n_wordings=100)
    shapes = simulate.shares(labels, rng, harm=0.15, topic=0.7)
    population = simulate.profile(labels, shapes)
    whole = routing_shares(population)
    truth = {factor: whole.pooled(factor)[0] for factor in ("topic", "harm")}
    inside = dict.fromkeys(truth, 0)
    for _ in range(40):
        chosen = [
            rng.choice(np.unique(population.pair[population.topic == topic]), 8, replace=False)
            for topic in np.unique(population.topic.astype(str))
        ]
        shares = routing_shares(population.select(np.isin(population.pair, np.concatenate(chosen))))
        for factor, value in truth.items():
            _, low, high = shares.pooled(factor)
            inside[factor] += low <= value <= high
    # At 95 % coverage fewer than 33 of 40 happen about once in 1,000 runs.
    assert min(inside.values()) >= 33, inside


def test_random_band_is_made_of_the_shares_of_each_draw(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng)
    draws = random_profiles(profile, rng)
    shares = routing_shares(profile, random_profiles=draws)
    apart = [
        routing_shares(
            RoutingProfile(
                shares=draw,
                layers=profile.layers,
                span="user",
                topic=profile.topic,
                harm=profile.harm,
                pair=profile.pair,
                wording=profile.wording,
            )
        )
        for draw in draws
    ]
    for factor in FACTORS:
        assert np.allclose(shares.random[factor], [own.shares[factor] for own in apart]), factor
        mean = np.mean([own.replicates[factor][:, -1] for own in apart], axis=0)
        assert np.allclose(shares.random_replicates[factor], mean), factor


def test_random_band_does_not_depend_on_the_chunk(simulate, rng, monkeypatch):
    profile = profile_under(simulate, "pair", rng)
    draws = random_profiles(profile, rng)
    whole = routing_shares(profile, random_profiles=draws)
    monkeypatch.setattr("moe_interp.stats._shares._CHUNK_NUMBERS", 1)
    chunked = routing_shares(profile, random_profiles=draws)
    for factor in FACTORS:
        assert np.allclose(whole.random[factor], chunked.random[factor])
        assert np.allclose(whole.random_replicates[factor], chunked.random_replicates[factor])


def test_a_layer_that_routes_all_prompts_alike_has_no_share(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    profile.shares[:, 1] = profile.shares[0, 1]
    shares = routing_shares(profile, random_profiles=random_profiles(profile, rng))
    assert shares.constant_layers == (1,)
    assert np.isnan(shares.shares["topic"][1])
    assert shares.pooled("topic")[0] == pytest.approx(shares.shares["topic"][0])
    assert "Constant routing, no share defined: layers 1" in shares.summary()


def test_a_constant_random_router_counts_as_showing_nothing(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    draws = random_profiles(profile, rng)
    draws[2] = 1 / profile.n_experts
    shares = routing_shares(profile, random_profiles=draws)
    assert shares.random["topic"][2].tolist() == [0, 0, 0]
    assert np.isfinite(shares.random_replicates["topic"]).all()


def test_shares_do_not_depend_on_the_order_of_prompts_or_the_names_of_experts(
    simulate, scheme, rng
):
    profile = profile_under(simulate, scheme, rng, harm=0.4)
    order = rng.permutation(profile.n_prompts)
    shuffled = profile.select(order)
    renamed = RoutingProfile(
        **{**vars(shuffled), "shares": shuffled.shares[:, :, rng.permutation(profile.n_experts)]}
    )
    ours, theirs = routing_shares(profile), routing_shares(renamed)
    for factor in FACTORS:
        assert np.allclose(ours.shares[factor], theirs.shares[factor]), factor
        assert np.allclose(ours.low[factor], theirs.low[factor]), factor


def test_table_has_one_row_a_layer_and_one_for_all(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    shares = routing_shares(profile, random_profiles=random_profiles(profile, rng))
    frame = shares.to_frame()
    assert frame["layer"].tolist() == [0, 1, "all"]
    for column in ("topic", "topic_low", "topic_high", "topic_random_mean", "topic_random_high"):
        assert column in frame
    assert frame["harm"].iloc[-1] == shares.pooled("harm")[0]
    json.dumps(shares.to_dict(), allow_nan=False)


def test_refuses_random_profiles_with_nan(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    draws = random_profiles(profile, rng)
    draws[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"`random_profiles` holds NaN"):
        routing_shares(profile, random_profiles=draws)
