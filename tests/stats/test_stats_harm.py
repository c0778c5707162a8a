import json

import numpy as np
import pytest
from scipy.stats import kstest

from moe_interp.errors import DesignError
from moe_interp.stats import RoutingProfile, harm_test
from moe_interp.stats._design import make_design
from moe_interp.stats._relabel import draw_labels


def profile_under(simulate, scheme, rng, *, n_wordings=8, n_topics=3, **effects):
    labels = simulate.labels(scheme, n_wordings=n_wordings, n_topics=n_topics)
    return simulate.profile(labels, simulate.shares(labels, rng, **effects))


def squared_distances(profile, rows):
    """Squared Hellinger distances between prompts, summed over layers, one pair at a time."""
    root = np.sqrt(profile.shares[rows])
    matrix = np.zeros((len(rows), len(rows)))
    for i in range(len(rows)):
        for j in range(len(rows)):
            matrix[i, j] = (1 - (root[i] * root[j]).sum(axis=1)).sum()
    return matrix


def permanova(matrix, full, reduced):
    """Sum of squares between two nested models from distances alone (McArdle and Anderson 2001)."""
    n_prompts = len(matrix)
    centre = np.eye(n_prompts) - 1 / n_prompts
    gower = centre @ (-matrix / 2) @ centre
    hats = [model @ np.linalg.pinv(model) for model in (full, reduced)]
    return np.trace((hats[0] - hats[1]) @ gower)


def naive_p_values(profile, design, harm_labels, topic_labels, *, exhaustive):
    matrix = squared_distances(profile, design.rows)
    ones = np.ones((design.n_prompts, 1))
    tolerance = 1e-9

    def statistics(topic, harm):
        topics, column = np.eye(topic.max() + 1)[topic], harm[:, None]
        both = np.hstack([topics, column])
        return {
            "harm": permanova(matrix, both, topics),
            "nested": permanova(matrix, np.hstack([topics, topics * column]), topics),
            "topic": permanova(matrix, both, np.hstack([ones, column])),
        }

    observed = statistics(design.topic, design.harm)
    reached = dict.fromkeys(observed, 0)
    for label in harm_labels:
        own = label[design.exchange.unit]
        flipped = design.harm * own if design.exchange.kind == "flip" else 2.0 * own - 1
        for name in ("harm", "nested"):
            drawn = statistics(design.topic, flipped)[name]
            reached[name] += drawn >= observed[name] - tolerance
    for label in topic_labels:
        drawn = statistics(label[design.topic_exchange.unit], design.harm)["topic"]
        reached["topic"] += drawn >= observed["topic"] - tolerance
    extra = 0 if exhaustive else 1
    return {
        name: (extra + reached[name]) / (extra + len(harm_labels)) for name in ("harm", "nested")
    } | {"topic": (1 + reached["topic"]) / (1 + len(topic_labels))}


def assert_agrees_with_a_loop(profile):
    design = make_design(profile, "auto", need_topics=True)
    found = harm_test(profile, n_resamples=99, rng=np.random.default_rng(5))
    same = np.random.default_rng(5)
    harm_labels = np.concatenate(list(draw_labels(design.exchange, 99, same, width=12)))
    topic_labels = np.concatenate(list(draw_labels(design.topic_exchange, 99, same, width=12)))
    expected = naive_p_values(
        profile, design, harm_labels, topic_labels, exhaustive=found.exhaustive
    )
    assert found.p_harm == pytest.approx(expected["harm"])
    assert found.p_harm_nested == pytest.approx(expected["nested"])
    assert found.p_topic == pytest.approx(expected["topic"])


def test_agrees_with_a_distance_matrix_and_a_loop(simulate, scheme, rng):
    assert_agrees_with_a_loop(profile_under(simulate, scheme, rng, topic=0.2, harm=0.1))


def studentised(profile, topic, harm):
    """Squared contrasts of single prompts over variances that let the harm levels differ."""
    points = np.sqrt(profile.shares / 2).reshape(profile.n_prompts, -1)
    contrasts, main_variance, nested = [], 0.0, np.zeros(2)
    for own in (topic == name for name in np.unique(topic)):
        apart = points[own] - points[own].mean(axis=0)
        weight = harm[own] - harm[own].mean()
        contrasts.append(weight @ apart)
        variance = (weight**2 @ (apart**2).sum(axis=1)) * own.sum() / (own.sum() - 1)
        main_variance += variance
        nested += np.array([(contrasts[-1] ** 2).sum(), variance]) / (weight**2).sum()
    found = {"harm": (sum(contrasts) ** 2).sum() / main_variance, "nested": nested[0] / nested[1]}
    apart, basis = points.copy(), np.zeros((len(points), 0))
    for level in (-1, 1):
        apart[harm == level] -= apart[harm == level].mean(axis=0)
    topics = np.eye(topic.max() + 1)[topic]
    levels = np.stack([harm > 0, harm < 0], axis=1).astype(float)
    adjusted = topics - levels @ np.linalg.lstsq(levels, topics, rcond=None)[0]
    basis = adjusted @ np.linalg.svd(adjusted, full_matrices=False)[2].T[:, :-1]
    basis = np.linalg.svd(basis, full_matrices=False)[0]
    # What a topic's label weighs is the squared length of its row before adjusting for harm.
    values = np.linalg.lstsq(adjusted, basis, rcond=None)[0]
    weight = (values**2).sum(axis=1)[topic]
    found["topic"] = ((basis.T @ points) ** 2).sum() / (weight @ (apart**2).sum(axis=1))
    return found


def test_agrees_with_the_loop_when_topic_and_harm_are_confounded(simulate, rng):
    labels = simulate.unbalanced(rng)
    profile = simulate.profile(labels, simulate.shares(labels, rng, topic=0.0, harm=0.1))
    design = make_design(profile, "auto", need_topics=True)
    found = harm_test(profile, n_resamples=199, rng=np.random.default_rng(5))
    same = np.random.default_rng(5)
    drawn = [
        np.concatenate(list(draw_labels(exchange, 199, same, width=12)))
        for exchange in (design.exchange, design.topic_exchange)
    ]
    observed = studentised(profile, design.topic, design.harm)
    null = [studentised(profile, design.topic, 2.0 * label - 1) for label in drawn[0]]
    for name, p_value in (("harm", found.p_harm), ("nested", found.p_harm_nested)):
        reached = sum(own[name] >= observed[name] - 1e-9 for own in null)
        assert p_value == pytest.approx((1 + reached) / 200), name
    null = [studentised(profile, label, design.harm)["topic"] for label in drawn[1]]
    reached = sum(own >= observed["topic"] - 1e-9 for own in null)
    assert found.p_topic == pytest.approx((1 + reached) / 200)


def test_few_units_are_gone_through_one_by_one(simulate, rng):
    profile = profile_under(simulate, "wording_pair", rng)
    found = [
        harm_test(profile, n_resamples=9999, rng=np.random.default_rng(seed)) for seed in (0, 1)
    ]
    assert found[0].exhaustive
    assert found[0].n_resamples == 2**7
    assert found[0].p_harm == found[1].p_harm
    assert (found[0].p_harm * 2**7) % 1 == 0


def test_ties_count_against_the_finding(simulate, rng):
    labels = simulate.labels("pair", n_topics=2, n_wordings=4)
    up = np.array(labels.harm) ^ np.isin(labels.pair, ["0-0-0", "1-2-0"])
    shares = np.where(up[:, None, None], [[[0.3, 0.7]]], [[[0.2, 0.8]]])
    found = harm_test(simulate.profile(labels, shares), n_resamples=999, rng=rng)
    # Six pairs move one way and two the other: of 256 patterns 74 are as one-sided as that.
    assert found.p_harm == 74 / 256
    assert found.p_topic == 1.0


def test_the_observed_labelling_is_counted(simulate, rng):
    profile = profile_under(simulate, "pair", rng, topic=3.0, harm=2.0)
    found = harm_test(profile, n_resamples=99, rng=rng)
    assert found.p_harm == found.p_topic == 1 / 100


@pytest.mark.parametrize("factor", ["p_harm", "p_harm_nested", "p_topic"])
def test_p_values_are_uniform_when_nothing_happens(simulate, scheme, rng, factor):
    # Wordings shift both sides differently; exchanging prompts would reject nearly always.
    effects = {"topic": 0.0 if factor == "p_topic" else 1.0, "wording": 0.7}
    found = [
        getattr(
            harm_test(
                profile_under(simulate, scheme, rng, n_layers=1, **effects),
                n_resamples=127,
                rng=rng,
            ),
            factor,
        )
        for _ in range(100)
    ]
    # A discrete p-value lies above the uniform one; two-sided would punish that. A correct test
    # fails either line about once in 1,000 runs.
    assert np.mean(np.array(found) <= 0.05) <= 0.13
    assert kstest(found, "uniform", alternative="greater").pvalue > 0.001


def test_holds_its_level_when_topics_are_unbalanced_and_confounded_with_harm(simulate, rng):
    found = []
    for _ in range(100):
        labels = simulate.unbalanced(rng)
        profile = simulate.profile(labels, simulate.shares(labels, rng, n_layers=1))
        found.append(harm_test(profile, n_resamples=99, rng=rng).p_harm)
    # 14 or more of 100 happen once in 2,000 runs at a level of 5 %.
    assert np.mean(np.array(found) <= 0.05) <= 0.13
    assert kstest(found, "uniform", alternative="greater").pvalue > 0.001


def test_exchanging_pairs_is_wrong_where_wording_repeats(simulate, rng):
    found = [
        harm_test(
            profile_under(simulate, "wording_pair", rng, n_wordings=6, n_topics=6, wording=0.7),
            n_resamples=99,
            rng=rng,
            scheme="pair",
        ).p_harm
        for _ in range(20)
    ]
    assert np.mean(np.array(found) <= 0.05) > 0.5


def test_has_power_for_harm_that_differs_by_topic(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, by_topic=1.5)
    assert harm_test(profile, n_resamples=199, rng=rng).p_harm_nested <= 0.01


def test_the_same_state_gives_the_same_result(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, topic=0.1)
    found = [harm_test(profile, n_resamples=50, rng=np.random.default_rng(3)) for _ in range(2)]
    assert found[0].to_dict() == found[1].to_dict()


def test_a_constant_layer_has_p_one(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, harm=1.0)
    profile.shares[:, 1] = profile.shares[0, 1]
    found = harm_test(profile, n_resamples=99, rng=rng)
    assert found.harm[1] == found.harm_nested[1] == found.topic[1] == 1
    assert found.harm[0] < 0.05


def test_relabelled_experts_change_nothing(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, harm=0.2)
    order = rng.permutation(profile.n_experts)
    renamed = RoutingProfile(**{**vars(profile), "shares": profile.shares[:, :, order]})
    found = [
        harm_test(own, n_resamples=99, rng=np.random.default_rng(0)) for own in (profile, renamed)
    ]
    assert found[0].to_dict() == found[1].to_dict()


def test_one_topic_leaves_harm_testable(simulate, rng):
    labels = simulate.labels("pair", n_topics=1)
    labels.topic[:] = [None] * labels.n
    labels = type(labels)(labels.topic, labels.harm, labels.pair, None)
    profile = simulate.profile(labels, simulate.shares(labels, rng, harm=1.0))
    with pytest.raises(DesignError, match=r"4 such units allow no p-value below 0.125"):
        harm_test(profile, rng=rng)
    found = harm_test(profile, rng=rng, alpha=0.2)
    assert np.isnan(found.p_topic)
    assert found.p_harm == 0.125
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rows"][-1]["p_topic"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_resamples": 10}, r"`n_resamples` = 10 allows no p-value up to alpha = 0.05; .* 19"),
        ({"alpha": 1.5}, r"`alpha` must lie between 0 and 1, got 1.5"),
    ],
)
def test_refuses_options_out_of_range(simulate, rng, options, message):
    with pytest.raises(ValueError, match=message):
        harm_test(profile_under(simulate, "pair", rng), rng=rng, **options)


def test_says_what_was_exchanged(simulate, rng):
    found = harm_test(profile_under(simulate, "pair", rng), n_resamples=99, rng=rng)
    assert "exchanged for harm: the two labels within a matched pair" in found.summary()
    assert "since no wording is shared and 100% of the prompts" in found.summary()
    assert found.to_dict()["reason"] == found.reason
    assert found.to_frame()["layer"].tolist() == [0, 1, "all"]
