import numpy as np
import pytest

from moe_interp import stability_selection
from moe_interp.scores import Scores


def scores_of(values):
    return Scores.of_array("use", "fraction", np.asarray(values, dtype=float), layers=(4, 7))


@pytest.fixture
def noisy():
    rng = np.random.default_rng(1)
    values = rng.uniform(size=(12, 2, 5)) * 0.6
    values[:, 0, 3] += 0.5
    values[:, 1, 0] += 0.15
    return scores_of(values)


def test_against_a_literal_loop(noisy):
    found = stability_selection(noisy, n=3, n_resamples=50, rng=np.random.default_rng(5))
    rng, counts = np.random.default_rng(5), np.zeros(10)
    for _ in range(50):
        drawn = rng.integers(0, 12, 12)
        mean = noisy.array.values[drawn].mean(axis=0).ravel()
        counts[np.argsort(-mean)[:3]] += 1
    np.testing.assert_allclose(found.probability.mean.ravel(), counts / 50)
    assert found.probability.mean.sum() == pytest.approx(3)


def test_finds_what_is_always_large_and_gives_the_rest_a_probability(noisy):
    found = stability_selection(noisy, n=2, rng=np.random.default_rng(0))
    assert str(found.experts) == str(found.intersection) == "L4E3"
    assert 0 < found.probability.of(7, 0) < 0.9


def test_units_are_drawn_whole():
    """One unit of many prompts is either in or out, so the choice follows it."""
    values = np.zeros((6, 2, 2))
    values[:5, 0, 0] = 1
    values[5, 1, 1] = 1
    scores = scores_of(values)
    found = stability_selection(
        scores, n=1, n_resamples=4000, units=[0] * 5 + [1], rng=np.random.default_rng(0)
    )
    # Only when the second unit is drawn twice, one time in four, is the other expert larger.
    assert found.probability.of(7, 1) == pytest.approx(0.25, abs=0.03)
    prompts = stability_selection(scores, n=1, n_resamples=4000, rng=np.random.default_rng(0))
    assert prompts.probability.of(7, 1) < 0.05


def test_ties_share_the_places_that_are_left():
    found = stability_selection(scores_of(np.ones((3, 2, 4))), n=2, rng=np.random.default_rng(0))
    np.testing.assert_allclose(found.probability.mean, 0.25)


def test_what_is_stable_elsewhere_is_taken_out(noisy):
    rng = np.random.default_rng(0)
    assert str(stability_selection(noisy, n=2, exclude=noisy, rng=rng).experts) == ""
    other = scores_of(noisy.array.values[:, ::-1])
    found = stability_selection(noisy, n=2, exclude=other, rng=rng)
    assert str(found.experts) == "L4E3"
    frame = found.to_frame()
    assert frame.query("selected")[["layer", "expert"]].to_numpy().tolist() == [[4, 3]]
    assert frame["excluded_probability"].sum() == pytest.approx(2)


def test_the_threshold_is_reached_by_what_equals_it():
    found = stability_selection(
        scores_of(np.ones((3, 2, 4))), n=2, threshold=0.25, rng=np.random.default_rng(0)
    )
    assert len(found.experts) == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 10}, "`n` must lie between 1 and 9, got 10"),
        ({"n": 0}, "`n` must lie between 1 and 9, got 0"),
        ({"n": 2, "threshold": 0.0}, "`threshold` in"),
        ({"n": 2, "n_resamples": 0}, "`n_resamples` must be positive"),
        ({"n": 2, "units": [1, 2]}, "one unit for each of 12 prompts"),
    ],
)
def test_what_is_wrong_is_said(noisy, options, said):
    with pytest.raises(ValueError, match=said):
        stability_selection(noisy, rng=np.random.default_rng(0), **options)


def test_scores_must_be_by_prompt(noisy):
    flat = Scores.of_array("use", "fraction", noisy.mean, layers=(4, 7))
    with pytest.raises(ValueError, match="Scores of each prompt are needed, 'use' has none"):
        stability_selection(flat, n=2, rng=np.random.default_rng(0))
