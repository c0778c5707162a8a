from itertools import combinations

import numpy as np
import pytest

from moe_interp.stats import RoutingProfile, routing_shares


def profile_of(counts, n_slots, **labels):
    shares = counts / n_slots[:, None, None]
    given = {"layers": (0,), "span": "user", "topic": ["a", "b"], "harm": [True, False]} | labels
    return RoutingProfile(shares=shares, n_slots=n_slots, **given)


def test_a_point_is_the_mean_root_over_every_choice_of_as_many_tokens():
    counts, n_slots = np.array([[[3, 2, 0]], [[1, 1, 1]]]), np.array([5, 3])
    slots = [0, 0, 0, 1, 1]
    roots = [
        np.sqrt([np.mean([slots[i] == expert for i in chosen]) / 2 for expert in range(3)])
        for chosen in combinations(range(5), 3)
    ]
    points = profile_of(counts, n_slots).points(np.arange(2))
    assert points[0, 0] == pytest.approx(np.mean(roots, axis=0))
    assert points[1, 0] == pytest.approx(np.sqrt(np.full(3, 1 / 6)))


def test_a_shared_slot_of_a_random_router_lies_between_its_neighbours():
    n_slots, rows = np.array([5, 3]), np.arange(2)
    profile = profile_of(np.array([[[3, 2, 0]], [[1, 1, 1]]]), n_slots)
    whole = [
        profile.points(rows, np.array([[[c, 5 - c, 0]], [[1, 1, 1]]]) / n_slots[:, None, None])
        for c in (2, 3)
    ]
    half = profile.points(rows, np.array([[[2.5, 2.5, 0]], [[1, 1, 1]]]) / n_slots[:, None, None])
    assert half == pytest.approx((whole[0] + whole[1]) / 2)
    assert whole[1] == pytest.approx(profile.points(rows))


def test_shared_slots_are_refused_in_the_routing_of_a_model():
    profile = profile_of(np.array([[[2.5, 2.5]], [[1.0, 2.0]]]), np.array([5, 3]))
    with pytest.raises(ValueError, match="must be whole numbers of slots, at most one a token"):
        profile.points(np.arange(2))


def test_shares_beside_random_routers_that_share_slots(rng):
    n_slots = rng.integers(6, 12, size=32)
    counts = np.stack([rng.multinomial(n, np.full(4, 0.25)) for n in n_slots])[:, None]
    labels = {"topic": ["a", "b"] * 16, "harm": np.arange(32) // 2 % 2 == 0}
    profile = profile_of(counts, n_slots, **labels)
    shared = profile.shares + np.array([0.5, -0.5, 0, 0]) / n_slots[:, None, None]
    shared = np.clip(shared, 0, 1)
    found = routing_shares(profile, random_profiles=np.stack([profile.shares, shared]))
    assert found.random["topic"][0] == pytest.approx(found.shares["topic"])
    assert np.isfinite(found.random["topic"]).all()
