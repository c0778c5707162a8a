"""Ranks of chosen experts beside those of random experts of like use."""

import itertools
import json

import numpy as np
import pytest
from scipy.stats import binomtest, mannwhitneyu

from moe_interp import ExpertSet, Scores, matched_ranks

LAYERS = (2, 5)


def scores(values, name="effect"):
    return Scores.of_array(name, "unit", np.array(values, dtype=float), layers=LAYERS)


def flat(n_experts, use=0.1):
    return scores(np.full((2, n_experts), use), "use")


def test_ranks_count_all_layers_from_the_largest_and_share_ties():
    ranking = scores([[3, 1, 1, 1], [1, 0, 0, 0]])
    found = matched_ranks(
        ranking, ["L5E0", "L2E0"], match=flat(4), rng=np.random.default_rng(0), n_draws=19
    )
    assert found.ranks.tolist() == [1.0, 3.5]
    assert found.mean_rank == 2.25
    assert found.n_ranked == 8
    assert str(found.experts) == "L2E0,L5E0"


def test_what_differs_by_rounding_only_is_a_tie():
    ranking = scores([[1, 1e-13, -1e-13, 0], [-1, 0, 0, 2e-13]])
    found = matched_ranks(
        ranking, "L2E1,L2E2", match=flat(4), rng=np.random.default_rng(0), n_draws=19
    )
    assert found.ranks.tolist() == [4.5, 4.5]


def test_experts_that_were_not_measured_are_neither_ranked_nor_drawn():
    ranking = scores([[3, np.nan, 2, 1], [np.nan] * 4])
    found = matched_ranks(ranking, "L2E2", match=flat(4), rng=np.random.default_rng(0))
    assert found.ranks.tolist() == [2.0]
    assert found.n_ranked == 3
    assert set(found.null.tolist()) == {1.0, 2.0, 3.0}


@pytest.mark.parametrize("seed", range(5))
def test_p_is_the_weight_of_the_sets_that_rank_as_early(seed):
    """All pairs of two layers, each weighed as the docstring says, written out."""
    rng = np.random.default_rng(seed)
    values, use = rng.normal(size=(2, 5)), rng.uniform(0.02, 0.3, size=(2, 5))
    found = matched_ranks(
        scores(values), "L2E1,L5E3", match=scores(use, "use"), rng=rng, n_draws=4999
    )
    order = np.argsort(np.argsort(-values.ravel())).reshape(2, 5) + 1
    mine = (order[0, 1] + order[1, 3]) / 2
    total = reached = 0.0
    for one, other in itertools.product(range(5), repeat=2):
        steps = np.log2(use[0, one] / use[0, 1]), np.log2(use[1, other] / use[1, 3])
        weight = np.exp(-0.5 * (steps[0] ** 2 + steps[1] ** 2))
        total += weight
        reached += weight * ((order[0, one] + order[1, other]) / 2 <= mine)
    assert found.p_value == pytest.approx(reached / total, abs=0.02)
    assert found.mean_rank == mine


def test_two_experts_of_a_layer_are_replaced_by_two_different_ones():
    """Of three alike, each of the three pairs is as likely: only one ranks as early."""
    ranking = scores([[3, 2, 1], [0, 0, 0]])
    found = matched_ranks(
        ranking, "L2E0,L2E1", match=flat(3), rng=np.random.default_rng(0), n_draws=2999
    )
    assert set(found.null.tolist()) == {1.5, 2.0, 2.5}
    assert found.p_value == pytest.approx(1 / 3, abs=0.03)


def test_of_several_measures_each_counts():
    use, weight = flat(3), scores([[0.1, 0.1, 0.0001], [0.1] * 3], "weight")
    ranking = scores([[3, 2, 1], [0, 0, 0]])
    found = matched_ranks(
        ranking, "L2E0,L5E0", match=(use, weight), rng=np.random.default_rng(0), n_draws=999
    )
    # L2E2 is never drawn; those of layer 5 are all tied.
    assert found.p_value == pytest.approx(1 / 2, abs=0.05)
    assert found.matched_on == ("use", "weight")
    np.testing.assert_allclose(found.use, [0.1, 0.1])
    np.testing.assert_allclose(found.null_use, [[0.1, 0.1]] * 999)


def test_the_score_of_use_itself_cannot_be_found_early():
    """Nothing of like use has another rank: what the most used experts have is no evidence."""
    use = scores([np.linspace(0.3, 0.5, 16), np.linspace(0.1, 0.4, 16)], "use")
    found = matched_ranks(use, "L2E15", match=use, rng=np.random.default_rng(0))
    assert found.ranks.tolist() == [1.0]
    assert found.p_value > 0.05


@pytest.mark.parametrize("chosen", ["L2E1,L2E2", "L2E1,L2E2,L5E4,L5E5"])
def test_scores_that_only_vary_more_with_use_are_found_early_as_often_as_p_says(chosen):
    """Calibration: unmatched ranks take often used experts for special, since theirs vary more."""
    rng = np.random.default_rng(7)
    experts = ExpertSet.parse(chosen)
    places = [(LAYERS.index(one.layer), one.expert) for one in experts]
    matched, unmatched = [], []
    for _ in range(300):
        # A few often used experts and many rare ones, as in models without a balancing loss.
        use = rng.gamma(0.3, 0.2, size=(2, 16)) + 1e-3
        for place in places:
            use[place] = 0.2
        values = rng.normal(size=(2, 16)) * use
        found = matched_ranks(
            scores(values), experts, match=scores(use, "use"), rng=rng, n_draws=99
        )
        matched.append(found.p_value <= 0.05)
        mine = [values[place] for place in places]
        others = np.delete(values.ravel(), [16 * row + expert for row, expert in places])
        # The largest magnitudes are at both ends, so the test of magnitudes shows the fault.
        unmatched.append(
            mannwhitneyu(np.abs(mine), np.abs(others), alternative="greater").pvalue <= 0.05
        )
    assert binomtest(sum(matched), 300, 0.05, alternative="greater").pvalue > 0.01
    assert np.mean(unmatched) > 0.3


def test_a_planted_difference_is_found():
    rng = np.random.default_rng(1)
    use = rng.uniform(0.1, 0.2, size=(2, 32))
    values = rng.normal(size=(2, 32))
    values[0, 3] = values[1, 7] = 6
    found = matched_ranks(scores(values), "L2E3,L5E7", match=scores(use, "use"), rng=rng)
    assert found.p_value < 0.02
    assert found.mean_rank == 1.5


def test_p_is_never_0():
    values = np.zeros((2, 64))
    values[0, :8] = 1
    experts = [(2, expert) for expert in range(8)]
    found = matched_ranks(
        scores(values), experts, match=flat(64), rng=np.random.default_rng(0), n_draws=99
    )
    assert found.null.min() > found.mean_rank
    assert found.p_value == 1 / 100


def test_the_result_says_itself_in_words_and_in_json():
    rng = np.random.default_rng(0)
    ranking = scores([[3, 2, 1, 0], [-1, -2, -3, -4]])
    found = matched_ranks(ranking, "L2E0,L2E2", match=flat(4), rng=rng, n_draws=199)
    low, high = np.quantile(found.null, [0.025, 0.975])
    assert found.summary() == (
        "By effect, L2E0,L2E2 have the ranks 1, 3 of 8, 2.0 on average; random experts of like "
        f"layers and use have {found.null.mean():.1f} (95 % {low:.1f} to {high:.1f}), "
        f"p = {found.p_value:.3g}."
    )
    told = json.loads(json.dumps(found.to_dict()))
    assert told["ranks"] == [1.0, 3.0]
    assert (told["p_value"], told["n_draws"]) == (found.p_value, 199)
    assert told["null_mean"] == pytest.approx(found.null.mean())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"experts": ()}, r"`experts` is empty"),
        ({"match": ()}, r"`match` must be Scores of use, or several"),
        ({"n_draws": 18}, r"`n_draws` must be at least 19, got 18"),
        ({"match": flat(5)}, r"'use' has layers \(2, 5\) of 5 experts, 'effect' has .* of 4"),
        ({"experts": "L2E4"}, r"'effect' does not say anything of L2E4: it was not measured"),
        ({"experts": "L3E0"}, r"'effect' does not say anything of L3E0"),
        ({"experts": "L5E3"}, r"'effect' does not say anything of L5E3"),
        ({"match": flat(4, use=-1)}, r"`match` must measure the use of every expert"),
    ],
)
def test_what_cannot_be_ranked_is_refused(changed, message):
    ranking = scores([[3, 2, 1, 0], [0, 0, 0, np.nan]])
    given = {"experts": "L2E0", "match": flat(4), "rng": np.random.default_rng(0)} | changed
    with pytest.raises((TypeError, ValueError), match=message):
        matched_ranks(ranking, **given)
