import numpy as np
import pytest

from moe_interp.stats import coactivation, router_saturation


@pytest.fixture
def index():
    rng = np.random.default_rng(0)
    draws = [[rng.permutation(6)[:3] for _ in range(2)] for _ in range(40)]
    return np.array(draws)


def test_against_a_loop_over_tokens(index):
    found = coactivation(index, 7)
    for layer in range(2):
        use = [sum(e in token[layer] for token in index) for e in range(7)]
        for i in range(7):
            for j in range(7):
                both = sum(i in token[layer] and j in token[layer] for token in index)
                assert found.count[layer, i, j] == both
                if i == j:
                    assert found.share[layer, i, i] == found.expected[layer, i, i] == 0
                elif use[i]:
                    assert found.share[layer, i, j] == pytest.approx(both / use[i])
                    others = sum(use) - use[i]
                    assert found.expected[layer, i, j] == pytest.approx(2 * use[j] / others)
                else:
                    assert np.isnan(found.share[layer, i, j])


def test_rows_add_up_to_the_other_places(index):
    found = coactivation(index, 6)
    np.testing.assert_allclose(found.share.sum(axis=2), 2)
    np.testing.assert_allclose(found.expected.sum(axis=2), 2)


def test_the_order_of_the_chosen_does_not_matter(index):
    """Counting neighbours in rank only, as the paper's released code does, would."""
    np.testing.assert_array_equal(
        coactivation(index, 6).count, coactivation(index[..., ::-1].copy(), 6).count
    )
    shuffled = index[..., [1, 2, 0]]
    np.testing.assert_array_equal(coactivation(index, 6).count, coactivation(shuffled, 6).count)


def test_independent_choices_are_as_use_alone_gives():
    rng = np.random.default_rng(1)
    index = np.array([[rng.permutation(5)[:2]] for _ in range(6000)])
    found = coactivation(index, 5)
    np.testing.assert_allclose(found.share, found.expected, atol=0.03)


def test_an_expert_that_is_not_there_is_refused(index):
    with pytest.raises(ValueError, match="`index` must lie in 0 to 3, got 5"):
        coactivation(index, 4)


def test_saturation_is_the_part_in_common(index):
    other = np.roll(index, 1, axis=0)
    found = router_saturation(index, other)
    for token in range(len(index)):
        for layer in range(2):
            common = set(index[token, layer]) & set(other[token, layer])
            assert found[token, layer] == pytest.approx(len(common) / 3)
    assert (router_saturation(index, index) == 1).all()
    assert (router_saturation(index, index[..., ::-1]) == 1).all()
