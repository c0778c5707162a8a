import itertools
import json

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from moe_interp.errors import DesignError
from moe_interp.stats import detect_harm
from moe_interp.stats._logistic import coordinates, logistic_scores, platt_probabilities


def flat(profile):
    return profile.shares.reshape(profile.n_prompts, -1)


@pytest.fixture
def small(simulate):
    """Prompts of 3 topics and 6 wordings with a weak effect of harm; features one per share."""
    labels = simulate.labels("wording_pair", n_wordings=6)
    shares = simulate.shares(labels, np.random.default_rng(3), harm=0.1)
    profile = simulate.profile(labels, shares)
    return profile, flat(profile)


def slow_scores(train, test, harmful, weights=None):
    """Standardise, and fit scikit-learn's logistic regression with the stated penalty."""
    mean, spread = train.mean(axis=0), train.std(axis=0)
    train, test = (train - mean) / spread, (test - mean) / spread
    penalty = (train**2).sum(axis=1).mean() / 4
    fit = LogisticRegression(C=1 / penalty, tol=1e-10, solver="newton-cholesky")
    return fit.fit(train, harmful, sample_weight=weights).decision_function(test)


def slow_auc(features, harmful, topic, groups, *, weights=None, kept=None, again=True):
    """AUC of prompts of one group and topic, each pair of prompts counted alike within a cell."""
    weights = np.ones(len(harmful)) if weights is None else weights
    kept = np.ones(len(harmful), bool) if kept is None else kept
    total = weight = 0.0
    for group in np.unique(groups):
        train, test = groups != group, groups == group
        used = weights[train] if again else None
        scores = slow_scores(features[train], features[test], harmful[train], used)
        for own in np.unique(topic):
            cell = (topic[test] == own) & kept[test]
            n1, n0 = harmful[test][cell].sum(), (~harmful[test][cell]).sum()
            if n1 and n0:
                apart = scores[cell & harmful[test]][:, None] - scores[cell & ~harmful[test]]
                auc = ((apart > 0) + 0.5 * (apart == 0)).mean()
                total, weight = total + auc * n1 * n0 / (n1 + n0), weight + n1 * n0 / (n1 + n0)
    return total / weight


def detect(small, name="wording", **options):
    profile, features = small
    options = {"rng": np.random.default_rng(0), "n_resamples": 32} | options
    held_out = getattr(profile, name)
    return detect_harm(profile, {"load": features}, held_out=held_out, name=name, **options)


@pytest.mark.parametrize("name", ["wording", "topic"])
def test_the_auc_is_that_of_scikit_learn_fold_by_fold(small, name):
    profile, features = small
    groups = getattr(profile, name).astype(str)
    expected = slow_auc(features, profile.harm, profile.topic.astype(str), groups)
    assert 0.5 < expected < 1
    assert detect(small, name)["load"].auc == pytest.approx(expected, abs=1e-9)


def test_exchanged_labels_are_all_sign_patterns_of_the_wordings(small):
    profile, features = small
    wordings, topic = profile.wording.astype(str), profile.topic.astype(str)
    distinct = np.unique(wordings)
    null = []
    for signs in itertools.product([False, True], repeat=len(distinct) - 1):
        turned = dict(zip(distinct, (False, *signs), strict=True))
        harmful = profile.harm ^ np.array([turned[own] for own in wordings])
        null.append(slow_auc(features, harmful, topic, wordings))
    found = detect(small)
    assert found.exhaustive
    assert found.n_resamples == 32
    np.testing.assert_allclose(np.sort(found["load"].null), np.sort(null), atol=1e-9)
    reached = np.mean(np.array(null) >= null[0] - 1e-9)
    assert found["load"].p_value == pytest.approx(reached)
    assert found["load"].chance == pytest.approx(np.mean(null))


def test_the_interval_leaves_out_units_tested_and_learnt_from(small):
    from scipy.stats import t

    profile, features = small
    wordings, topic = profile.wording.astype(str), profile.topic.astype(str)
    errors = []
    for again in (False, True):
        values = []
        for own in np.unique(wordings):
            kept = wordings != own
            values.append(
                slow_auc(
                    features,
                    profile.harm,
                    topic,
                    topic,
                    weights=kept.astype(float),
                    kept=kept,
                    again=again,
                )
            )
        n = len(values)
        errors.append(np.sqrt((n - 1) / n * ((values - np.mean(values)) ** 2).sum()))
    found = detect(small, "topic")["load"]
    reach = t.ppf(0.975, n - 1) * np.sqrt(errors[0] * errors[1])
    wide = reach / (2 * np.sqrt(found.auc * (1 - found.auc)))
    centre = np.arcsin(np.sqrt(found.auc))
    low = np.sin(max(centre - wide, 0)) ** 2
    assert found.low == pytest.approx(low, abs=1e-6)
    assert found.low < found.auc < found.high


def test_the_second_features_are_compared_in_pairs_of_units(small):
    profile, features = small
    noise = np.random.default_rng(5).normal(size=features.shape)
    found = detect_harm(
        profile,
        {"load": features, "noise": noise, "again": features},
        held_out=profile.wording,
        name="wording",
        rng=np.random.default_rng(0),
    )
    assert found["noise"].difference == pytest.approx(found["load"].auc - found["noise"].auc)
    assert found["noise"].difference_low < found["noise"].difference
    again = found["again"]
    assert (again.difference, again.difference_low, again.difference_high) == (0, 0, 0)


def test_drawn_features_are_averaged_and_have_no_p_value(small):
    profile, features = small
    draws = np.stack([features, np.random.default_rng(5).normal(size=features.shape)])
    found = detect_harm(
        profile,
        {"load": features, "drawn": draws},
        held_out=profile.wording,
        name="wording",
        rng=np.random.default_rng(0),
    )
    assert found["drawn"].draws[0] == found["load"].auc
    assert found["drawn"].auc == pytest.approx(found["drawn"].draws.mean())
    assert np.isnan(found["drawn"].p_value)
    assert found["drawn"].calibration is None


def test_it_is_said_what_was_seen_in_training(small, simulate):
    by_wording, by_topic = detect(small), detect(small, "topic")
    assert (by_wording.topics_seen, by_wording.wordings_seen) == (1.0, 0.0)
    assert (by_topic.topics_seen, by_topic.wordings_seen) == (0.0, 1.0)
    labels = simulate.labels("pair")
    profile = simulate.profile(labels, simulate.shares(labels, np.random.default_rng(3)))
    assert detect((profile, flat(profile)), "topic").wordings_seen is None


def test_words_are_learnt_with_exchanged_labels_where_they_were_seen(small):
    profile, _ = small
    signed = [f"{w}{h}" for w, h in zip(profile.wording, profile.harm, strict=True)]
    words = (np.array(signed)[:, None] == np.unique(signed)).astype(float)
    of_topics, of_wordings = (
        detect((profile, words), name)["load"] for name in ("topic", "wording")
    )
    assert (of_topics.auc, of_topics.chance, of_topics.p_value) == (1, 1, 1)
    assert of_wordings.auc == 0.5


def test_probabilities_come_from_folds_inside_the_training_folds(small):
    profile, features = small
    found = detect_harm(
        profile,
        {"load": features},
        held_out=profile.topic,
        name="topic",
        rng=np.random.default_rng(0),
    )["load"].calibration
    # Three topics: inside a fold two are left, each of which is once learnt from.
    topic, harmful, expected = profile.topic.astype(str), profile.harm, {}
    for own in np.unique(topic):
        train, test = topic != own, topic == own
        unseen = np.empty(len(topic))
        for inner in np.unique(topic[train]):
            learn, judge = train & (topic != inner), topic == inner
            unseen[judge] = slow_scores(features[learn], features[judge], harmful[learn])
        scores = slow_scores(features[train], features[test], harmful[train])
        expected[own] = slow_platt(unseen[train], harmful[train], scores)
    probability = np.concatenate(list(expected.values()))
    level = np.concatenate([harmful[topic == own] for own in expected])
    assert found.brier == pytest.approx(np.mean((probability - level) ** 2), abs=1e-4)
    np.testing.assert_allclose(np.sort(found.probability), np.sort(probability), atol=1e-3)
    assert found.brier_reference == pytest.approx(0.25)


def slow_platt(scores, harmful, others):
    n1, n0 = harmful.sum(), (~harmful).sum()
    soft = np.where(harmful, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    fit = LogisticRegression(C=1e10, tol=1e-10, max_iter=10000).fit(
        np.concatenate([scores, scores])[:, None],
        np.repeat([True, False], len(scores)),
        sample_weight=np.concatenate([soft, 1 - soft]),
    )
    return fit.predict_proba(others[:, None])[:, 1]


@pytest.mark.parametrize("gap", [0.0, 1.0, 30.0])
def test_platts_curve_is_that_of_scikit_learn(gap):
    rng = np.random.default_rng(0)
    harmful = rng.random(60) < 0.3
    scores, others = rng.normal(size=60) + gap * harmful, 3 * rng.normal(size=9)
    np.testing.assert_allclose(
        platt_probabilities(scores, harmful, others),
        slow_platt(scores, harmful, others),
        atol=1e-4,
    )


@pytest.mark.parametrize(("n", "d"), [(60, 7), (40, 90)])
def test_every_labelling_and_weighting_is_fitted_as_by_scikit_learn(n, d):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(n, d)) * np.linspace(1, 9, d), rng.normal(size=(5, d))
    labels = rng.choice([-1.0, 1.0], size=(6, n))
    labels[0] = np.sign(train[:, -1])
    weights = np.ones((6, n))
    weights[1, ::3] = 0.0
    place = coordinates(train, test, penalty=1.0)
    found = logistic_scores(place, labels, weights)
    for row in range(6):
        slow = slow_scores(train, test, labels[row] > 0, weights[row])
        np.testing.assert_allclose(found[row], slow, atol=1e-3)


def test_features_that_do_not_vary_tell_nothing(small):
    profile, features = small
    found = detect((profile, np.ones_like(features)))["load"]
    assert (found.auc, found.chance) == (0.5, 0.5)
    assert found.calibration.brier == pytest.approx(0.25)


def test_a_regression_that_does_not_settle_says_so(monkeypatch):
    import moe_interp.stats._logistic as module

    monkeypatch.setattr(module, "_MAX_STEPS", 2)
    rng = np.random.default_rng(0)
    place = coordinates(rng.normal(size=(20, 3)), rng.normal(size=(2, 3)), penalty=1e-6)
    labels = rng.choice([-1.0, 1.0], size=(1, 20))
    with pytest.warns(UserWarning, match="had not settled after 2 steps; raise `penalty`"):
        logistic_scores(place, labels, np.ones_like(labels))


@pytest.mark.long
def test_without_an_effect_p_values_are_small_no_more_often_than_they_say(simulate):
    # 200 data sets at the 10 % level: more than 34 of them in one of 1000 runs of a correct test.
    labels = simulate.labels("wording_pair", n_topics=2, n_wordings=6)
    small_p = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        profile = simulate.profile(labels, simulate.shares(labels, rng, wording=1.0))
        small_p += detect((profile, flat(profile)), n_folds=3)["load"].p_value <= 0.1
    assert small_p <= binom.ppf(0.999, 200, 0.1)


def test_several_groups_are_left_out_together_if_they_are_many(small):
    found = detect(small, n_folds=3)
    assert found.n_folds == 3
    assert found.n_tested == 36
    assert all(name.count(",") == 1 for name in found["load"].by_fold)
    assert found.wordings_seen == 0


def test_two_groups_are_calibrated_unit_by_unit(small):
    profile, features = small
    half = np.where(np.isin(profile.wording.astype(str), ["w0", "w1", "w2"]), "a", "b")
    found = detect_harm(
        profile,
        {"load": features},
        held_out=half.tolist(),
        name="dataset",
        rng=np.random.default_rng(0),
    )
    assert set(found["load"].by_fold) == {"a", "b"}
    assert len(found["load"].calibration.probability) == 36


def test_the_result_survives_json_and_says_what_was_found(small):
    found = detect(small)
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["rows"][0]["auc"] == found["load"].auc
    assert written["by_fold"]["load"].keys() == {f"w{n}" for n in range(6)}
    said = found.summary()
    assert "wording left out, 6 folds, 36 prompts, 'user' tokens" in said
    assert "100% of the tested prompts' topics and 0% of their wordings" in said
    assert f"load {found['load'].auc:.3f} [" in said
    with pytest.raises(KeyError, match=r"No detector reads 'loads'; there are \('load',\)"):
        found["loads"]


def test_the_same_seed_gives_the_same_numbers(small):
    assert detect(small, n_folds=2).to_dict() == detect(small, n_folds=2).to_dict()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"n_folds": 1}, ValueError, "`n_folds` must be at least 2, got 1"),
        ({"penalty": 0.0}, ValueError, "`penalty` must be positive and finite, got 0.0"),
        ({"held_out": ["a"]}, ValueError, "`held_out` has 1 names for 36 prompts"),
        ({"held_out": ["a"] * 36}, DesignError, "All prompts have the dataset 'a': none is left"),
        (
            {"held_out": [None] * 2 + ["a"] * 34},
            DesignError,
            "2 of 36 prompts have no dataset, so that it cannot be left out",
        ),
        (
            {"held_out": ["a", "b"] * 18},
            DesignError,
            "Pair '0-0-0' has prompts of the dataset 'a' and 'b': one would be learnt from",
        ),
        ({"features": {}}, ValueError, "`features` is empty"),
        (
            {"features": {"load": np.ones((3, 2))}},
            ValueError,
            r"Features 'load' must be an array \(prompt, feature\) or .* 36 prompts",
        ),
        (
            {"features": {"load": np.full((36, 2), np.nan)}},
            ValueError,
            "Features 'load' hold NaN or infinite values",
        ),
        (
            {"features": {"load": np.ones((2, 36, 2))}},
            ValueError,
            "The first of `features` are those in question and must not be drawn",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(small, options, error, said):
    profile, features = small
    options = {"features": {"load": features}, "held_out": profile.wording} | options
    chosen = options.pop("features")
    with pytest.raises(error, match=said):
        detect_harm(profile, chosen, name="dataset", rng=np.random.default_rng(0), **options)


@pytest.mark.parametrize(
    ("held_out", "said"),
    [
        (["a", "b"] * 16, "With the dataset 'a' left out, only harmless prompts are left"),
        (
            ["a", "b", "c", "d"] * 8,
            "No prompts of one dataset and topic have both harm levels, so none can be compared",
        ),
    ],
)
def test_folds_without_both_levels_are_refused(simulate, held_out, said):
    labels = simulate.labels("within_topic", n_topics=2, n_wordings=8)
    profile = simulate.profile(labels, simulate.shares(labels, np.random.default_rng(0)))
    with pytest.raises(DesignError, match=said):
        detect_harm(
            profile,
            {"load": flat(profile)},
            held_out=held_out,
            name="dataset",
            rng=np.random.default_rng(0),
        )


def test_nothing_is_learnt_from_one_label():
    rng = np.random.default_rng(0)
    place = coordinates(rng.normal(size=(20, 3)), rng.normal(size=(2, 3)), penalty=1.0)
    labels, weights = np.ones((2, 20)), np.ones((2, 20))
    labels[1, :5], weights[1, :5] = -1.0, 0.0
    np.testing.assert_array_equal(logistic_scores(place, labels, weights), np.zeros((2, 2)))
