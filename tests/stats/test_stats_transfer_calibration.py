"""Probabilities of harm, from routing and from its baselines, against slow loops."""

import json

import numpy as np
import pytest
from decoding_loops import profile_under, splits_of
from scipy.optimize import minimize

from moe_interp.errors import DesignError
from moe_interp.stats import RoutingProfile, transfer_auc
from moe_interp.stats._transfer import _hold_out
from moe_interp.stats._transfer_calibration import make_calibrator


def inner_folds_of(profile, seed):
    """The inner folds that `transfer_auc` deals with the same seed."""
    design, dealt, _ = splits_of(profile, seed)
    (stream,) = np.random.default_rng(seed).spawn(1)
    held = _hold_out(profile, design)
    inner = {
        name: make_calibrator(split, held, design, method="platt", rng=stream).inner
        for name, split in dealt.items()
    }
    return design, dealt, inner


def ridge_scores(points, design, fold, penalty=1.0):
    """Scores of a fold's test prompts, from the mean of their topic or, if it is new, of all."""
    rows, labels = points[fold.train], design.harm[fold.train]
    topic = design.topic[fold.train]
    mean = {code: rows[topic == code].mean(axis=0) for code in set(topic)}
    centred = rows - np.stack([mean[code] for code in topic])
    level = labels - np.array([labels[topic == code].mean() for code in topic])
    strength = penalty * (centred**2).sum() / len(rows) * np.eye(points.shape[1])
    weights = np.linalg.solve(centred.T @ centred + strength, centred.T @ level)
    origin = [mean.get(code, rows.mean(axis=0)) for code in design.topic[fold.test]]
    return (points[fold.test] - np.stack(origin)) @ weights


def platt(scores, harmful):
    """The logistic curve of Platt (1999), minimised directly."""
    n_harmful, n_harmless = harmful.sum(), (~harmful).sum()
    target = np.where(harmful, (n_harmful + 1) / (n_harmful + 2), 1 / (n_harmless + 2))
    scaled = scores / scores.std()

    def loss(line):
        height = line[0] + line[1] * scaled
        return np.sum(np.logaddexp(0, height) - target * height)

    line = minimize(loss, np.zeros(2), tol=1e-12).x
    return lambda values: 1 / (1 + np.exp(-line[0] - line[1] * values / scores.std()))


def isotonic(scores, harmful):
    """The monotone fit by its largest of smallest means, straight between scores."""
    known, place, size = np.unique(scores, return_inverse=True, return_counts=True)
    total = np.cumsum(np.bincount(place, harmful))
    count = np.cumsum(size)
    n = len(known)
    mean = np.full((n, n), np.inf)
    for first in range(n):
        before = (total[first - 1], count[first - 1]) if first else (0, 0)
        mean[first, first:] = (total[first:] - before[0]) / (count[first:] - before[1])
    smallest = np.minimum.accumulate(mean[:, ::-1], axis=1)[:, ::-1]
    height = [smallest[: row + 1, row].max() for row in range(n)]
    return lambda values: np.interp(values, known, height)


CURVES = {"platt": platt, "isotonic": isotonic}


def looped_probability(points, design, split, inner, method):
    found = []
    for fold, folds in zip(split.folds, inner, strict=True):
        unseen = np.concatenate([ridge_scores(points, design, own) for own in folds])
        level = np.concatenate([design.harm[own.test] > 0 for own in folds])
        found.append(CURVES[method](unseen, level)(ridge_scores(points, design, fold)))
    return np.concatenate(found)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_probabilities_are_those_of_a_loop(simulate, scheme, rng, method):
    profile = profile_under(simulate, scheme, rng, n_wordings=8, harm=0.3)
    other = rng.normal(size=(profile.n_prompts, 5)) + 0.5 * profile.harm[:, None]
    found = transfer_auc(
        profile,
        baselines={"other": other},
        calibration=method,
        n_resamples=19,
        rng=np.random.default_rng(3),
    )
    design, dealt, inner = inner_folds_of(profile, 3)
    points = {
        "routing": profile.embedding[design.rows].reshape(design.n_prompts, -1),
        "other": other[design.rows],
    }
    for name, split in dealt.items():
        for features, own in (("routing", found[name]), ("other", found[name].baseline("other"))):
            expected = looped_probability(points[features], design, split, inner[name], method)
            near = np.isclose(own.calibration.probability, expected, atol=1e-5)
            assert near.all(), (name, features)
            assert (own.calibration.harmful == (design.harm[split.tested] > 0)).all()
            brier = np.mean((own.calibration.probability - own.calibration.harmful) ** 2)
            assert own.calibration.brier == pytest.approx(brier)


def test_inner_folds_hold_out_as_the_split_does(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, n_wordings=8)
    design, dealt, inner = inner_folds_of(profile, 0)
    units = _hold_out(profile, design).unit
    for name, split in dealt.items():
        for fold, folds in zip(split.folds, inner[name], strict=True):
            assert sorted(np.concatenate([own.test for own in folds])) == sorted(fold.train)
            for own in folds:
                assert set(own.train) | set(own.test) <= set(fold.train)
                assert not set(units[own.train]) & set(units[own.test])
                if name == "leave_topic_out":
                    assert not set(design.topic[own.train]) & set(design.topic[own.test])


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_probabilities_beat_the_share_of_harmful_prompts(simulate, rng, method):
    profile = profile_under(simulate, "wording_pair", rng, n_wordings=10, harm=0.8)
    found = transfer_auc(profile, calibration=method, n_resamples=19, rng=rng)
    for own in found.splits.values():
        brier = np.mean((own.calibration.probability - own.calibration.harmful) ** 2)
        assert own.calibration.brier == pytest.approx(brier)
        assert own.calibration.brier_reference == pytest.approx(0.25)
        assert own.calibration.brier < 0.2
        table = own.calibration.to_frame()
        assert table["n_prompts"].sum() == profile.n_prompts
        assert (table["predicted"].between(table["low"], table["high"])).all()


def test_probabilities_do_not_see_the_labels_they_are_tested_on(simulate, rng):
    profile = profile_under(simulate, "pair", rng, n_wordings=8, harm=0.4)
    found = transfer_auc(
        profile, calibration="platt", n_resamples=19, rng=np.random.default_rng(0)
    )["leave_topic_out"]
    _, dealt, _ = splits_of(profile, 0)
    fold = dealt["leave_topic_out"].folds[0]
    flipped = profile.harm.copy()
    flipped[fold.test] = ~flipped[fold.test]
    other = transfer_auc(
        RoutingProfile(**{**vars(profile), "harm": flipped}),
        calibration="platt",
        n_resamples=19,
        rng=np.random.default_rng(0),
    )["leave_topic_out"]
    own = slice(0, len(fold.test))
    assert np.allclose(other.calibration.probability[own], found.calibration.probability[own])
    assert (other.calibration.harmful[own] != found.calibration.harmful[own]).all()


def test_calibration_names_what_it_lacks(rng):
    topic = np.repeat(["a", "b"], [8, 8])
    harm = np.array([True] + [False] * 7 + [True, False] * 4)
    profile = RoutingProfile(
        shares=rng.dirichlet(np.ones(4), size=(16, 1)),
        layers=(0,),
        span="user",
        topic=topic,
        harm=harm,
    )
    options = {"n_resamples": 99, "rng": rng, "calibration": "platt"}
    with pytest.raises(DesignError, match=r"'within_topic' cannot be calibrated: a training fold"):
        transfer_auc(profile, splits=["within_topic"], **options)
    with pytest.raises(
        DesignError, match=r"'leave_topic_out' cannot be calibrated, for its training folds cannot"
    ):
        transfer_auc(profile, splits=["leave_topic_out"], **options)


def test_the_reference_predicts_what_each_decoder_has_seen(simulate, rng):
    labels = simulate.unbalanced(rng)
    profile = simulate.profile(labels, simulate.shares(labels, rng, n_layers=1))
    found = transfer_auc(profile, calibration="platt", n_resamples=19, rng=np.random.default_rng(0))
    design, dealt, _ = splits_of(profile, 0)
    level = design.harm > 0
    for name, split in dealt.items():
        own = [(level[fold.train].mean() - level[fold.test]) ** 2 for fold in split.folds]
        expected = np.concatenate(own).mean()
        assert found[name].calibration.brier_reference == pytest.approx(expected)
        assert abs(expected - 0.25) > 0.005


def test_the_same_features_have_the_same_probabilities(simulate, rng):
    profile = profile_under(simulate, "wording_pair", rng, n_wordings=8, harm=0.3)
    same = profile.embedding.reshape(profile.n_prompts, -1)
    found = transfer_auc(
        profile, baselines={"same": same}, calibration="platt", n_resamples=19, rng=rng
    )
    for own in found.splits.values():
        other = own.baseline("same").calibration
        assert np.allclose(other.probability, own.calibration.probability)
        assert other.brier_reference == own.calibration.brier_reference


def test_draws_of_a_random_baseline_are_believed_on_average(simulate, rng):
    profile = profile_under(simulate, "pair", rng, n_wordings=8)
    draws = rng.normal(size=(3, profile.n_prompts, 4))
    names = {"all": draws, **{f"draw{row}": draws[row] for row in range(3)}}
    found = transfer_auc(profile, baselines=names, calibration="platt", n_resamples=19, rng=rng)
    for own in found.splits.values():
        every = own.baseline("all").calibration
        alone = [own.baseline(f"draw{row}").calibration for row in range(3)]
        assert len({one.brier for one in alone}) == 3
        assert every.brier == pytest.approx(np.mean([one.brier for one in alone]))
        assert np.array_equal(every.probability, np.concatenate([o.probability for o in alone]))
        assert np.array_equal(every.harmful, np.tile(own.calibration.harmful, 3))
        assert every.to_frame()["n_prompts"].sum() == pytest.approx(own.n_tested)


def test_probabilities_change_no_other_number(simulate, rng):
    profile = profile_under(simulate, "pair", rng, n_wordings=8, harm=0.2)
    noise = {"noise": rng.normal(size=(2, profile.n_prompts, 3))}
    bare, calibrated = (
        transfer_auc(
            profile,
            baselines=noise,
            calibration=method,
            n_resamples=40,
            rng=np.random.default_rng(5),
        )
        for method in (None, "isotonic")
    )
    frame = calibrated.to_frame()
    assert frame.drop(columns="brier").equals(bare.to_frame())
    assert bare["within_topic"].calibration is None
    assert bare["within_topic"].baseline("noise").calibration is None


def test_brier_scores_stand_in_tables_and_text(simulate, rng):
    profile = profile_under(simulate, "pair", rng, n_wordings=8, harm=0.5)
    noise = {"noise": rng.normal(size=(profile.n_prompts, 3))}
    found = transfer_auc(profile, baselines=noise, calibration="platt", n_resamples=19, rng=rng)
    own = found["leave_topic_out"]
    other = own.baseline("noise").calibration
    assert own.calibration.brier < other.brier
    assert (
        f"probabilities (platt): Brier score {own.calibration.brier:.3f}, of the share of harmful "
        f"prompts alone {own.calibration.brier_reference:.3f}, from noise {other.brier:.3f}"
    ) in own.summary()
    frame = found.to_frame().set_index(["split", "features"])["brier"]
    assert frame["leave_topic_out", "routing"] == own.calibration.brier
    assert frame["leave_topic_out", "noise"] == other.brier
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))["splits"]["leave_topic_out"]
    assert stored["calibration"]["brier"] == own.calibration.brier
    assert stored["baseline_calibrations"]["noise"]["brier"] == other.brier
