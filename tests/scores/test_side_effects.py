import numpy as np
import pytest
from scipy import stats

from moe_interp.scores._side_effects import welch_interval


def test_the_interval_is_welchs():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 2, 9), rng.normal(0, 0.5, 14)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert welch_interval(first, second) == pytest.approx(tuple(expected))


def test_a_side_on_which_all_changed_alike_gives_an_interval_and_no_warning():
    low, high = welch_interval(np.full(8, -1.0), np.array([0.0, 0.0, 1.0]))
    assert low < -4 / 3 < high
    assert welch_interval(np.full(8, -1.0), np.zeros(3)) == (-1, -1)


def test_a_single_prompt_has_no_interval():
    assert np.isnan(welch_interval(np.ones(1), np.zeros(3))).all()
