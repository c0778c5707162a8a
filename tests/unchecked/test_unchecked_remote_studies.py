"""Audits and studies of a model whose blocks run in a process that lacks the library."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from loopback.connection import on_worker

import moe_interp as mi
from moe_interp.errors import UnsupportedOnServerError
from moe_interp.studies import find_study

WEIGHTS = Path(mi.__file__).parent / "organism" / "weights"
FEW = {"n_null": 19, "n_resamples": 99}
BY_GRADIENTS = ("gradient_p", "gradient_p_adjusted", "gradient_class")
#: Few draws: what is compared is the same study on the same model, here and there.
QUICK = {
    "siddiky2026": FEW,
    "routescan2026": {"n_resamples": 19},
    "safex2025": {"n_null": 19},
    "steermoe2025": {"n_null": 19},
    "olmoe2024": {},
}


def organism(name="harm"):
    return mi.load_model(str(WEIGHTS / name), check=False)


@pytest.fixture(scope="module")
def there(worker):
    return on_worker(organism(), worker)


@pytest.fixture(scope="module")
def prompts():
    every = mi.load_prompts("organism", per_topic=6)
    return every.select(np.isin(every.topics, sorted(set(every.topics))[:4]))


@pytest.fixture
def sandboxed(worker):
    """A model whose server lets no gradients through."""
    model = on_worker(organism(), worker)
    model.connection.trusted = False
    return model


def study(name, model, prompts, **options):
    return find_study(name).run(model, prompts, rng=np.random.default_rng(0), **options)


def alike(found, expected):
    """That two results have the same tables, but for rounding.

    Weights travel at half precision, so that of few prompts a near tie may fall the other way.
    What is decided by gradients is not compared: some experts have none but rounding, and these
    are in the family that p-values are corrected for.
    """
    assert set(found.tables) == set(expected.tables)
    for name, table in expected.tables.items():
        other = found.tables[name]
        assert list(other) == list(table)
        tied = table.columns.intersection(["overlap", "overlap_low", "overlap_high"])
        np.testing.assert_allclose(other[tied].astype(float), table[tied].astype(float), atol=0.05)
        rest = table.columns.difference([*tied, *BY_GRADIENTS])
        pd.testing.assert_frame_equal(other[rest], table[rest], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", QUICK)
def test_a_study_is_the_same(name, there, prompts):
    jobs = there.connection.jobs
    here, found = (study(name, model, prompts, **QUICK[name]) for model in (organism(), there))
    assert there.connection.jobs > jobs
    alike(found, here)


def test_drift_between_two_checkpoints_is_the_same(there, prompts, worker):
    bases = organism("null"), on_worker(organism("null"), worker)
    here, found = (
        study("drift", model, prompts, base=base)
        for model, base in zip((organism(), there), bases, strict=True)
    )
    alike(found, here)


def test_raset_trains_nothing_on_a_server_and_says_so(there, prompts):
    found = study("raset2026", there, prompts, **FEW)
    here = study("raset2026", organism(), prompts, **FEW, arms=["router_steering"])
    alike(found, here)
    assert list(found.tables["tuning"]["arm"]) == ["router_steering"]
    said = [line for line in found.answers if "weights, which are on" in line]
    assert said == ["Nothing was trained: that needs the weights, which are on a worker."]
    assert found.numbers["claim"]["safety_apart"]["state"] == "not tested"


def refused_at_once(model, act, match):
    jobs = model.connection.jobs
    with pytest.raises(UnsupportedOnServerError, match=match):
        act()
    assert model.connection.jobs == jobs


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("raset2026", {"arms": ["router_steering", "full"]}, r"'full' needs .* leave `arms` out"),
        ("mesa2026", {}, r"Tuning needs the weights .* Load the model without `remote`\.$"),
        ("knn_moe2026", {}, r"Fitting routing needs the weights"),
    ],
)
def test_what_trains_is_refused_before_anything_is_sent(
    name, options, match, there, prompts, monkeypatch
):
    # Nor does it ask for the responses first that prompts of other models must have.
    monkeypatch.setattr(there, "card", None)
    refused_at_once(there, lambda: study(name, there, prompts, **options), match)


@pytest.mark.parametrize("name", ["siddiky2026", "raset2026"])
def test_gradients_are_refused_before_anything_is_sent(name, sandboxed, prompts):
    refused_at_once(sandboxed, lambda: study(name, sandboxed, prompts), "needs gradients")


def test_an_audit_needs_no_gradients(worker, prompts):
    options = {"n_resamples": 99, "n_random_routers": 39, "n_null": 19}
    sandboxed = on_worker(organism("topic"), worker)
    sandboxed.connection.trusted = False
    here, there = (
        mi.run_audit(model, prompts, **options).results for model in (organism("topic"), sandboxed)
    )
    assert here["verdict"] == there["verdict"] == "topic_driven"
    causes = here["causal"], there["causal"]
    assert [cause["experts"] for cause in causes] == [["L3E8", "L3E9"]] * 2
    assert [cause["selection"]["candidates"] for cause in causes] == ["attribution", "ablation"]
    assert "(selected by ablation one by one and greedy ablation)" in causes[1]["sentence"]
    assert "ablation of each expert alone picks candidates" in there["method"]["selection"]
    assert "gradient attribution picks candidates" in here["method"]["selection"]
    assert all(row["attribution"] is None for row in there["experts"])
