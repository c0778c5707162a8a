"""A reduced run of benchmarks/calibration.py: the same cases, few simulations of each.

The full run measures to a point; this one only sees a test that is badly off.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

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
