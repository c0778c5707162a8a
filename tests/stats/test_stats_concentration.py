import numpy as np
import pytest

from moe_interp.stats import concentration


def test_against_literal_loops():
    rng = np.random.default_rng(0)
    mass = rng.gamma(0.4, size=(3, 7))
    found = concentration(mass, layers=[1, 2, 9])
    for layer, row in enumerate(mass):
        shares = [value / sum(row) for value in row]
        entropy = -sum(q * np.log(q) for q in shares)
        assert found.entropy[layer] == pytest.approx(entropy)
        assert found.effective[layer] == pytest.approx(np.exp(entropy))
        apart = sum(abs(a - b) for a in row for b in row) / (2 * len(row) ** 2 * row.mean())
        assert found.gini[layer] == pytest.approx(apart)
    ordered = sorted(mass.ravel(), reverse=True)
    for part in (0.8, 0.9, 0.95):
        n = next(n for n in range(1, 22) if sum(ordered[:n]) >= part * mass.sum())
        assert found.coverage[part] == n


def test_even_and_single_are_the_extremes():
    found = concentration(np.array([[1.0, 1, 1, 1], [0, 0, 5, 0]]), layers=[0, 1])
    np.testing.assert_allclose(found.effective, [4, 1])
    np.testing.assert_allclose(found.gini, [0, 0.75], atol=1e-12)
    np.testing.assert_allclose(found.selectivity, [0, 1], atol=1e-12)


def test_equal_parts_need_no_expert_more_than_their_share():
    """Ten tenths sum to less than 0.8 at the eighth in floating point."""
    assert concentration(np.full((1, 10), 0.1), layers=[0]).coverage[0.8] == 8


def test_a_layer_without_anything_has_no_entropy():
    found = concentration(np.array([[0.0, 0.0], [1.0, 3.0]]), layers=[0, 1])
    assert np.isnan(found.entropy[0])
    assert np.isnan(found.gini[0])
    assert found.to_dict()["entropy"][0] is None
    assert "layer 1 is the most selective" in found.summary()


@pytest.mark.parametrize(
    ("mass", "layers", "options", "said"),
    [
        ([[1.0, 2.0]], [0, 1], {}, r"axes \(layer, expert\) with 2 layers, got the shape \(1, 2\)"),
        ([[1.0, -2.0]], [0], {}, "at least 0 that are not all 0"),
        ([[0.0, 0.0]], [0], {}, "at least 0 that are not all 0"),
        ([[1.0, np.nan]], [0], {}, "at least 0 that are not all 0"),
        ([[1.0, 2.0]], [0], {"covered": [1.5]}, r"must lie in \(0, 1\], got \(1.5,\)"),
    ],
)
def test_what_is_wrong_is_said(mass, layers, options, said):
    with pytest.raises(ValueError, match=said):
        concentration(np.array(mass), layers=layers, **options)
