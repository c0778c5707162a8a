import json

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from moe_interp.errors import DesignError
from moe_interp.stats import RoutingProfile, harm_test, naive_token_test

WARNING = "ignore:naive_token_test counts tokens"


def profile_under(simulate, rng, scheme="pair", *, n_slots=40, **effects):
    labels = simulate.labels(scheme, n_wordings=6)
    profile = simulate.profile(labels, simulate.shares(labels, rng, n_slots=n_slots, **effects))
    return RoutingProfile(**{**vars(profile), "n_slots": np.full(profile.n_prompts, n_slots)})


def test_warns_every_time_and_says_why(simulate, rng):
    profile = profile_under(simulate, rng)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"tokens of one prompt .* are not independent"):
            naive_token_test(profile)


@pytest.mark.filterwarnings(WARNING)
def test_agrees_with_scipy(simulate, rng):
    profile = profile_under(simulate, rng, harm=0.3)
    counts = np.rint(profile.shares * 40)
    found = naive_token_test(profile)
    for layer in range(2):
        table = [counts[profile.harm == level, layer].sum(axis=0) for level in (True, False)]
        expected = chi2_contingency(table, correction=False)
        assert found.statistic[layer] == pytest.approx(expected.statistic)
        assert found.p_value[layer] == pytest.approx(expected.pvalue)
    assert found.statistic[-1] == pytest.approx(found.statistic[:-1].sum())
    assert found.freedom.tolist() == [5, 5, 10]


@pytest.mark.filterwarnings(WARNING)
def test_tables_of_topics_add_up(simulate, rng):
    profile = profile_under(simulate, rng, harm=0.3)
    parts = [naive_token_test(profile.select(profile.topic == t)) for t in set(profile.topic)]
    found = naive_token_test(profile, within_topics=True)
    assert np.allclose(found.statistic, sum(part.statistic for part in parts))
    assert found.freedom.tolist() == sum(part.freedom for part in parts).tolist()


@pytest.mark.filterwarnings(WARNING)
def test_is_fooled_where_the_permutation_test_is_not(simulate, rng):
    found = []
    for _ in range(20):
        profile = profile_under(simulate, rng, "wording_pair", wording=0.7)
        found.append(
            (
                naive_token_test(profile).p_value[-1] <= 0.05,
                harm_test(profile, n_resamples=99, rng=rng).p_harm <= 0.05,
            )
        )
    naive, honest = np.sum(found, axis=0)
    assert naive >= 18
    # 6 or more of 20 happen about once in 3,000 runs at a level of 5 %.
    assert honest <= 5


@pytest.mark.filterwarnings(WARNING)
def test_misses_where_tokens_are_more_alike_than_chance(rng):
    # Every prompt spreads its slots evenly but for one, so that counts hardly vary.
    counts = np.full((40, 1, 4), 5)
    moved = rng.integers(0, 4, size=(40, 2))
    for row, (more, less) in enumerate(moved):
        counts[row, 0, more] += 1
        counts[row, 0, less] -= 1
    profile = RoutingProfile(
        shares=counts / 20,
        layers=(0,),
        span="user",
        topic=["a"] * 40,
        harm=np.arange(40) % 2 == 0,
        n_slots=np.full(40, 20),
    )
    found = []
    for _ in range(50):
        shuffled = RoutingProfile(**{**vars(profile), "harm": rng.permutation(profile.harm)})
        found.append(naive_token_test(shuffled).p_value[-1])
    assert min(found) > 0.05


@pytest.mark.filterwarnings(WARNING)
def test_a_constant_layer_has_p_one(simulate, rng):
    profile = profile_under(simulate, rng)
    profile.shares[:, 1] = [1, 0, 0, 0, 0, 0]
    found = naive_token_test(profile)
    assert found.p_value[1] == 1
    assert "Do not report it" in found.summary()
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.filterwarnings(WARNING)
def test_refuses_shares_without_counts(simulate, rng):
    labels = simulate.labels("pair")
    profile = simulate.profile(labels, simulate.shares(labels, rng))
    with pytest.raises(ValueError, match=r"counts slots: the profile needs `n_slots`"):
        naive_token_test(profile)


@pytest.mark.filterwarnings(WARNING)
def test_refuses_one_harm_level(simulate, rng):
    profile = profile_under(simulate, rng)
    with pytest.raises(DesignError, match=r"needs harmful and harmless prompts"):
        naive_token_test(profile.select(profile.harm))
