import json
import sys

import doc_pages
import numpy as np
import pytest

import moe_interp as mi
from moe_interp.errors import DesignError
from moe_interp.prompts import Prompt, PromptSet
from moe_interp.studies import routescan2026


@pytest.fixture(scope="module")
def found(organism, prompts):
    """The study on the two organisms with planted truth."""
    return {
        name: routescan2026(organism(name), prompts, rng=np.random.default_rng(0))
        for name in ("harm", "topic")
    }


def rows(result):
    return result.tables["detection"].set_index(["held_out", "features"])


def test_with_wordings_left_out_the_detector_beats_words_on_harm(found):
    table, result = rows(found["harm"]), found["harm"]
    assert table.loc[("wording", "routing"), "auc"] > 0.95
    assert table.loc[("wording", "bag_of_tokens"), "auc"] < 0.6
    assert table.loc[("wording", "bag_of_tokens"), "first_minus_low"] > 0.2
    assert table.loc[("wording", "routing"), "p"] <= 0.01
    assert result.numbers["beats"]["wording"]["bag_of_tokens"]
    assert (table.loc["wording", "wordings_seen"] == 0).all()


def test_with_wordings_left_out_the_detector_does_not_beat_words_on_topic(found):
    table = rows(found["topic"])
    assert table.loc[("wording", "routing"), "auc"] < 0.65
    assert table.loc[("wording", "routing"), "p"] > 0.05
    assert not found["topic"].numbers["beats"]["wording"]["bag_of_tokens"]
    # Harm is there to be read, and the routers do not show it.
    assert table.loc[("wording", "hidden_state"), "auc"] > 0.9
    assert table.loc[("wording", "hidden_state"), "first_minus_high"] < 0


@pytest.mark.parametrize("name", ["harm", "topic"])
def test_with_topics_left_out_the_table_shows_that_words_were_seen(found, name):
    table = rows(found[name])
    words = table.loc[("topic", "bag_of_tokens")]
    assert words["auc"] == words["exchanged_labels"] == words["p"] == 1
    assert (words["wordings_seen"], words["topics_seen"]) == (1, 0)
    said = " ".join(found[name].answers)
    assert "100% of the wordings tested with a topic left out were seen in training" in said
    assert "AUC 1.000, with exchanged labels 1.000" in said
    assert "this split does not show that harm is detected" in said
    assert "wordings tested with a wording" not in said


def test_probabilities_are_better_than_the_share_of_harmful_prompts_on_harm_only(found):
    by_wording = {name: rows(one).loc[("wording", "routing")] for name, one in found.items()}
    assert by_wording["harm"]["brier"] < 0.05 < by_wording["harm"]["brier_reference"]
    assert by_wording["topic"]["brier"] > 0.2
    table = found["harm"].tables["reliability"]
    assert table[table["held_out"] == "wording"]["n_prompts"].sum() == 128


def test_loads_are_shares_of_a_groups_prompts(found, organism, prompts):
    record = mi.record_routing(
        organism("harm"), prompts, spans=("prompt",), n_random_routers=0, progress=False
    )
    index, owner = record.dataset["expert_index"].values, record.dataset["prompt_index"].values
    table = found["harm"].to_frame()
    for layer, expert in ((0, 3), (2, 14), (3, 15)):
        for column, level in (("load_harmful", True), ("load_harmless", False)):
            shares = [
                (index[owner == prompt, layer] == expert).mean()
                for prompt in np.flatnonzero(prompts.harm == level)
            ]
            line = table[(table["layer"] == layer) & (table["expert"] == expert)]
            assert line[column].item() == pytest.approx(np.mean(shares))
    top = table.loc[table["difference"].idxmax()]
    assert f"L{top['layer']:.0f}E{top['expert']:.0f}" in found["harm"].truth


def test_each_fold_has_an_auc_for_each_set_of_features(found):
    table = found["harm"].tables["folds"]
    assert (table["held_out"] == "topic").sum() == (table["held_out"] == "wording").sum() == 8
    assert (table.loc[table["held_out"] == "topic", "bag_of_tokens"] == 1).all()


def test_statistics_are_tested_over_wordings(found):
    layers = {name: one.tables["layers"] for name, one in found.items()}
    assert (layers["harm"]["p_adjusted"] <= 0.05).any()
    assert not (layers["topic"]["p_adjusted"] <= 0.05).any()
    assert set(layers["harm"]["statistic"]) == {
        "coverage",
        "effective_rate",
        "gap",
        "concentration",
    }


def test_data_sets_are_left_out_where_they_are_named(organism, prompts):
    chosen = prompts.select(np.isin(prompts.topics, ["locks", "network"]))
    names = np.where(np.isin(chosen.wordings, sorted(set(chosen.wordings))[:4]), "a", "b")
    result = routescan2026(
        organism("harm"),
        chosen,
        rng=np.random.default_rng(0),
        datasets=names.tolist(),
        n_resamples=63,
        n_random_routers=1,
    )
    assert rows(result).loc[("dataset", "routing"), "auc"] > 0.9
    folds = result.tables["folds"]
    assert set(folds.loc[folds["held_out"] == "dataset", "fold"]) == {"a", "b"}


def test_what_cannot_be_left_out_is_said(organism, prompts):
    bare = PromptSet(
        Prompt(p.text, topic="one", harm=p.harm, pair=p.pair, wording=None)
        for p in prompts.select(range(16))
    )
    result = routescan2026(
        organism("harm"), bare, rng=np.random.default_rng(0), n_random_routers=1, n_folds=4
    )
    assert set(result.numbers["detection"]) == {"pair"}
    assert "All prompts have the topic 'one'" in result.numbers["refused"]["topic"]
    assert any(said.startswith("Not tested with a topic left out: All") for said in result.answers)
    assert rows(result).loc[("pair", "routing"), "wordings_seen"] is None


def test_statistics_are_not_tested_without_units_of_both_levels(organism, prompts):
    bare = PromptSet(
        Prompt(p.text, topic=p.topic, harm=p.harm, wording=f"{p.wording} {p.harm}")
        for p in prompts.select(np.isin(prompts.topics, ["locks", "network"]))
    )
    result = routescan2026(organism("harm"), bare, rng=np.random.default_rng(0), n_random_routers=1)
    assert result.tables["layers"]["p"].isna().all()
    assert result.answers[-1].startswith("No unit has harmful and harmless prompts")


def test_a_study_in_which_nothing_can_be_left_out_is_refused(organism, prompts):
    bare = PromptSet(Prompt(p.text, topic="one", harm=p.harm) for p in prompts.select(range(24)))
    with pytest.raises(DesignError, match=r"No way of holding out is possible\. topic: All pro"):
        routescan2026(organism("harm"), bare, rng=np.random.default_rng(0), n_random_routers=1)
    with pytest.raises(ValueError, match="`n_random_routers` must be at least 1, got 0"):
        routescan2026(organism("harm"), bare, rng=np.random.default_rng(0), n_random_routers=0)


@pytest.mark.long
def test_it_runs_from_a_shell(prompts, tmp_path, monkeypatch):
    from moe_interp.cli import main

    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.select(np.isin(prompts.topics, ["locks", "network"])).to_jsonl(file)
    command = ["moe-interp", "study", "routescan2026", "-m", "organism:harm", "-p", file, "-o", out]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    written = json.loads((out / "results.json").read_text())
    assert written["numbers"]["beats"]["wording"]["bag_of_tokens"]
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        "report.html",
        *(f"{name}.csv" for name in ("experts", "detection", "folds", "reliability", "layers")),
    }


@pytest.mark.long
def test_the_code_of_the_page_shows_what_the_page_says(tmp_path):
    names, n_blocks = doc_pages.run_page("studies/routescan2026.md", tmp_path)
    assert n_blocks == 1
    assert names["table"].loc[("wording", "routing"), "auc"] > 0.95
    assert names["table"].loc[("topic", "bag_of_tokens"), "exchanged_labels"] == 1
