"""A reduced run of benchmarks/calibration.py: the same cases, few simulations of each.

The full run measures to a point; this one only sees a test that is badly off.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from moe_interp.stats import transfer_auc

PATH = Path(__file__).parents[2] / "benchmarks" / "calibration.py"
N_RUNS = 40
# Rejections at a level of 5 % exceed this once in 2,000 runs of a correct test.
MOST = int(binom.isf(1 / 2000, N_RUNS, 0.05))
HONEST = ("harm", "harm within topics", "any expert, max-T", "false discoveries")


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("calibration", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibration"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["calibration"]


def found(calibration, name, n_runs=N_RUNS):
    total = calibration.simulate(calibration.cases()[name][0], n_runs, [1])
    return {measure: own[1] / own[0] for measure, own in total.items()}


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "unbalanced topics, confounded with harm",
        "shared wording, two sides",
        "clusters of paraphrases",
        "unbalanced, harmful prompts a third as long",
    ],
)
def test_tests_of_harm_hold_their_level_where_the_naive_one_does_not(calibration, name):
    rates = found(calibration, f"level: {name}")
    for measure in HONEST:
        assert rates[measure] * N_RUNS <= MOST, measure
    assert rates["naive"] > 0.8


@pytest.mark.long
def test_labels_drawn_by_lot_on_real_routing_are_seldom_found(calibration):
    rates = found(calibration, "level: organism, labels drawn for whole wordings")
    for measure in HONEST:
        assert rates[measure] * N_RUNS <= MOST, measure
    assert rates["naive"] > 0.5


@pytest.mark.long
def test_false_discoveries_stay_below_their_rate(calibration):
    rates = found(calibration, "discoveries: pairs", 20)
    assert rates["false discoveries"] <= 0.12


@pytest.mark.long
def test_a_small_effect_is_found(calibration):
    rates = found(calibration, "power: pairs, harm 0.3", 10)
    assert rates["harm"] == 1


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["wording_pair", "pair", "within_topic", "unbalanced"])
def test_decoding_finds_nothing_as_often_as_its_level_says(simulate, scheme):
    rng, rejected, n_runs = np.random.default_rng(7), [], 400
    for _ in range(n_runs):
        if scheme == "unbalanced":
            labels = simulate.unbalanced(rng)
        else:
            labels = simulate.labels(scheme, n_topics=2, n_wordings=8)
        shares = simulate.shares(labels, rng, n_layers=1, topic=2.0, wording=0.7)
        run = transfer_auc(simulate.profile(labels, shares), n_resamples=39, rng=rng)
        splits = run.splits.values()
        rejected.append(
            [own.p_value <= 0.05 for own in splits]
            + [min(own.p_adjusted for own in splits) <= 0.05]
        )
    # Each of the columns lies outside once in a hundred runs of a correct test.
    low, high = binom.interval(0.99, n_runs, 0.05)
    found = np.sum(rejected, axis=0)
    assert ((found >= low) & (found <= high)).all(), found


def test_blocks_kept_add_up(calibration):
    kept = {"case": {"0": {"rate": [2, 1.0, 1.0]}, "3": {"rate": [2, 2.0, 2.0]}}}
    ((case, name, n, mean, error),) = calibration.rows(kept)
    assert (case, name, n, mean) == ("case", "rate", 4, 0.75)
    assert error == pytest.approx(np.std([1, 0, 1, 1]) / 2)


def test_a_stopped_run_goes_on_where_it_was(calibration, tmp_path, monkeypatch):
    done = []

    def once(rng):
        done.append(rng.integers(1000))
        return {"rate": [1.0]}

    monkeypatch.setattr(calibration, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(calibration, "cases", lambda: {"case": (once, 6)})
    calibration.run(1, block=2)
    assert len(done) == len(set(done)) == 6
    calibration.run(1, block=2)
    assert len(done) == 6
