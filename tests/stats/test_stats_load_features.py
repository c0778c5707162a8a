import math

import numpy as np
import pytest

from moe_interp.stats import RoutingProfile, load_features


@pytest.fixture
def shares(simulate):
    """Few slots, so that many experts have none."""
    return simulate.shares(simulate.labels("pair"), np.random.default_rng(0), n_slots=8)


def make_profile(shares, **options):
    n = len(shares)
    return RoutingProfile(
        shares=shares,
        layers=tuple(range(2, 2 + shares.shape[1])),
        span="user",
        topic=["t"] * n,
        harm=[row % 2 == 0 for row in range(n)],
        **options,
    )


def slow(load, n_top):
    """The four statistics of one prompt and layer, written out."""
    n_experts = len(load)
    entropy = sum(-q * math.log(q) for q in load if q > 0)
    coverage = sum(1 for q in load if q > 0) / n_experts
    effective = math.exp(entropy) / n_experts
    return coverage, effective, coverage - effective, sum(sorted(load, reverse=True)[:n_top])


@pytest.mark.parametrize("n_top", [1, 3])
def test_the_statistics_are_those_written_out(shares, n_top):
    assert (shares == 0).any()
    found = load_features(make_profile(shares), n_top=n_top)
    for prompt in range(len(shares)):
        for row in range(2):
            expected = slow(shares[prompt, row].tolist(), n_top)
            own = [
                getattr(found, name)[prompt, row]
                for name in ("coverage", "effective_rate", "gap", "concentration")
            ]
            assert own == pytest.approx(expected, abs=1e-12)


def test_features_are_loads_then_statistics_layer_by_layer(shares):
    found = load_features(make_profile(shares))
    n, n_layers, n_experts = shares.shape
    assert found.features.shape == (n, n_layers * n_experts + 4 * n_layers)
    np.testing.assert_allclose(found.features[3, n_experts], shares[3, 1, 0])
    np.testing.assert_array_equal(found.statistics[:, 1], found.coverage[:, 1])
    np.testing.assert_array_equal(found.statistics[:, -1], found.concentration[:, 1])


def test_the_concentration_counts_as_many_experts_as_a_token_chooses(shares):
    profile = make_profile(shares, n_slots=np.full(len(shares), 8), top_k=2)
    assert load_features(profile).n_top == 2
    np.testing.assert_allclose(
        load_features(profile).concentration, np.sort(shares, axis=2)[:, :, -2:].sum(axis=2)
    )


def test_the_table_has_a_row_for_each_prompt_and_layer(shares):
    found = load_features(make_profile(shares))
    table = found.to_frame()
    row = table[(table["prompt"] == 5) & (table["layer"] == 3)]
    assert len(table) == 2 * len(shares)
    assert row["gap"].item() == found.gap[5, 1]


@pytest.mark.parametrize("n_top", [0, 7])
def test_a_number_of_experts_that_is_not_there_is_refused(shares, n_top):
    with pytest.raises(ValueError, match=r"`n_top` must lie between 1 and the 6 experts of a"):
        load_features(make_profile(shares), n_top=n_top)
