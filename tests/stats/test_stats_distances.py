"""Jensen-Shannon shares against distances, linear models and relabellings one by one."""

from itertools import product

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from moe_interp.stats import RoutingProfile, routing_shares
from moe_interp.stats._design import make_design
from moe_interp.stats._distances import DistanceSums, jensen_shannon


def profile_under(simulate, scheme, rng, *, n_wordings=5, n_topics=2, **effects):
    labels = simulate.labels(scheme, n_wordings=n_wordings, n_topics=n_topics)
    return simulate.profile(labels, simulate.shares(labels, rng, **effects))


def layer_inner_products(profile, layer):
    """Gower's matrix from scipy's distances, one pair of prompts at a time."""
    shares = profile.shares[:, layer]
    squared = np.array([[jensenshannon(p, q, base=2) ** 2 for q in shares] for p in shares])
    centre = np.eye(len(shares)) - 1 / len(shares)
    return centre @ (-np.nan_to_num(squared) / 2) @ centre


def explained(inner, full, reduced):
    hats = [model @ np.linalg.pinv(model) for model in (full, reduced)]
    return np.trace((hats[0] - hats[1]) @ inner)


def sums_of(inner, topic, harm):
    topics, column = np.eye(topic.max() + 1)[topic], harm[:, None]
    both, ones = np.hstack([topics, column]), np.ones((len(topic), 1))
    return {
        "total": np.trace(inner),
        "harm": explained(inner, both, topics),
        "nested": explained(inner, np.hstack([topics, topics * column]), topics),
        "topic": explained(inner, both, np.hstack([ones, column])),
    }


def test_divergence_is_that_of_scipy(rng):
    shares = rng.dirichlet(np.full(5, 0.3), size=7)
    shares[0] = [1, 0, 0, 0, 0]
    expected = [[jensenshannon(p, q, base=2) ** 2 for q in shares] for p in shares]
    assert np.allclose(jensen_shannon(shares), expected, atol=1e-12)


def test_disjoint_routing_is_one_bit_apart():
    assert jensen_shannon(np.array([[1.0, 0.0], [0.0, 1.0]]))[0, 1] == pytest.approx(1)


def test_divergence_does_not_depend_on_the_chunk(rng, monkeypatch):
    shares = rng.dirichlet(np.ones(5), size=9)
    whole = jensen_shannon(shares)
    monkeypatch.setattr("moe_interp.stats._distances._CHUNK_NUMBERS", 1)
    assert np.array_equal(jensen_shannon(shares), whole)


def test_sums_of_squares_are_those_of_linear_models_on_distances(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, harm=0.5)
    design = make_design(profile, scheme, need_topics=True)
    found = DistanceSums(design, profile.shares[design.rows])()
    for layer in range(profile.n_layers):
        expected = sums_of(layer_inner_products(profile, layer), design.topic, design.harm)
        for name, value in expected.items():
            assert found[name][layer] == pytest.approx(value), name


def test_expectation_of_harm_is_the_mean_over_every_sign_pattern(simulate, rng):
    profile = profile_under(simulate, "wording_pair", rng, harm=0.5)
    design = make_design(profile, "wording_pair", need_topics=True)
    found = DistanceSums(design, profile.shares)()
    inner = layer_inner_products(profile, 0)
    every = [
        sums_of(inner, design.topic, design.harm * np.array(signs)[design.exchange.unit])
        for signs in product((-1, 1), repeat=design.exchange.n_units)
    ]
    for name in ("harm", "nested"):
        assert found[f"null_{name}"][0] == pytest.approx(np.mean([own[name] for own in every]))


def test_expectation_of_topic_is_the_mean_over_permutations(simulate, rng):
    profile = profile_under(simulate, "pair", rng, n_wordings=4)
    design = make_design(profile, "pair", need_topics=True)
    found = DistanceSums(design, profile.shares)()
    inner, exchange = layer_inner_products(profile, 1), design.topic_exchange
    drawn = [
        sums_of(inner, rng.permutation(exchange.label)[exchange.unit], design.harm)["topic"]
        for _ in range(800)
    ]
    error = np.std(drawn) / np.sqrt(800)
    # Within four standard errors but for one run in 15,000.
    assert abs(found["null_topic"][1] - np.mean(drawn)) < 4 * error


def test_shares_of_hellinger_distances_are_those_of_the_points(simulate, scheme, rng, monkeypatch):
    profile = profile_under(simulate, scheme, rng, n_wordings=6, harm=0.3)

    def squared_hellinger(shares):
        return 1 - np.sqrt(shares[:, None] * shares[None]).sum(axis=2)

    monkeypatch.setattr("moe_interp.stats._distances.jensen_shannon", squared_hellinger)
    ours, theirs = (
        routing_shares(profile, distance=distance) for distance in ("hellinger", "jensen_shannon")
    )
    for factor in ours.shares:
        assert np.allclose(ours.shares[factor], theirs.shares[factor]), factor
        assert np.allclose(ours.replicates[factor], theirs.replicates[factor]), factor


def test_shares_are_near_those_of_hellinger_distance(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, n_wordings=12, n_topics=4, harm=0.4)
    ours = routing_shares(profile)
    theirs = routing_shares(profile, distance="jensen_shannon")
    for factor in ("topic", "harm", "interaction"):
        assert theirs.pooled(factor)[0] == pytest.approx(ours.pooled(factor)[0], abs=0.03)
        assert theirs.pooled(factor)[2] == pytest.approx(ours.pooled(factor)[2], abs=0.05)
    assert theirs.pooled("topic")[0] != ours.pooled("topic")[0]


def test_random_routers_are_measured_by_the_same_distance(simulate, rng, monkeypatch):
    profile = profile_under(simulate, "pair", rng)
    draws = np.stack([profile.shares, profile.shares[rng.permutation(profile.n_prompts)]])
    found = routing_shares(profile, random_profiles=draws, distance="jensen_shannon")
    assert np.allclose(found.random["topic"][0], found.shares["topic"])
    assert not np.allclose(found.random["topic"][1], found.shares["topic"])
    monkeypatch.setattr("moe_interp.stats._shares._CHUNK_NUMBERS", 1)
    again = routing_shares(profile, random_profiles=draws, distance="jensen_shannon")
    assert np.allclose(again.random["topic"], found.random["topic"])


def test_a_constant_layer_has_no_share(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    profile.shares[:, 1] = profile.shares[0, 1]
    found = routing_shares(profile, distance="jensen_shannon")
    assert found.constant_layers == (1,)


def test_warns_that_lengths_differ(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    n_slots = np.where(profile.harm, 40, 80)
    profile = RoutingProfile(**{**vars(profile), "n_slots": n_slots})
    with pytest.warns(UserWarning, match=r"these have 40 to 80 slots: a difference in length"):
        routing_shares(profile, distance="jensen_shannon")


def test_refuses_an_unknown_distance(simulate, rng):
    message = r"`distance` must be one of \('hellinger', 'jensen_shannon'\), got 'euclid'"
    with pytest.raises(ValueError, match=message):
        routing_shares(profile_under(simulate, "pair", rng), distance="euclid")
