"""Decoding against slow loops with scikit-learn, and every relabelling gone through."""

import itertools
import json

import numpy as np
import pytest
from decoding_loops import looped_auc, profile_under, splits_of
from sklearn.metrics import roc_auc_score

from moe_interp import ExpertSet
from moe_interp.errors import DesignError
from moe_interp.stats import RoutingProfile, transfer_auc
from moe_interp.stats._relabel import draw_labels
from moe_interp.stats._transfer import _adjusted
from moe_interp.stats._transfer_curve import grouped_auc
from moe_interp.stats._transfer_decode import auc_interval, decode
from moe_interp.stats._transfer_ridge import gram_matrix, smoother


def test_auc_is_that_of_a_loop_with_scikit_learn(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, harm=0.2)
    other = rng.normal(size=(profile.n_prompts, 5)) + 0.3 * profile.harm[:, None]
    found = transfer_auc(
        profile, baselines={"other": other}, n_resamples=19, rng=np.random.default_rng(3)
    )
    design, dealt, _ = splits_of(profile, 3)
    points = profile.embedding[design.rows].reshape(design.n_prompts, -1)
    assert set(found.splits) == set(dealt)
    for name, split in dealt.items():
        expected = looped_auc(points, design.harm, design.topic, split.folds)
        assert found[name].auc == pytest.approx(expected, abs=1e-9), name
        beside = looped_auc(other[design.rows], design.harm, design.topic, split.folds)
        assert found[name].baseline("other").auc == pytest.approx(beside, abs=1e-9), name
        assert found[name].baseline("other").difference == pytest.approx(expected - beside)
        for topic, auc in found[name].by_topic.items():
            kept = design.topic == design.topics.index(topic)
            alone = looped_auc(points, design.harm, design.topic, split.folds, kept=kept)
            assert auc == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_the_penalty_is_in_units_of_the_mean_squared_norm(simulate, rng, penalty):
    profile = profile_under(simulate, "pair", rng, harm=0.2)
    scaled = profile.embedding.reshape(profile.n_prompts, -1) * 1000
    found = transfer_auc(
        profile,
        baselines={"scaled": scaled},
        penalty=penalty,
        n_resamples=19,
        rng=np.random.default_rng(3),
    )
    design, dealt, _ = splits_of(profile, 3)
    for name, split in dealt.items():
        expected = looped_auc(scaled, design.harm, design.topic, split.folds, penalty=penalty)
        assert found[name].auc == pytest.approx(expected, abs=1e-9)
        assert found[name].baseline("scaled").auc == found[name].auc


def test_no_unit_topic_or_wording_stands_on_both_sides(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng)
    design, dealt, _ = splits_of(profile, 0)
    for name, split in dealt.items():
        assert sorted(split.tested) == list(range(design.n_prompts)), name
        for fold in split.folds:
            train, test = (design.rows[rows] for rows in (fold.train, fold.test))
            kinds = (
                ["pair"]
                + ["wording"] * (name != "within_topic")
                + ["topic"] * (name == "leave_topic_out")
            )
            for kind in kinds:
                values = getattr(profile, kind)
                shared = set(values[train]) & set(values[test]) - {None}
                assert not shared, (name, kind)
            if name == "within_topic":
                assert len(set(profile.topic[np.concatenate([train, test])])) == 1
                assert not set(profile.wording[train]) & set(profile.wording[test]) - {None}


def test_nested_wordings_do_not_divide_a_topic_that_is_held_out(simulate, rng):
    labels = simulate.labels("wording_pair", n_wordings=6)
    own = [f"{t}{w}" for t, w in zip(labels.topic, labels.wording, strict=True)]
    shares = simulate.shares(labels, rng)
    profile = RoutingProfile(
        shares=np.concatenate([shares, shares]),
        layers=(0, 1),
        span="user",
        topic=labels.topic * 2,
        harm=labels.harm * 2,
        pair=[f"{p}{n}" for n in (0, 1) for p in labels.pair],
        wording=own * 2,
    )
    found = transfer_auc(profile, n_resamples=19, rng=rng)
    assert found.scheme == "wording_pair"
    assert found["leave_topic_out"].n_folds == 3
    assert found["leave_topic_out"].words == "whole topics"


def test_deleting_a_unit_is_fitting_without_it(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, n_wordings=4)
    design, dealt, _ = splits_of(profile, 0)
    points = profile.embedding[design.rows].reshape(design.n_prompts, -1)
    gram = gram_matrix(points)
    for split in dealt.values():
        fold = split.folds[0]
        fitted = smoother(gram, fold, design.topic, penalty=1.0)
        labels, group = design.harm[fold.train], design.group[fold.train]
        found = fitted.deleted(labels, group, design.n_groups)
        strength = penalty_of(points, design.topic, fold)
        for number in np.unique(group):
            rest = fold.train[group != number]
            dummies = np.eye(len(design.topics))[design.topic]
            expected = with_intercepts(points, dummies, design.harm, rest, fold.test, strength)
            shift = found[:, number] - expected
            for code in np.unique(design.topic[fold.test]):
                own = shift[design.topic[fold.test] == code]
                assert np.allclose(own, own[0], atol=1e-6)


def penalty_of(points, topic, fold):
    rows = points[fold.train]
    means = np.stack([rows[topic[fold.train] == t].mean(axis=0) for t in topic[fold.train]])
    return ((rows - means) ** 2).sum() / len(rows)


def with_intercepts(points, dummies, harm, train, test, strength):
    """Ridge with unpenalised intercepts by least squares on stacked equations."""
    n_features = points.shape[1]
    design = np.hstack([points, dummies])
    ridge = np.hstack([np.sqrt(strength) * np.eye(n_features), np.zeros((n_features, 3))])
    target = np.concatenate([harm[train], np.zeros(n_features)])
    weights = np.linalg.lstsq(np.vstack([design[train], ridge]), target, rcond=None)[0]
    return points[test] @ weights[:n_features]


def test_interval_is_made_of_both_jackknives(simulate, rng):
    profile = profile_under(simulate, "pair", rng, harm=0.2)
    design, dealt, _ = splits_of(profile, 0)
    points = profile.embedding[design.rows].reshape(design.n_prompts, -1)
    split = dealt["leave_topic_out"]
    found = decode(gram_matrix(points), split, design, 1.0)
    for number in range(design.n_groups):
        kept = design.group != number
        alone = looped_auc(points, design.harm, design.topic, split.folds, kept=kept, quick=True)
        assert found.left_out[0, number] == pytest.approx(alone, abs=1e-9)
    low, high = auc_interval(found.auc, found.left_out)
    n_units = design.n_groups
    errors = np.sqrt((n_units - 1) ** 2 / n_units * found.left_out.var(axis=1, ddof=1))
    # 2.1098 is the 97.5 % quantile of Student's t with 17 degrees of freedom.
    middle, reach = np.arcsin(np.sqrt(found.auc)), 2.109816 * np.sqrt(errors[0] * errors[1])
    wide = reach / (2 * np.sqrt(found.auc * (1 - found.auc)))
    assert n_units == 18
    assert np.allclose(np.arcsin(np.sqrt([low, high])), [middle - wide, middle + wide])


def test_a_perfect_decoder_is_not_called_certain(simulate, rng):
    profile = profile_under(simulate, "pair", rng, harm=5.0, noise=0.0, topic=0.0, pair=0.0)
    own = transfer_auc(profile, n_resamples=99, rng=rng)["leave_topic_out"]
    assert own.auc == own.high == 1
    # Eighteen successes of eighteen: the exact binomial limit.
    assert own.low == pytest.approx(0.025 ** (1 / 18))


def test_ranks_are_those_of_scikit_learn_with_ties_and_rows_left_out(rng):
    group = np.repeat([0, 1, 2], [5, 9, 7])
    scores = rng.integers(0, 4, size=(30, 21)) * 10.0 ** rng.integers(-3, 4, size=(30, 1))
    harmful = rng.random((30, 21)) < 0.5
    kept = rng.random((30, 21)) < 0.8
    found = grouped_auc(scores, harmful, group, kept=kept)
    for column, number in itertools.product(range(30), range(3)):
        own = (group == number) & kept[column]
        level = harmful[column, own]
        if level.all() or not level.any():
            assert found.weight[column, number] == 0
        else:
            expected = roc_auc_score(level, scores[column, own])
            assert found.auc[column, number] == pytest.approx(expected)
            weight = level.sum() * (~level).sum() / len(level)
            assert found.weight[column, number] == pytest.approx(weight)


def test_scores_that_differ_by_rounding_tie():
    scores = np.array([[0.3, 0.1 + 0.2, 1.0, -1.0]])
    harmful = np.array([[True, False, True, False]])
    assert grouped_auc(scores, harmful, np.zeros(4, dtype=int)).mean == 3.5 / 4


def test_scores_that_are_rounding_alone_tie():
    scores = np.array([[1e-17, -2e-17, 3e-17, 0.0], [1e-7, -2e-7, 3e-7, 0.0]])
    harmful = np.array([[True, False, True, False]] * 2)
    assert grouped_auc(scores, harmful, np.zeros(4, dtype=int)).mean.tolist() == [0.5, 1.0]


def test_p_values_are_those_of_every_sign_pattern(simulate, rng):
    profile = profile_under(simulate, "wording_pair", rng, n_topics=2, harm=0.1)
    found = transfer_auc(profile, n_resamples=999, rng=np.random.default_rng(3))
    design, dealt, _ = splits_of(profile, 3)
    points = profile.embedding.reshape(profile.n_prompts, -1)
    assert found.exhaustive
    assert found.n_resamples == 32
    null = []
    for signs in itertools.product([1, -1], repeat=6):
        harm = design.harm * np.array(signs)[design.exchange.unit]
        null.append(
            [looped_auc(points, harm, design.topic, s.folds, quick=True) for s in dealt.values()]
        )
    null = np.array(null)
    scaled = (null - null.mean(axis=0)) / null.std(axis=0)
    for column, name in enumerate(dealt):
        reached = null[:, column] >= null[0, column] - 1e-9
        assert found[name].p_value == pytest.approx(reached.mean())
        largest = scaled.max(axis=1) >= scaled[0, column] - 1e-9
        assert found[name].p_adjusted == pytest.approx(largest.mean())
        assert found[name].chance == pytest.approx(null[:, column].mean())


def test_p_values_are_those_of_a_loop_over_the_same_draws(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, n_topics=2, harm=0.1)
    found = transfer_auc(profile, n_resamples=25, rng=np.random.default_rng(3))
    design, dealt, after = splits_of(profile, 3)
    points = profile.embedding[design.rows].reshape(design.n_prompts, -1)
    draws = np.concatenate(list(draw_labels(design.exchange, 25, after, width=design.n_prompts)))
    for name, split in dealt.items():
        null = []
        for drawn in draws:
            own = drawn[design.exchange.unit].astype(float)
            labels = design.harm * own if design.exchange.kind == "flip" else 2 * own - 1
            null.append(looped_auc(points, labels, design.topic, split.folds, quick=True))
        assert np.allclose(found[name].null, null, atol=1e-9)
        reached = (np.array(null) >= found[name].auc - 1e-9).sum()
        assert found[name].p_value == pytest.approx((1 + reached) / 26)
        assert found[name].p_adjusted >= found[name].p_value


def test_splits_are_adjusted_on_a_scale_that_holds_what_was_observed(rng):
    # The first split stands out, which widens its scale: its relabellings then are no rivals.
    observed, null = np.array([0.99, 0.56]), 0.5 + 0.05 * rng.normal(size=(39, 2))
    found = _adjusted(observed, null, exhaustive=False)
    every = np.vstack([observed, null])
    scaled = (every - every.mean(axis=0)) / every.std(axis=0)
    for split in range(2):
        reached = sum(max(row) >= scaled[0, split] for row in scaled[1:])
        assert found[split] == pytest.approx((1 + reached) / 40)
    apart = ((null - null.mean(axis=0)) / null.std(axis=0)).max(axis=1)
    assert (1 + (apart >= (observed - null.mean(axis=0))[1] / null.std(axis=0)[1]).sum()) / 40 != (
        pytest.approx(found[1])
    )


def test_draws_of_a_random_baseline_are_averaged(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    draws = rng.normal(size=(3, profile.n_prompts, 4))
    names = {"all": draws, **{f"draw{row}": draws[row] for row in range(3)}}
    found = transfer_auc(profile, baselines=names, n_resamples=19, rng=rng)
    for own in found.splits.values():
        alone = [own.baseline(f"draw{row}").auc for row in range(3)]
        assert own.baseline("all").auc == pytest.approx(np.mean(alone))
        assert np.allclose(own.baseline("all").draws, alone)


def test_the_same_features_are_not_told_apart(simulate, rng):
    profile = profile_under(simulate, "wording_pair", rng, harm=0.3)
    same = profile.embedding.reshape(profile.n_prompts, -1)
    found = transfer_auc(profile, baselines={"same": same}, n_resamples=19, rng=rng)
    for own in found.splits.values():
        other = own.baseline("same")
        assert (other.auc, other.low, other.high) == pytest.approx((own.auc, own.low, own.high))
        assert other.difference_low == pytest.approx(0, abs=1e-9)
        assert "is not told apart from same" in other.summary()


def test_chosen_experts_are_all_that_is_read(simulate, rng):
    profile = profile_under(simulate, "pair", rng, harm=0.3)
    chosen = ExpertSet.parse("L0E2,L1E0,L1E5")
    columns = profile.embedding[:, [0, 1, 1], [2, 0, 5]]
    found = transfer_auc(
        profile, experts=chosen, baselines={"columns": columns}, n_resamples=19, rng=rng
    )
    assert found.n_features == 3
    for own in found.splits.values():
        assert own.auc == own.baseline("columns").auc


def test_constant_routing_decodes_nothing(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    profile.shares[:] = profile.shares[0]
    found = transfer_auc(
        profile, baselines={"ones": np.full((profile.n_prompts, 2), 0.1)}, n_resamples=19, rng=rng
    )
    for own in found.splits.values():
        assert own.auc == own.baseline("ones").auc == 0.5
        assert own.p_value == own.p_adjusted == 1


def test_results_read_as_tables_and_as_text(simulate, rng):
    profile = profile_under(simulate, "wording_pair", rng, n_wordings=8, harm=0.5)
    noise = rng.normal(size=(profile.n_prompts, 3))
    found = transfer_auc(
        profile, baselines={"noise": noise}, calibration="platt", n_resamples=99, rng=rng
    )
    frame = found.to_frame()
    assert frame["features"].tolist() == ["routing", "noise"] * 3
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored["rows"][0]["auc"] == found["within_topic"].auc
    assert stored["splits"]["leave_topic_out"]["by_topic"].keys() == set(profile.topic)
    text = found.summary()
    assert "exchanging the labels of all prompts of a wording at once (8 units)" in text
    assert "leave_topic_out (whole topics, part by part with their wordings): AUC" in text
    assert "routing beats noise" in text
    assert "probabilities (platt): Brier score" in text


def test_the_same_state_gives_the_same_result(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng)
    found = [
        transfer_auc(profile, n_resamples=30, rng=np.random.default_rng(8)).to_dict()
        for _ in range(2)
    ]
    assert found[0] == found[1]


def test_refuses_splits_by_name_and_gives_the_others(simulate, rng):
    labels = simulate.labels("pair", n_topics=1, n_wordings=12)
    profile = simulate.profile(labels, simulate.shares(labels, rng))
    found = transfer_auc(profile, n_resamples=99, rng=rng)
    assert list(found.splits) == ["within_topic"]
    assert "All prompts have the topic 'topic0'" in found.refused["leave_topic_out"]
    assert "No prompt has a `wording`" in found.refused["leave_wording_out"]
    assert "leave_topic_out was refused: All prompts" in found.summary()
    with pytest.raises(KeyError, match=r"'leave_topic_out' was refused: All prompts have"):
        found["leave_topic_out"]
    with pytest.raises(KeyError, match=r"No split 'pooled'; there are \('within_topic',\)"):
        found["pooled"]
    with pytest.raises(KeyError, match=r"No baseline 'x'; given: \(\)"):
        found["within_topic"].baseline("x")
    with pytest.raises(DesignError, match=r"No split is possible. leave_topic_out: All prompts"):
        transfer_auc(profile, splits=["leave_topic_out"], rng=rng)


def test_refuses_what_shared_wordings_tie_together(simulate, rng):
    labels = simulate.labels("pair", n_topics=2, n_wordings=6)
    shares = simulate.shares(labels, rng)
    profile = RoutingProfile(**{**vars(simulate.profile(labels, shares)), "wording": ["w"] * 24})
    with pytest.raises(DesignError) as caught:
        transfer_auc(profile, scheme="pair", rng=rng)
    for reason in (
        "within_topic: Every topic has a single unit of prompts that share pairs or wordings",
        "leave_topic_out: All prompts are tied together by shared wordings and pairs: no topic",
        "leave_wording_out: All prompts are tied together by shared wordings and pairs: no wording",
    ):
        assert reason in str(caught.value)


def test_refuses_topics_that_their_wordings_tie_to_all_others(rng):
    # Two wordings, each of which occurs in both topics, are the only units; a third is alone.
    topic = ["a"] * 8 + ["b"] * 8
    profile = RoutingProfile(
        shares=rng.dirichlet(np.ones(4), size=(16, 1)),
        layers=(0,),
        span="user",
        topic=topic,
        harm=[True, False] * 8,
        pair=np.arange(16) // 2,
        wording=["w", "w", *["v"] * 6] * 2,
    )
    found = transfer_auc(profile, scheme="pair", n_folds=2, n_resamples=99, rng=rng)
    assert found["leave_topic_out"].n_folds == 4
    assert found["leave_topic_out"].n_tested == 16


def test_names_topics_it_cannot_test(simulate, rng):
    labels = simulate.labels("pair", n_topics=3, n_wordings=6)
    keep = np.array(
        [t != "topic2" or p == "2-0-0" for t, p in zip(labels.topic, labels.pair, strict=True)]
    )
    profile = simulate.profile(labels, simulate.shares(labels, rng)).select(keep)
    own = transfer_auc(profile, n_resamples=99, rng=rng)["within_topic"]
    assert own.left_out == ("topic2",)
    assert list(own.by_topic) == ["topic0", "topic1"]
    assert "not tested: topics 'topic2'" in own.summary()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ["by_topic"]}, r"`splits` must be some of \('within_topic', .*'by_topic'"),
        ({"splits": "within_topic"}, r"`splits` must be some of .* got 'within_topic'"),
        ({"n_folds": 1}, r"`n_folds` must be at least 2, got 1"),
        ({"penalty": 0.0}, r"`penalty` must be positive and finite, got 0.0"),
        ({"calibration": "beta"}, r"`calibration` must be None or one of .* got 'beta'"),
        ({"n_resamples": 10}, r"`n_resamples` = 10 allows no p-value"),
        ({"baselines": {"routing": np.zeros((36, 1))}}, r"must not be called 'routing'"),
        ({"baselines": {"x": np.zeros((5, 2))}}, r"Baseline 'x' .* 36 prompts .* shape \(5, 2\)"),
        ({"baselines": {"x": np.full((36, 1), np.nan)}}, r"Baseline 'x' holds NaN"),
        ({"experts": ExpertSet()}, r"`experts` is empty"),
        ({"experts": ExpertSet.parse("L5E0")}, r"names L5E0, but the profile has layers 0, 1"),
    ],
)
def test_refuses_options_that_do_not_fit(simulate, rng, options, message):
    profile = profile_under(simulate, "pair", rng)
    with pytest.raises(ValueError, match=message):
        transfer_auc(profile, rng=rng, **options)


def test_refuses_a_single_harm_level(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    with pytest.raises(DesignError, match=r"All 18 prompts are harmful"):
        transfer_auc(profile.select(profile.harm), rng=rng)
