"""Hellinger points that do not depend on how long a prompt is."""

from itertools import combinations

import numpy as np
import pytest

from moe_interp.stats import RoutingProfile, expert_tests, harm_test, routing_shares
from moe_interp.stats._embedding import hellinger_embedding, length_fair_embedding


def test_equal_lengths_give_the_root_of_the_share(rng):
    shares = rng.dirichlet(np.ones(4), size=(5, 2))
    n_slots = np.full(5, 12)
    assert np.array_equal(length_fair_embedding(shares, n_slots, 3), hellinger_embedding(shares))
    assert np.array_equal(length_fair_embedding(shares, None, 3), hellinger_embedding(shares))


def test_unequal_lengths_give_the_mean_over_every_subset_of_tokens(rng):
    # Three tokens, and six tokens, each with two different experts of four.
    chosen = [np.array([rng.permutation(4)[:2] for _ in range(n)]) for n in (3, 6)]

    def shares_of(tokens):
        return np.bincount(np.concatenate(tokens), minlength=4) / (2 * len(tokens))

    shares = np.stack([shares_of(tokens) for tokens in chosen])[:, None]
    found = length_fair_embedding(shares, np.array([6, 12]), 2)
    for own, tokens in zip(found, chosen, strict=True):
        every = [
            np.sqrt(shares_of(tokens[list(c)]) / 2) for c in combinations(range(len(tokens)), 3)
        ]
        assert np.allclose(own[0], np.mean(every, axis=0))


def test_the_mean_point_does_not_depend_on_the_length(rng):
    share = np.array([0.05, 0.15, 0.3, 0.5])
    n_slots = np.repeat([6, 60], 4000)
    counts = rng.multinomial(n_slots, share)
    points = length_fair_embedding(counts / n_slots[:, None], n_slots, 1)
    short, long = points[:4000], points[4000:]
    error = np.sqrt((short.var(axis=0) + long.var(axis=0)) / 4000)
    # Four experts within four standard errors but for one run in 4,000.
    assert (np.abs(short.mean(axis=0) - long.mean(axis=0)) < 4 * error).all()
    raw = hellinger_embedding(counts / n_slots[:, None])
    assert np.abs(raw[:4000].mean(axis=0) - raw[4000:].mean(axis=0)).max() > 20 * error.max()


def shorter_where_harmful(simulate, scheme, rng, *, n_wordings=10):
    """Nothing but length differs: harmful prompts have a quarter of the slots."""
    labels = simulate.labels(scheme, n_wordings=n_wordings)
    n_slots = np.where(labels.harm, 10, 40)
    odds = np.exp(rng.normal(size=(3, 1, 8)))[[int(name[5:]) for name in labels.topic]]
    odds = odds * np.exp(0.3 * rng.normal(size=odds.shape))
    counts = rng.multinomial(n_slots[:, None], odds / odds.sum(axis=2, keepdims=True))
    profile = simulate.profile(labels, counts / n_slots[:, None, None])
    return RoutingProfile(**{**vars(profile), "n_slots": n_slots})


@pytest.mark.parametrize("scheme", ["pair", "within_topic"])
def test_shorter_harmful_prompts_alone_are_no_effect_of_harm(simulate, rng, scheme):
    found, blind = [], []
    for _ in range(60):
        profile = shorter_where_harmful(simulate, scheme, rng)
        found.append(harm_test(profile, n_resamples=99, rng=rng).p_harm)
        unknown = RoutingProfile(**{**vars(profile), "n_slots": None})
        blind.append(harm_test(unknown, n_resamples=99, rng=rng).p_harm)
    # At a level of 5 % more than 8 of 60 happen about once in 600 runs.
    assert sum(p <= 0.05 for p in found) <= 8
    # Where lengths are not known the test is fooled.
    assert sum(p <= 0.05 for p in blind) >= 30


def test_random_routers_are_embedded_as_the_model_is(simulate, rng):
    profile = shorter_where_harmful(simulate, "pair", rng, n_wordings=6)
    draws = profile.shares[None].astype(np.float32)
    found = routing_shares(profile, random_profiles=draws)
    assert np.allclose(found.random["topic"][0], found.shares["topic"], atol=1e-6)
    assert np.allclose(found.random["harm"][0], found.shares["harm"], atol=1e-6)


def test_lengths_do_not_change_the_effect_of_an_expert(simulate, rng):
    profile = shorter_where_harmful(simulate, "pair", rng)
    found = expert_tests(profile, n_resamples=99, rng=rng)
    harm = profile.harm
    expected = profile.shares[harm].mean(axis=0) - profile.shares[~harm].mean(axis=0)
    assert np.allclose(found.effect, expected)


def build(**given):
    fields = {
        "shares": np.full((2, 1, 2), 0.5),
        "layers": (0,),
        "span": "user",
        "topic": ["a", "a"],
        "harm": [True, False],
    }
    return RoutingProfile(**{**fields, **given})


def test_refuses_shares_that_are_no_counts_of_the_slots():
    profile = build(n_slots=np.array([3, 4]))
    with pytest.raises(ValueError, match=r"prompts with 3 slots in `n_slots` \(3 tokens of `top_k"):
        _ = profile.embedding


def test_refuses_an_expert_that_took_more_than_one_slot_of_a_token():
    shares = np.array([[[1.0, 0.0]], [[0.5, 0.5]]])
    profile = build(shares=shares, n_slots=np.array([4, 2]), top_k=2)
    with pytest.raises(ValueError, match=r"at most one a token for each expert, got 1"):
        _ = profile.embedding


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 0}, r"`top_k` must be at least 1, got 0"),
        (
            {"n_slots": np.array([4, 3]), "top_k": 2},
            r"multiples of `top_k` = 2, got 3 for prompt 1",
        ),
    ],
)
def test_refuses_slots_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        build(**given)
