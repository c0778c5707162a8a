"""Rank correlations against scipy, and intervals that know what was resampled."""

import numpy as np
import pytest
from scipy import stats

from moe_interp import compare
from moe_interp.scores import Scores

LAYERS = (2, 5)


def scored(name, values):
    return Scores.of_array(name, "nats", values, layers=LAYERS)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(1, 2, 8))
    one = scored("count", truth + 0.5 * rng.normal(size=(30, 2, 8)))
    other = scored("cause", truth + 2.0 * rng.normal(size=(30, 2, 8)))
    return one, other, scored("fixed", -truth[0])


def test_correlations_are_spearmans(drawn):
    found = compare(*drawn, rng=np.random.default_rng(1), n_resamples=9)
    for i, one in enumerate(drawn):
        for j, other in enumerate(drawn):
            expected = stats.spearmanr(one.mean.ravel(), other.mean.ravel()).statistic
            assert found.correlation[i, j] == pytest.approx(expected)
    assert found.correlation[0, 2] < -0.5
    assert found.n_experts == 16


def test_intervals_come_from_resampling_prompts_in_step(drawn):
    one, other, _ = drawn
    found = compare(*drawn, rng=np.random.default_rng(1), n_resamples=400)
    rng, resampled = np.random.default_rng(1), []
    for _ in range(400):
        rows = rng.integers(30, size=30)
        means = [score.array.values[rows].mean(0).ravel() for score in (one, other)]
        resampled.append(stats.spearmanr(*means).statistic)
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert found.low[0, 1] == pytest.approx(low)
    assert found.high[0, 1] == pytest.approx(high)
    assert found.low[0, 1] < found.correlation[0, 1] < found.high[0, 1]
    assert np.isfinite(found.low[0, 2])
    assert np.isnan(found.low[2, 2])


def test_experts_not_measured_by_all_are_left_out(drawn):
    one, other, _ = drawn
    values = other.array.values.copy()
    values[:, 0, :5] = np.nan
    found = compare(one, scored("part", values), rng=np.random.default_rng(0), n_resamples=9)
    expected = stats.spearmanr(one.mean.ravel()[5:], values.mean(0).ravel()[5:]).statistic
    assert found.n_experts == 11
    assert found.correlation[0, 1] == pytest.approx(expected)


def test_it_is_shown_as_a_table_and_in_words(drawn):
    found = compare(*drawn, rng=np.random.default_rng(0), n_resamples=99)
    frame = found.to_frame()
    assert list(frame) == ["layer", "expert", "count", "cause", "fixed"]
    assert frame["cause"].to_numpy() == pytest.approx(drawn[1].mean.ravel())
    assert found.to_dict()["low"][2][2] is None
    words = found.summary()
    assert "Spearman rank correlation over 16 experts:" in words
    assert f"  count ~ cause: {found.correlation[0, 1]:.2f} [" in words


WRONG = [
    (lambda a, b: (a,), "needs at least two scores, got 1"),
    (lambda a, b: (a, a), r"must have different names to be told apart, got \['count', 'count'\]"),
    (
        lambda a, b: (a, Scores.of_array("x", "u", b.array.values, layers=(0, 1))),
        r"'x' has layers \(0, 1\) of 8 experts, 'count' has \(2, 5\) of 8",
    ),
    (lambda a, b: (a, scored("x", b.array.values[:7])), r"The scores have \[7, 30\] prompts"),
    (lambda a, b: (a, scored("x", np.full((2, 8), np.nan))), "Only 0 experts are measured by all"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_scores_that_cannot_be_compared_are_refused(drawn, make, message):
    with pytest.raises(ValueError, match=message):
        compare(*make(*drawn[:2]), rng=np.random.default_rng(0))


def test_an_impossible_confidence_is_refused(drawn):
    with pytest.raises(ValueError, match=r"`confidence` must lie between 0 and 1, got 1\.5"):
        compare(*drawn, rng=np.random.default_rng(0), confidence=1.5)
