"""The commands on experts: score a record, sweep a model, tune a few experts."""

import csv

import numpy as np
import pytest
from cli_lines import says_one_line

import moe_interp as mi


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Few prompts of the organism, lessons from them, and a record."""
    folder = tmp_path_factory.mktemp("experts")
    prompts = mi.load_prompts("organism", per_topic=2)
    prompts.to_jsonl(folder / "few.jsonl")
    model = mi.load_model("organism:topic", check=False)
    mi.record_routing(model, prompts, progress=False).save(folder / "routing.zarr")
    lessons = [mi.Prompt(prompt.text, response="sure .") for prompt in prompts.select(prompts.harm)]
    mi.PromptSet(lessons, source="lessons").to_jsonl(folder / "lessons.jsonl")
    return folder


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_record_is_scored(cli, folder, tmp_path):
    out = tmp_path / "use.csv"
    code, said, _ = cli("score", folder / "routing.zarr", "--show", 3, "--out", out)
    assert code == 0
    rows = rows_of(out)
    assert len(rows) == 64
    record = mi.open_record(folder / "routing.zarr")
    use = mi.selection_frequency(record, span="user")
    for row in rows:
        assert float(row["selection_frequency"]) == pytest.approx(
            use.of(int(row["layer"]), int(row["expert"]))
        )
    differences = {f"L{r['layer']}E{r['expert']}": abs(float(r["risk_difference"])) for r in rows}
    largest = max(differences, key=differences.__getitem__)
    assert said.splitlines()[1].split()[0] == largest
    assert len([line for line in said.splitlines() if line.startswith("L")]) == 3
    says_one_line(cli("score", folder / "none.zarr"), "none.zarr")


def test_a_score_without_harm_says_what_is_missing(cli, folder, tmp_path):
    record = mi.open_record(folder / "routing.zarr")
    record.select(np.flatnonzero(record.prompts.harm)).save(tmp_path / "harmful.zarr")
    code, said, _ = cli("score", tmp_path / "harmful.zarr")
    assert code == 0
    assert "no difference by harm: All 16 prompts are harmful" in said
    assert "risk_difference" not in said


def test_a_sweep_from_a_shell_is_the_sweep(cli, folder, tmp_path):
    out = tmp_path / "effects.csv"
    arguments = ("sweep", "-m", "organism:topic", "-p", folder / "few.jsonl", "--out", out)
    code, said, _ = cli(*arguments)
    assert code == 0
    assert "zeroing each expert alone, refusal_log_odds (nats), mean of 16 prompts" in said
    model = mi.load_model("organism:topic", check=False)
    prompts = mi.load_prompts(folder / "few.jsonl")
    metric = mi.RefusalLogOdds(model.tokenizer, openers=model.card["refusal"]["openers"])
    expected = mi.sweep(model, prompts.select(prompts.harm), metric=metric)
    for row in rows_of(out):
        assert float(row["sweep"]) == pytest.approx(
            expected.of(int(row["layer"]), int(row["expert"])), abs=1e-4
        )
    says_one_line(cli(*arguments), "effects.csv")
    says_one_line(cli(*arguments[:5], "--mode", "melt"), "`mode` must be one of")
    (tmp_path / "plain.jsonl").write_text('{"text": "help me"}\n')
    found = cli("sweep", "-m", "organism:topic", "-p", tmp_path / "plain.jsonl")
    says_one_line(found, "does not say which prompts are harmful")


def test_experts_are_tuned_and_saved(cli, folder, tmp_path):
    out, checkpoint = tmp_path / "safe.delta", tmp_path / "tuned"
    arguments = (
        "tune", "-m", "organism:topic", "--data", folder / "lessons.jsonl", "--experts",
        "L3E8,L3E9", "--out", out, "--epochs", 6, "--learning-rate", 0.02,
    )  # fmt: skip
    code, said, _ = cli(*arguments, "--checkpoint", checkpoint)
    assert code == 0
    assert "parameters tuned of L3E8,L3E9" in said
    model = mi.load_model("organism:topic", check=False)
    prompts = mi.load_prompts(folder / "few.jsonl")
    asked = prompts.select(prompts.harm)
    with mi.load_delta(out).applied(model):
        tuned = mi.run(model, asked).next_tokens
    assert set(tuned) == {"sure"}
    assert mi.run(mi.load_model(checkpoint), asked).next_tokens == tuned
    says_one_line(cli(*arguments), "safe.delta")
    found = cli(*arguments[:7], "--experts", "L3E99", "--out", tmp_path / "other.delta")
    says_one_line(found, "has experts 0–15, got 99")
    missing = cli(
        "tune", "-m", "organism:topic", "--data", folder / "few.jsonl", "--experts", "L3E8",
        "--out", tmp_path / "other.delta",
    )  # fmt: skip
    says_one_line(missing, "have no `response`")
