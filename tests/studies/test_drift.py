"""Drift between checkpoints: through routers, through experts, and neither taken for the other."""

import doc_pages
import numpy as np
import pandas as pd
import pytest

import moe_interp as mi
from moe_interp.cli import main
from moe_interp.errors import DesignError
from moe_interp.organism import organism_path, restore_base_experts
from moe_interp.studies import drift


@pytest.fixture(scope="module")
def copies(organism, prompts):
    """An organism beside all its copies, once."""
    done = {}

    def run(name):
        if name not in done:
            found = drift(organism(name), prompts, rng=np.random.default_rng(0))
            done[name] = found
        return done[name]

    return run


def checkpoints(found):
    return found.tables["checkpoints"].set_index("checkpoint")


@pytest.mark.long
@pytest.mark.parametrize("name", ["topic", "harm"])
def test_refusals_lost_in_experts_are_not_restored_by_routing(copies, name):
    row = checkpoints(copies(name)).loc["experts_only"]
    assert (row["opened_before"], row["opened_after"]) == (1, 0)
    assert row["slots_changed_prompt"] <= 0.005
    assert row["restored_part"] == row["carried_part"] == 0


@pytest.mark.long
def test_refusals_lost_through_routers_are_restored_and_carried_whole(copies):
    table = checkpoints(copies("harm"))
    row = table.loc["routers_only"]
    assert row["opened_before"] - row["opened_after"] >= 0.5
    assert row["restored_part"] == row["carried_part"] == 1
    assert row["slots_changed_last"] > 0.2


@pytest.mark.long
def test_a_penalty_keeps_routing_and_keeps_refusals_where_routers_alone_are_trained(copies):
    table = checkpoints(copies("harm"))
    for name in ("routers_only", "full"):
        assert table.loc[f"{name}_held", "kl_last"] < 0.1 * table.loc[name, "kl_last"]
    assert table.loc["routers_only_held", "opened_after"] >= 0.95
    # Where experts are trained too, refusals go without the routing.
    assert table.loc["full_held", "opened_after"] <= 0.05
    assert table.loc["full_held", "restored_part"] <= 0.05


@pytest.mark.long
def test_drift_does_not_foretell_what_experts_lose(copies):
    said = copies("harm").summary()
    table = checkpoints(copies("harm"))
    lost = table["opened_before"] - table["opened_after"]
    r = np.corrcoef(table["kl_last"], lost)[0, 1]
    assert f"correlate with r = {r:.2f}" in said
    assert r < 0.9


@pytest.fixture(scope="module")
def twin():
    """The organism of harm with its un-aligned experts."""
    model = mi.load_model("organism:harm", check=False)
    restore_base_experts(model.nnsight._module, organism_path("harm"))
    return model


@pytest.fixture(scope="module")
def few():
    return mi.load_prompts("organism", per_topic=1)


@pytest.fixture(scope="module")
def compared(organism, twin, few):
    return drift(twin, few, rng=np.random.default_rng(0), base=organism("harm"))


def test_two_checkpoints_are_compared_on_the_same_tokens(compared, organism, twin, few):
    row = checkpoints(compared).loc["model"]
    metric = mi.RefusalLogOdds(twin.tokenizer, openers=["sorry"])
    harmful = few.select(few.harm)
    old, new = organism("harm"), twin
    routing = {name: mi.routing_of(one, harmful) for name, one in (("old", old), ("new", new))}
    states = {
        "before": mi.run(old, harmful),
        "after": mi.run(new, harmful),
        "restored": mi.run(new, harmful, mi.Transplant(routing["old"])),
        "carried": mi.run(old, harmful, mi.Transplant(routing["new"])),
    }
    for state, run in states.items():
        assert row[f"opened_{state}"] == (metric(run.logits) > 0).float().mean().item()
    records = [
        mi.record_routing(
            one, harmful, quantities=("router_logits",), spans=("last",), progress=False
        )
        for one in (old, new)
    ]
    moved = mi.routing_drift(*records, span="last", temperature=0.1)
    assert row["kl_last"] == pytest.approx(moved.kl_nats.mean(), rel=1e-5)
    use = compared.to_frame().set_index(["layer", "expert"])["model"]
    assert use.abs().sum() == pytest.approx(use.loc[3].abs().sum())
    assert compared.settings["first checkpoint"] == "organism:harm"


def test_a_checkpoint_does_not_drift_from_itself(organism, few):
    found = drift(organism("topic"), few, rng=np.random.default_rng(0), base=organism("topic"))
    row = checkpoints(found).loc["model"]
    assert row["kl_last"] == row["slots_changed_prompt"] == 0
    assert row["restored_part"] is None or np.isnan(row["restored_part"])
    assert "there is nothing to be restored" in found.answers[0]
    assert len(found.answers) == 1


def test_one_checkpoint_is_not_enough(organism, few, monkeypatch):
    model = organism("topic")
    monkeypatch.setattr(model, "card", None)
    with pytest.raises(DesignError, match=r"between two checkpoints, and .* is one. Pass the fir"):
        drift(model, few, rng=np.random.default_rng(0))


def test_the_first_checkpoint_may_be_named_in_a_shell(few, tmp_path, monkeypatch, capsys):
    few.to_jsonl(tmp_path / "few.jsonl")
    given = ["-m", "organism:topic", "-p", str(tmp_path / "few.jsonl"), "-o", str(tmp_path / "out")]

    def shell(name):
        monkeypatch.setattr(
            "sys.argv", ["moe-interp", "study", name, *given, "--base", "organism:topic"]
        )
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0

    assert shell("safex2025") == 2
    assert "The study 'safex2025' is about one checkpoint: leave --base out." in (
        capsys.readouterr().err
    )
    assert shell("drift") == 0
    assert list(pd.read_csv(tmp_path / "out" / "checkpoints.csv")["checkpoint"]) == ["model"]


def test_the_code_of_the_page_finds_what_the_page_says(tmp_path):
    names, n_blocks = doc_pages.run_page("studies/drift.md", tmp_path)
    assert n_blocks == 1
    assert (names["row"]["opened_before"], names["row"]["opened_after"]) == (1, 0)
    assert names["row"]["restored_part"] == 0
