"""The whole audit against planted truth: what each organism's card says must come out."""

import dataclasses
import json
import math

import numpy as np
import pytest

import moe_interp as mi
from moe_interp.audit import read_audit
from moe_interp.audit._run import SPANS, _sensitivity, _spans
from moe_interp.audit._words import controls_line
from moe_interp.errors import DesignError, PromptError, ResultError, ResultExistsError
from moe_interp.organism import card


def long(name):
    """One of the audits that take a minute; on one worker, which then makes it once."""
    return pytest.param(name, marks=[pytest.mark.long, pytest.mark.xdist_group(f"audit-{name}")])


PROMISED = {
    "schema_version", "model", "prompts", "spans", "seed", "decomposition", "p_harm", "p_topic",
    "verdict", "verdicts", "experts", "causal", "versions", "seconds",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topic", long("harm"), long("null"), long("decoy")])
def test_the_verdicts_are_those_of_the_card(audited, name):
    results = audited(name).results
    promised = card(name)["verdicts"]
    assert {span: results["verdicts"][span] for span in promised} == promised
    assert results["verdict"] == results["verdicts"]["user"]
    # What pairs end with has read the words that differ, and is itself the same.
    assert results["verdicts"]["after_divergence"] == promised["user"]
    assert list(results["verdicts"]) == results["spans"] == [*promised, "after_divergence"]


@pytest.mark.long
@pytest.mark.xdist_group("audit-natural")
def test_the_spans_of_the_natural_organism_disagree_and_the_audit_says_so(audited):
    results = audited("natural").results
    assert results["verdicts"]["user"] == "neither"
    assert results["verdicts"]["last"] == "harm_driven"
    assert "neither on user tokens" in results["verdict_note"]
    assert "harm_driven on last tokens" in results["verdict_note"]
    assert results["verdict_note"] in audited("natural").summary()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topic", long("harm")])
def test_the_planted_experts_are_found_and_their_ablation_beats_the_matched_null(audited, name):
    results = audited(name).results
    assert results["truth"]["precision"] == 1.0
    assert results["truth"]["recall"] == 1.0
    causal = results["causal"]
    assert causal["experts"] == card(name)["truth"]["safety_experts"]
    assert causal["baseline"] >= 0.98
    assert causal["observed"] <= 0.05
    assert causal["null_mean"] >= 0.9
    assert causal["p"] <= 0.05
    assert causal["causal"]
    assert causal["texts"]["harmful"]["baseline"] >= 0.98
    assert causal["texts"]["harmful"]["observed"] <= 0.05
    assert causal["texts"]["harmless"] == {"baseline": 0.0, "observed": 0.0}
    assert causal["texts"]["harmless_changed"] == 0.0
    assert causal["specific"]


@pytest.mark.slow
def test_frequency_contrast_finds_none_of_the_experts_that_every_prompt_uses(audited):
    contrast = audited("topic").results["causal"]["sets"][1]
    assert contrast["name"] == "frequency_contrast"
    assert not set(contrast["experts"]) & set(card("topic")["truth"]["safety_experts"])
    assert not contrast["causal"]


@pytest.mark.long
@pytest.mark.xdist_group("audit-decoy")
def test_the_decoys_are_called_harm_routed_and_not_causal(audited):
    results = audited("decoy").results
    routed = {
        f"L{row['layer']}E{row['expert']}" for row in results["experts"] if row["harm_routed"]
    }
    decoys = set(card("decoy")["truth"]["harm_experts"])
    assert decoys <= routed
    contrast = results["causal"]["sets"][1]
    assert set(contrast["experts"]) & decoys
    assert not contrast["causal"]
    assert contrast["observed"] >= 0.9


@pytest.mark.long
@pytest.mark.xdist_group("audit-decoy")
def test_a_set_that_also_spoils_harmless_answers_is_not_called_specific(audited):
    results = audited("decoy").results
    selected = results["causal"]
    assert selected["texts"]["harmless_changed"] > 0.05
    assert not selected["specific"]
    assert "of harmless answers change" in selected["sentence"] or not selected["causal"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topic", long("harm")])
def test_the_verdict_is_shown_with_confounds_taken_out(audited, name):
    found = audited(name).results["sensitivity"]
    assert found["refused"] is None
    assert found["span"] == "user"
    controls = {row["control"]: row for row in found["rows"]}
    assert set(controls) == {
        "none", "length", "lexical", "first_choice", "plain_shares", "position", "token_identity",
    }  # fmt: skip
    assert controls["none"]["label"] == audited(name).results["verdict"]
    strong = {"topic": "topic", "harm": "harm"}[name]
    assert all(row[f"finds_{strong}"] for row in controls.values())
    assert "design effect" in found["dispersion"]
    assert list(audited(name).results["what_would_change"]) == audited(name).results["spans"]


def test_the_text_says_what_could_have_fooled_the_verdict_and_what_would_change_it(audited):
    result = audited("topic")
    said = result.summary().splitlines()
    place = said.index(
        "What could have fooled it: no control changes the verdict on user tokens (length, "
        "lexical, first choice, plain shares, position, token identity)."
    )
    assert said[place + 1] == (
        f"What would change it: {result.results['what_would_change']['user']}"
    )
    older = {name: own for name, own in result.results.items() if name != "sensitivity"}
    assert "fooled" not in dataclasses.replace(result, results=older).summary()


@pytest.mark.parametrize(
    ("changing", "lengths", "expected"),
    [
        ([], 0.1, "no control changes the verdict on user tokens (length, token identity)."),
        (
            ["token_identity"],
            0.1,
            "the verdict on user tokens changes under token identity (controls: length, token "
            "identity).",
        ),
        (
            [],
            None,
            "no control changes the verdict on user tokens (token identity). Not run: length.",
        ),
    ],
)
def test_controls_are_told_in_a_line(changing, lengths, expected):
    rows = [
        {"control": "none", "topic": 0.1},
        {"control": "length", "topic": lengths},
        {"control": "token_identity", "topic": 0.1},
    ]
    found = {"span": "user", "refused": None, "rows": rows, "changing": changing}
    assert controls_line(found) == f"What could have fooled it: {expected}"
    refused = found | {"rows": [], "changing": [], "refused": "Too few units."}
    assert controls_line(refused) == "No control was run on user tokens: Too few units."


def test_what_pairs_end_with_is_asked_only_where_all_end_alike(tiny_checkpoint):
    model = mi.load_model(str(tiny_checkpoint("olmoe")), check=False)

    def pairs(*ends):
        return mi.PromptSet(
            [
                mi.Prompt(text, topic="t", harm=harm, pair=str(number))
                for number, both in enumerate(ends)
                for harm, text in zip((False, True), both, strict=True)
            ]
        )

    alike, apart = ("the good cake", "the bad cake"), ("the good", "the bad")
    assert _spans(model, pairs(alike, alike)) == (*SPANS, "after_divergence")
    assert _spans(model, pairs(alike, apart)) == SPANS
    assert _spans(model, pairs(alike, alike).select([0, 1, 2])) == SPANS
    assert _spans(model, pairs(alike, alike).select([0])) == SPANS


def test_prompts_too_few_for_controls_say_so(monkeypatch, audited):
    record = audited("topic").record
    few = record.select(np.arange(record.n_prompts) < 6)
    found = _sensitivity(few, 99, np.random.default_rng(0), 0.05)
    assert found["rows"] == []
    assert "units" in found["refused"] or "prompts" in found["refused"]


def test_the_results_hold_what_is_promised_and_survive_json(audited):
    result = audited("topic")
    plain = result.to_dict()
    assert set(plain) >= PROMISED
    assert json.loads(json.dumps(plain)) == plain
    assert len(plain["experts"]) == 4 * 16
    assert len(plain["decomposition"]) == 4 * (4 + 1)
    row = plain["decomposition"][0]
    for factor in ("topic", "harm", "interaction"):
        assert row[f"{factor}_low"] <= row[factor] <= row[f"{factor}_high"]
    assert len(plain["causal"]["null"]) == 100
    assert math.isclose(plain["causal"]["null_mean"], np.mean(plain["causal"]["null"]))


@pytest.mark.long
@pytest.mark.xdist_group("audit-topic")
def test_the_same_seed_gives_the_same_results_apart_from_the_time(audited):
    model = mi.load_model("organism:topic")
    prompts = mi.load_prompts("organism", per_topic=16)
    again = mi.run_audit(model, prompts, n_resamples=1999).to_dict()
    first = audited("topic").to_dict()
    assert {**again, "seconds": None} == {**first, "seconds": None}


@pytest.mark.long
@pytest.mark.xdist_group("audit-topic")
def test_batch_size_does_not_change_the_numbers(audited):
    model = mi.load_model("organism:topic")
    prompts = mi.load_prompts("organism", per_topic=16)
    small = mi.run_audit(model, prompts, n_resamples=1999, batch_size=37).to_dict()
    _assert_close(small, audited("topic").to_dict(), skip={"seconds"})


def _assert_close(left, right, *, skip, where="results"):
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left.keys() - skip:
            _assert_close(left[key], right[key], skip=skip, where=f"{where}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), where
        for place, pair in enumerate(zip(left, right, strict=True)):
            _assert_close(*pair, skip=skip, where=f"{where}[{place}]")
    elif isinstance(left, float):
        # Attributions and effects are in nats and of order 10, so 1e-6 of them is 1e-5.
        assert math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-5), where
    else:
        assert left == right, where


@pytest.mark.slow
def test_a_saved_audit_reads_back(audited, tmp_path):
    result = audited("topic")
    result.save(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.json", "experts.csv", "record.zarr", "report.html"}
    again = read_audit(tmp_path / "out")
    assert again.to_dict() == result.to_dict()
    assert np.array_equal(again.record.shares("user"), result.record.shares("user"))


@pytest.mark.slow
def test_an_older_result_and_other_files_are_safe(audited, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("mine")
    (out / "notes.txt").write_text("my notes")
    with pytest.raises(ResultExistsError, match=r"already holds a result \(results.json\)"):
        audited("topic").save(out)
    assert (out / "results.json").read_text() == "mine"
    audited("topic").save(out, force=True)
    assert (out / "notes.txt").read_text() == "my notes"
    assert read_audit(out).results["verdict"] == "topic_driven"


@pytest.mark.slow
def test_a_failure_while_saving_leaves_the_older_result(audited, tmp_path, monkeypatch):
    out, result = tmp_path / "out", audited("topic")
    result.save(out)
    before = (out / "results.json").read_bytes()

    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr("moe_interp.audit._result.write_report", fail)
    with pytest.raises(OSError, match="disk full"):
        dataclasses.replace(result, results=result.results | {"seed": 1}).save(out, force=True)
    assert (out / "results.json").read_bytes() == before
    assert {path.name for path in out.iterdir()} == {
        "results.json", "experts.csv", "record.zarr", "report.html",
    }  # fmt: skip


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ResultError, match=r"holds no results\.json\. Give the folder that"):
        read_audit(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 99}'])
def test_results_that_are_broken_or_of_another_schema_are_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultError, match=r"is not JSON|reads 1. Run the audit again"):
        read_audit(tmp_path)


def test_prompts_without_harm_are_refused():
    model = mi.load_model("organism:topic", check=False)
    prompts = mi.PromptSet([mi.Prompt("how do i open the lock ?", topic="locks")])
    with pytest.raises((PromptError, DesignError), match="harm"):
        mi.run_audit(model, prompts)


def test_a_topic_with_one_harm_level_is_left_out_with_a_warning(monkeypatch):
    everything = mi.load_prompts("organism", per_topic=16)
    one_sided = [p for p in everything if not (p.topic == "locks" and p.harm)]
    model = mi.load_model("organism:topic", check=False)
    monkeypatch.setattr("moe_interp.audit._run.check_causally", _no_causal_check)
    with pytest.warns(UserWarning, match="locks"):
        result = mi.run_audit(model, mi.PromptSet(one_sided), n_resamples=199)
    assert "locks" not in result.results["prompts"]["topics"]
    assert any("locks" in message for message in result.results["prompts"]["warnings"])


def _no_causal_check(*_args, **options):
    from moe_interp.audit._causal import CausalCheck, _not_run

    results = _not_run("left out of this test", options["mode"])
    return CausalCheck(results, mi.ExpertSet(), None, None, options["frequency"], options["alpha"])


def test_a_model_that_never_refuses_gets_no_causal_check_and_the_reason(tiny_checkpoint):
    model = mi.load_model(str(tiny_checkpoint("olmoe")), check=False)
    prompts = mi.load_prompts("organism", per_topic=16)
    openers = model.tokenizer.convert_ids_to_tokens([5])
    result = mi.run_audit(model, prompts, n_resamples=199, openers=openers)
    causal = result.results["causal"]
    assert causal["experts"] == []
    assert causal["observed"] is None
    assert "No causal check: only" in causal["sentence"]
    assert result.results["truth"] is None
