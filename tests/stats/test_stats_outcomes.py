import itertools
from math import comb

import numpy as np
import pytest

from moe_interp.stats import holm, mcnemar


@pytest.mark.parametrize(("lost", "gained"), list(itertools.product(range(5), range(4))))
def test_the_p_value_is_the_sum_over_all_signs(lost, gained):
    """Every prompt that moved is a fair coin: those outcomes as unlikely as this one count."""
    before = np.array([True] * lost + [False] * gained + [True, False])
    after = np.array([False] * lost + [True] * gained + [True, False])
    n = lost + gained
    chance = [comb(n, k) / 2**n for k in range(n + 1)]
    expected = sum(p for p in chance if p <= chance[lost] * (1 + 1e-9))
    found = mcnemar(before, after)
    assert found.p_value == pytest.approx(expected)
    assert (found.lost, found.gained, found.both, found.neither) == (lost, gained, 1, 1)
    assert (found.before, found.after, found.n) == (lost + 1, gained + 1, n + 2)


def test_holm_is_the_step_down_rule():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.uniform(size=6) ** 2
        adjusted = holm(p.tolist())
        for alpha in np.linspace(0.001, 0.999, 200):
            rejected, left = set(), len(p)
            for place in np.argsort(p):
                if p[place] > alpha / left:
                    break
                rejected.add(int(place))
                left -= 1
            assert set(np.flatnonzero(adjusted <= alpha).tolist()) == rejected


def test_holm_takes_p_values_only():
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\], got \[0.1, 1.2\]"):
        holm([0.1, 1.2])
    assert holm([]).tolist() == []
