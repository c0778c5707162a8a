import json
from itertools import product

import numpy as np
import pytest
from scipy import stats

from moe_interp.stats import paired_permutation_test


def test_agrees_with_every_sign_pattern(rng):
    differences = rng.normal(size=(9, 4)) + np.array([0.8, 0.3, 0, 0])
    found = paired_permutation_test(differences, np.zeros((9, 4)), n_resamples=20_000, rng=rng)
    statistic = np.abs(differences.sum(axis=0))
    every = np.array(list(product((-1, 1), repeat=9)))
    exact = (np.abs(every @ differences) >= statistic - 1e-9).mean(axis=0)
    # Four standard errors of a proportion from 20,000 draws are at most 0.015.
    assert np.allclose(found.p_value, exact, atol=0.015)


def test_agrees_with_scipy(rng):
    harmless = rng.normal(size=(9, 1))
    harmful = harmless + 0.4 + rng.normal(size=(9, 1))
    exact = stats.permutation_test(
        (harmful[:, 0], harmless[:, 0]),
        lambda a, b: np.mean(a - b),
        permutation_type="samples",
    )
    found = paired_permutation_test(harmful, harmless, n_resamples=20_000, rng=rng)
    assert found.p_value[0] == pytest.approx(exact.pvalue, abs=0.015)
    assert found.effect[0] == pytest.approx(exact.statistic)


def test_statistic_is_the_paired_t_in_another_scale(rng):
    differences = rng.normal(size=(12, 3)) + 0.5
    found = paired_permutation_test(differences, np.zeros((12, 3)), n_resamples=9, rng=rng)
    student = found.statistic * np.sqrt(11 / (12 - found.statistic**2))
    assert np.allclose(student, stats.ttest_1samp(differences, 0).statistic)


def test_adjusted_p_is_that_of_the_largest_expert(rng):
    differences = rng.normal(size=(10, 5)) + np.array([0.7, 0.4, 0, 0, 0])
    found = paired_permutation_test(
        differences, np.zeros((10, 5)), n_resamples=299, rng=np.random.default_rng(2)
    )
    signs = 1 - 2 * np.random.default_rng(2).integers(0, 2, size=(299, 10), dtype=np.int8)
    length = np.sqrt((differences**2).sum(axis=0))
    observed = np.abs(differences.sum(axis=0) / length)
    reached = np.zeros(5)
    for pattern in signs:
        drawn = [abs((pattern * own).sum()) for own in differences.T] / length
        reached += drawn.max() >= observed - 1e-9
    assert np.allclose(found.p_adjusted, (1 + reached) / 300)
    assert (found.p_adjusted >= found.p_value).all()


def test_near_ties_count_as_ties():
    # Scores with one decimal: sums that are equal on paper differ in their last bits.
    differences = np.array([0.1, 0.2, 0.3, 0.3, -0.1, 0.7, 0.1])[:, None]
    whole = np.round(differences * 10)
    found = [
        paired_permutation_test(
            d, np.zeros((7, 1)), n_resamples=999, rng=np.random.default_rng(0)
        ).p_value[0]
        for d in (differences, whole)
    ]
    assert found[0] == found[1]


def test_ties_of_frequencies_never_make_p_smaller():
    changed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        whole = rng.integers(-9, 10, size=(7, 1)).astype(float)
        p = [
            paired_permutation_test(
                d, np.zeros((7, 1)), n_resamples=127, rng=np.random.default_rng(0)
            )
            for d in (whole, whole / 10)
        ]
        changed += p[0].p_value[0] != p[1].p_value[0] or p[0].p_adjusted[0] != p[1].p_adjusted[0]
    assert changed == 0


def test_p_is_never_zero(rng):
    found = paired_permutation_test(np.ones((30, 2)), np.zeros((30, 2)), n_resamples=99, rng=rng)
    assert found.p_value.tolist() == [0.01, 0.01]


def test_no_difference_has_p_one(rng):
    same = rng.normal(size=(8, 2))
    found = paired_permutation_test(same, same, n_resamples=99, rng=rng)
    assert found.p_value.tolist() == [1, 1]
    assert found.p_adjusted.tolist() == [1, 1]
    assert found.statistic.tolist() == [0, 0]


def test_sign_says_which_side_is_higher(rng):
    found = paired_permutation_test(np.full((6, 1), 2.0), np.ones((6, 1)), n_resamples=9, rng=rng)
    assert found.effect[0] == 1.0
    assert found.statistic[0] > 0


def test_p_values_are_uniform_when_nothing_happens(rng):
    p = [
        paired_permutation_test(
            rng.standard_t(3, size=(15, 1)), np.zeros((15, 1)), n_resamples=199, rng=rng
        ).p_value[0]
        for _ in range(300)
    ]
    # Fails about once in 1,000 runs of a correct test.
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_chunks_change_nothing(rng, monkeypatch):
    scores = rng.normal(size=(12, 4))

    def p_values():
        rng = np.random.default_rng(1)
        return paired_permutation_test(scores, np.zeros((12, 4)), n_resamples=64, rng=rng).p_value

    whole = p_values()
    monkeypatch.setattr("moe_interp.stats._paired._CHUNK_NUMBERS", 12 * 16)
    assert np.array_equal(whole, p_values())


@pytest.mark.parametrize("kind", ["any", "frequencies", "rare experts", "one expert", "copies"])
def test_counts_are_those_of_double_precision(rng, kind, monkeypatch):
    differences = rng.normal(size=(37, 60))
    if kind == "frequencies":
        differences = rng.integers(-3, 4, size=(37, 60)) / 10
    if kind == "rare experts":
        differences[:, ::2] = 0
        differences[rng.integers(37, size=30), np.arange(0, 60, 2)] = 0.3
    if kind == "one expert":
        differences = differences[:, :1]
    if kind == "copies":
        differences = np.repeat(differences[:, :1], 60, axis=1)
    found = paired_permutation_test(
        differences, np.zeros_like(differences), n_resamples=3000, rng=np.random.default_rng(5)
    )
    signs = 1 - 2 * np.random.default_rng(5).integers(0, 2, size=(3000, 37), dtype=np.int8)
    scaled = differences / np.sqrt((differences**2).sum(axis=0))
    null, observed = np.abs(signs @ scaled), np.abs(scaled.sum(axis=0))
    reached = (null >= observed - 1e-9).sum(axis=0)
    assert np.array_equal(found.p_value, (1 + reached) / 3001)
    largest = (null.max(axis=1)[:, None] >= observed - 1e-9).sum(axis=0)
    assert np.array_equal(found.p_adjusted, (1 + largest) / 3001)
    # What is computed again in small pieces is the same.
    monkeypatch.setattr("moe_interp.stats._paired._CHUNK_NUMBERS", 37 * 60 * 4)
    again = paired_permutation_test(
        differences, np.zeros_like(differences), n_resamples=3000, rng=np.random.default_rng(5)
    )
    assert np.array_equal(again.p_value, found.p_value)
    assert np.array_equal(again.p_adjusted, found.p_adjusted)


def test_result_is_safe_for_json(rng):
    found = paired_permutation_test(np.ones((3, 2)), np.zeros((3, 2)), n_resamples=9, rng=rng)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.to_frame().index.name == "expert"
    assert "over 3 pairs" in found.summary()


def test_refuses_a_single_pair(rng):
    with pytest.raises(ValueError, match=r"At least two pairs are needed, got 1\."):
        paired_permutation_test(np.ones((1, 2)), np.ones((1, 2)), rng=rng)


def test_refuses_no_resamples(rng):
    with pytest.raises(ValueError, match=r"`n_resamples` must be positive, got 0"):
        paired_permutation_test(np.ones((3, 2)), np.ones((3, 2)), n_resamples=0, rng=rng)


def test_refuses_nan(rng):
    with pytest.raises(ValueError, match=r"hold 1 NaN or infinite differences"):
        paired_permutation_test(np.array([[1.0], [np.nan]]), np.ones((2, 1)), rng=rng)
