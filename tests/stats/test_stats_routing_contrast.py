"""Routing contrasts: against the formulas written out, scipy, and the chance of random sets."""

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from moe_interp.errors import DesignError
from moe_interp.stats import routing_contrast


@pytest.fixture
def vectors():
    drawn = np.random.default_rng(0).gamma(0.5, size=(7, 3, 6))
    drawn[:, :, 4] = 0.0
    return drawn


UNITS = ["a", "a", "b", "b", "c", "c", "d"]
PAIRS = list(itertools.combinations(range(7), 2))


def contrasted(vectors, pairs=PAIRS, **options):
    first, second = zip(*pairs, strict=True)
    return routing_contrast(vectors, first, second, **{"top_k": 2, "units": UNITS} | options)


def test_divergences_are_those_of_scipy_and_overlaps_those_of_sets(vectors):
    found = contrasted(vectors)
    for (one, other), js, shared in zip(PAIRS, found.js_nats, found.overlap, strict=True):
        for layer in range(3):
            p, q = vectors[one, layer], vectors[other, layer]
            assert js[layer] == pytest.approx(jensenshannon(p, q) ** 2)
            tops = [set(sorted(range(6), key=lambda e, v=v: -v[e])[:2]) for v in (p, q)]
            assert shared[layer] == len(tops[0] & tops[1])
    np.testing.assert_allclose(found.values("js_bits"), found.js_nats / math.log(2))
    assert found.mean("js_nats")[0] == pytest.approx(found.js_nats.mean())


def test_what_shares_nothing_is_one_bit_apart_and_what_is_the_same_not_at_all():
    vectors = np.array([[[3.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]], [[0.75, 0.25, 0.0, 0.0]]])
    found = contrasted(vectors, [(0, 1), (0, 2)], units=["a", "b", "a"])
    np.testing.assert_allclose(found.values("js_bits").ravel(), [1.0, 0.0], atol=1e-12)
    assert found.overlap.ravel().tolist() == [0.0, 2.0]


def test_random_sets_share_what_chance_says():
    drawn = np.random.default_rng(1).random((400, 2, 8))
    found = routing_contrast(
        drawn, range(200), range(200, 400), top_k=3, units=[n % 200 for n in range(400)]
    )
    assert found.chance_overlap == 9 / 8
    mean, low, high = found.mean("overlap")
    assert low < 9 / 8 < high
    assert high - low < 0.3
    assert mean == pytest.approx(9 / 8, abs=0.15)


def test_intervals_leave_out_a_unit_with_all_its_pairs(vectors):
    found = contrasted(vectors)
    by_pair = found.js_nats.mean(axis=1)
    left = [
        np.mean(
            [v for v, p in zip(by_pair, PAIRS, strict=True) if name not in (UNITS[i] for i in p)]
        )
        for name in "abcd"
    ]
    error = math.sqrt(3 / 4 * sum((one - np.mean(left)) ** 2 for one in left))
    mean, low, high = found.mean("js_nats")
    assert mean == pytest.approx(by_pair.mean())
    # Student's t with 3 degrees of freedom.
    assert (high - mean) / error == pytest.approx(3.182446, rel=1e-5)
    assert low == pytest.approx(max(2 * mean - high, 0))


def test_a_ratio_is_over_the_units_of_both(vectors):
    one = contrasted(vectors, [(0, 1), (2, 3), (4, 5)])
    other = contrasted(vectors, [(0, 2), (1, 6), (3, 4)])
    ratio, low, high = one.ratio(other)
    assert ratio == pytest.approx(one.js_nats.mean() / other.js_nats.mean())
    values = []
    for name in "abcd":
        means = []
        for contrast, pairs in ((one, [(0, 1), (2, 3), (4, 5)]), (other, [(0, 2), (1, 6), (3, 4)])):
            kept = [n for n, pair in enumerate(pairs) if name not in {UNITS[i] for i in pair}]
            means.append(contrast.js_nats[kept].mean())
        values.append(math.log(means[0] / means[1]))
    error = math.sqrt(3 / 4 * sum((v - np.mean(values)) ** 2 for v in values))
    assert math.log(high / ratio) == pytest.approx(3.182446 * error, rel=1e-5)
    assert math.log(ratio / low) == pytest.approx(3.182446 * error, rel=1e-5)
    same = contrasted(vectors, [(0, 0), (1, 1)])
    assert math.isnan(one.ratio(same)[0])
    # Without unit a nothing is left of this one but what is the same: no logarithm.
    half = contrasted(vectors, [(0, 2), (3, 3), (4, 4)])
    ratio, low, high = half.ratio(other)
    assert low == 0 < ratio < high
    assert ratio == pytest.approx(half.js_nats.mean() / other.js_nats.mean())


def test_tokens_of_a_pair_are_averaged(vectors):
    whole = contrasted(vectors, [(0, 1), (2, 3), (4, 5)])
    found = contrasted(vectors, [(0, 1), (2, 3), (4, 5)], owner=[7, 3, 7])
    assert found.n_pairs == 2
    np.testing.assert_allclose(found.js_nats[0], whole.js_nats[1])
    np.testing.assert_allclose(found.js_nats[1], whole.js_nats[[0, 2]].mean(axis=0))
    assert found.units[0] == ("b", "a")


def test_chunks_change_nothing(vectors, monkeypatch):
    whole = contrasted(vectors)
    monkeypatch.setattr("moe_interp.stats._routing_contrast._CHUNK_NUMBERS", 40)
    again = contrasted(vectors)
    assert np.array_equal(whole.js_nats, again.js_nats)
    assert np.array_equal(whole.overlap, again.overlap)


def test_one_unit_gives_no_interval_and_says_so_in_json(vectors):
    found = contrasted(vectors, [(0, 1)])
    assert all(map(math.isnan, found.mean("overlap")[1:]))
    rows = found.to_dict()["rows"]
    assert rows[-1]["layer"] == "all"
    assert rows[-1]["js_bits_low"] is None
    assert len(found.to_frame()) == 4


def test_a_summary_names_both_units_and_chance(vectors):
    said = contrasted(vectors, layers=[3, 5, 8], name="topic", words="other topic").summary()
    assert said.startswith("topic: ")
    assert "bits" in said
    assert "nats" in said
    assert "(chance 0.67); 21 pairs of 4 units: other topic" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 7}, r"`top_k` must lie between 1 and the 6 experts, got 7"),
        ({"units": ["a"]}, r"= \(7, 3, 6\), but there are 1 `units` and 3 `layers`"),
        ({"layers": [1]}, r"there are 7 `units` and 1 `layers`"),
        ({"owner": [0]}, r"`owner` has 1 entries for 21 pairs"),
    ],
)
def test_what_does_not_fit_is_refused(vectors, options, said):
    with pytest.raises(ValueError, match=said):
        contrasted(vectors, **options)


def test_vectors_that_are_no_routing_are_refused(vectors):
    for value in (-1.0, np.nan):
        wrong = vectors.copy()
        wrong[0, 0, 0] = value
        with pytest.raises(
            ValueError, match=r"`vectors` must be finite, not negative, and above 0"
        ):
            contrasted(wrong)
    vectors[0, 1] = 0.0
    with pytest.raises(ValueError, match=r"above 0 somewhere in each layer"):
        contrasted(vectors)
    with pytest.raises(ValueError, match=r"`second` has 2 entries for 1 pairs"):
        routing_contrast(vectors, [1], [2, 3], top_k=2, units=UNITS)
    with pytest.raises(DesignError, match=r"There is no pair to compare"):
        routing_contrast(vectors, [], [], top_k=2, units=UNITS)
    with pytest.raises(ValueError, match=r"`measure` must be one of \('js_nats', .*, got 'kl'"):
        contrasted(vectors[1:], [(0, 1)], units=UNITS[1:]).mean("kl")
