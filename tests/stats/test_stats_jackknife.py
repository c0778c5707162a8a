import numpy as np
import pytest

from moe_interp.stats._jackknife import MAX_GROUPS, interval_factor, jackknife_error, make_jackknife


def cells(sizes):
    """Single prompts as units, so many in each cell of topic and harm."""
    cell = np.repeat(np.arange(len(sizes)), sizes)
    return np.arange(len(cell)), cell // 2, np.where(cell % 2, 1.0, -1.0), cell


def sum_of_means(values, cell, weight, keep):
    return sum(w * values[keep & (cell == c)].mean() for c, w in enumerate(weight))


def left_out(jackknife, values, cell, weight):
    return np.array(
        [
            sum_of_means(values, cell, weight, jackknife.group != group)
            for group in range(jackknife.n_groups)
        ]
    )


def test_errors_are_those_of_means_of_cells(rng):
    unit, topic, harm, cell = cells([3, 9, 5, 12])
    jackknife = make_jackknife(unit, topic, harm)
    values = rng.normal(size=len(cell)) + 10 * cell
    weight = [1.0, -2.0, 0.5, 3.0]
    whole = np.asarray(sum_of_means(values, cell, weight, cell >= 0))
    found = jackknife.error(whole, left_out(jackknife, values, cell, weight))
    sizes = np.bincount(cell)
    spread = [values[cell == c].var(ddof=1) for c in range(4)]
    expected = sum(w**2 * s / (n - 1) for w, s, n in zip(weight, spread, sizes, strict=True))
    assert found**2 == pytest.approx(expected)
    assert jackknife.degrees == len(cell) - 4
    # 2.059539 is the 97.5 % quantile of Student's t with 25 degrees of freedom.
    assert jackknife.reach() == pytest.approx(2.059539)


def test_sizes_of_cells_are_no_error(rng):
    unit, topic, harm, cell = cells([4, 20, 10, 6])
    jackknife = make_jackknife(unit, topic, harm)
    values = cell.astype(float)
    kept = [jackknife.group != group for group in range(jackknife.n_groups)]
    replicates = np.array([values[own].mean() for own in kept])
    assert jackknife.error(np.asarray(values.mean()), replicates) == pytest.approx(0, abs=1e-12)
    assert jackknife_error(replicates) > 0.1


def test_bundles_hold_units_of_one_stratum_and_count_by_their_size(rng):
    unit, topic, harm, cell = cells([30, 47, 101, 90])
    jackknife = make_jackknife(unit, topic, harm)
    assert abs(jackknife.n_groups - MAX_GROUPS) <= 2
    for group, stratum in enumerate(jackknife.stratum):
        own = cell[jackknife.group == group]
        assert set(own) == {own[0]}
        assert jackknife.parts[group] == np.bincount(cell)[own[0]] / len(own)
        assert (jackknife.stratum[jackknife.group[cell == own[0]]] == stratum).all()
    values = rng.normal(size=(400, len(cell)))
    weight = [1.0, 1.0, 1.0, 1.0]
    squares = []
    for row in values:
        whole = np.asarray(sum_of_means(row, cell, weight, cell >= 0))
        squares.append(jackknife.error(whole, left_out(jackknife, row, cell, weight)) ** 2)
    counts = np.bincount(cell)
    n_groups = np.bincount(jackknife.stratum)
    expected = (1 / counts * n_groups / (n_groups - 1)).sum()
    # 400 sums of some 60 squares have a standard error of about 1 %.
    assert np.mean(squares) == pytest.approx(expected, rel=0.04)


def test_units_are_compared_with_those_in_the_same_cells():
    # Wordings 0 to 2 are in both topics, 3 to 5 in the first only, on both sides.
    unit = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5])
    topic = np.array([0, 0, 1, 1] * 3 + [0] * 6)
    harm = np.tile([1.0, -1.0], 9)
    jackknife = make_jackknife(unit, topic, harm)
    assert jackknife.n_groups == 6
    of_unit = jackknife.stratum[jackknife.group[np.unique(unit, return_index=True)[1]]]
    assert len(set(of_unit[:3])) == len(set(of_unit[3:])) == 1
    assert of_unit[0] != of_unit[3]


def test_with_one_stratum_it_is_the_jackknife_of_one_population(rng):
    unit = np.repeat(np.arange(7), 4)
    topic, harm = np.tile([0, 0, 1, 1], 7), np.tile([1.0, -1.0], 14)
    jackknife = make_jackknife(unit, topic, harm)
    replicates = rng.normal(size=(7, 3))
    found = jackknife.error(rng.normal(size=3), replicates)
    assert np.allclose(found, jackknife_error(replicates))
    assert jackknife.reach() == interval_factor(7)


@pytest.mark.parametrize(
    ("sizes", "together"), [([1, 5, 8, 4], (0, 2)), ([1, 5, 1, 4], (0, 2)), ([1, 1, 1, 1], (0, 3))]
)
def test_units_alone_in_their_cells_are_put_with_others(sizes, together):
    unit, topic, harm, cell = cells(sizes)
    jackknife = make_jackknife(unit, topic, harm)
    one, other = (jackknife.stratum[jackknife.group[cell == c][0]] for c in together)
    assert one == other
    assert (np.bincount(jackknife.stratum) > 1).all()


def test_a_single_unit_has_no_error():
    one = make_jackknife(np.zeros(4, int), np.array([0, 0, 1, 1]), np.array([1.0, -1.0, 1.0, -1.0]))
    assert one.n_groups == 1
    assert one.reach() == interval_factor(1) == float("inf")
    with np.errstate(all="raise"):
        assert np.isnan(one.error(np.asarray(0.5), np.array([0.4])))
