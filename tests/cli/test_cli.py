"""What a user sees in a shell: results, and one clear line with exit code 2 on bad input."""

import json

import numpy as np
import pytest
import torch
from cli_lines import says_one_line
from transformers import LlamaConfig, LlamaForCausalLM

import moe_interp as mi
from moe_interp.organism import ORGANISMS

COMMANDS = (
    "audit",
    "record",
    "test",
    "score",
    "sweep",
    "tune",
    "study",
    "jobs",
    "report",
    "models",
    "prompts",
)


def test_help_lists_the_commands(cli):
    code, out, _ = cli("--help")
    assert code == 0
    for command in COMMANDS:
        assert command in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert f"Example: moe-interp {command}" in out


def test_the_version_is_printed(cli):
    assert cli("--version") == (0, f"moe-interp {mi.__version__}\n", "")


def test_models_lists_organisms(cli):
    code, out, _ = cli("models")
    assert code == 0
    assert all(f"organism:{name}" in out for name in ORGANISMS)


def test_models_describes_one_model(cli):
    code, out, _ = cli("models", "organism:topic")
    assert code == 0
    assert "n_experts" in out
    assert "16" in out


def test_prompts_are_described_shown_and_written(cli, tmp_path):
    code, out, _ = cli("prompts", "organism", "--show", 2, "--out", tmp_path / "set.jsonl")
    assert code == 0
    assert "512 prompts" in out
    assert len(mi.load_prompts(tmp_path / "set.jsonl")) == 512


def test_prompts_never_replace_a_file(cli, tmp_path):
    (tmp_path / "set.csv").write_text("mine")
    code, _, err = cli("prompts", "organism", "--show", 0, "--out", tmp_path / "set.csv")
    assert code == 2
    assert "set.csv" in err
    assert (tmp_path / "set.csv").read_text() == "mine"


def test_a_record_is_written_and_opens_again(cli, tmp_path, tiny_checkpoint):
    prompts = mi.load_prompts("organism", per_topic=16).select(range(8))
    prompts.to_jsonl(tmp_path / "few.jsonl")
    out = tmp_path / "routing.zarr"
    arguments = (
        "record", "--model", tiny_checkpoint("mixtral"), "--prompts", tmp_path / "few.jsonl",
        "--out", out,
    )  # fmt: skip
    code, said, _ = cli(*arguments)
    assert code == 0
    assert f"wrote {out}" in said
    assert mi.open_record(out).n_prompts == 8
    # The same again is that record; anything else is refused.
    before = sorted(path.stat().st_mtime_ns for path in out.rglob("*"))
    assert cli(*arguments)[0] == 0
    says_one_line(cli(*arguments, "--seed", 1), "random_routers")
    assert sorted(path.stat().st_mtime_ns for path in out.rglob("*")) == before
    assert cli(*arguments, "--seed", 1, "--force")[0] == 0
    assert mi.open_record(out).n_prompts == 8
    assert [path.name for path in tmp_path.glob("*routing.zarr*")] == ["routing.zarr"]


def test_shards_fill_one_record(cli, tmp_path, tiny_checkpoint):
    mi.load_prompts("organism").select(range(24)).to_jsonl(tmp_path / "few.jsonl")
    out = tmp_path / "routing.zarr"
    arguments = (
        "record", "--model", tiny_checkpoint("mixtral"), "--prompts", tmp_path / "few.jsonl",
        "--out", out, "--batch-size", 1, "--random-routers", 39, "--weight-dtype", "float16",
    )  # fmt: skip
    code, said, _ = cli(*arguments, "--shard", "1/2")
    assert (code, said) == (0, f"shard 1/2 of {out} is done; others are not\n")
    code, said, _ = cli(*arguments, "--shard", "0/2")
    assert code == 0
    assert f"wrote {out}" in said
    assert mi.open_record(out).n_prompts == 24


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        (("2/2",), "`shard` must be (i, n)"),
        (("1",), "--shard must be I/N"),
        (("-1/2",), "--shard must be I/N"),
        (("a/b",), "--shard must be I/N"),
        (("0/2", "--force"), "do not go together"),
    ],
)
def test_a_shard_that_is_none_gets_one_line(cli, tmp_path, tiny_checkpoint, shard, said):
    mi.load_prompts("organism").select(range(2)).to_jsonl(tmp_path / "few.jsonl")
    arguments = (
        "record", "--model", tiny_checkpoint("mixtral"), "--prompts", tmp_path / "few.jsonl",
        "--out", tmp_path / "routing.zarr", "--shard", *shard,
    )  # fmt: skip
    says_one_line(cli(*arguments), said)
    assert not (tmp_path / "routing.zarr").exists()


def a_record(folder):
    record = mi.record_routing(
        mi.load_model("organism:topic", check=False),
        mi.load_prompts("organism", per_topic=8),
        n_random_routers=39,
        rng=np.random.default_rng(0),
        progress=False,
    )
    record.save(folder / "routing.zarr")
    return folder / "routing.zarr"


@pytest.mark.long
def test_a_record_is_tested_without_a_model(cli, tmp_path):
    out = tmp_path / "tests.json"
    code, said, _ = cli("test", a_record(tmp_path), "--resamples", 99, "--out", out)
    assert code == 0
    assert "topic_driven ('user' tokens)" in said
    assert "No control changes it." in said
    assert json.loads(out.read_text())["verdict"]["label"] == "topic_driven"


def test_what_a_test_of_a_record_cannot_read_or_write_gets_one_line(cli, tmp_path):
    out = tmp_path / "tests.json"
    out.write_text("mine")
    record = a_record(tmp_path)
    says_one_line(cli("test", record, "--resamples", 99, "--out", out), "tests.json")
    assert out.read_text() == "mine"
    says_one_line(cli("test", tmp_path / "none.zarr"), "none.zarr")
    says_one_line(cli("test", record, "--span", "answer"), "'answer' was not recorded")


def test_an_audit_checks_its_output_folder_before_anything_else(cli, tmp_path):
    (tmp_path / "results.json").write_text("mine")
    found = cli("audit", "-m", "no/such-model", "-p", "no-such-file.csv", "--out", tmp_path)
    says_one_line(found, "already holds a result (results.json)")
    assert (tmp_path / "results.json").read_text() == "mine"


@pytest.mark.long
def test_an_audit_writes_its_four_files_and_the_report_can_be_made_again(cli, tmp_path):
    mi.load_prompts("organism", per_topic=16).to_jsonl(tmp_path / "p.jsonl")
    out = tmp_path / "out"
    code, said, _ = cli("audit", "-m", "organism:topic", "-p", tmp_path / "p.jsonl", "-o", out)
    assert code == 0
    assert "verdict on user tokens: topic_driven" in said
    assert "precision 1.00, recall 1.00" in said
    assert json.loads((out / "results.json").read_text())["verdict"] == "topic_driven"
    says_one_line(cli("report", out), "report.html")
    code, said, _ = cli("report", out, "--force")
    assert code == 0
    assert "Topic-driven" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("prompts", "nothing-here.csv"), "nothing-here.csv"),
        (("report", "nowhere"), "holds no results.json"),
        (("models", "organism:nothing"), "organism"),
        (("models", "not/here"), "not/here"),
        (("models", "--family", "mixtrl"), "Did you mean 'mixtral'"),
        (("models", "-f", "xyz"), "`moe-interp models` lists all of them"),
    ],
)
def test_bad_input_gets_one_line(cli, arguments, text):
    says_one_line(cli(*arguments), text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "holds no prompts"),
        ("a,b\n1,2\n", "text"),
        ("text,topic,harm\nhello,greeting,perhaps\n", "perhaps"),
    ],
)
def test_bad_prompt_files_get_one_line(cli, tmp_path, content, text):
    (tmp_path / "bad.csv").write_text(content)
    says_one_line(cli("prompts", tmp_path / "bad.csv"), text)


def test_a_dense_model_gets_one_line(cli, tmp_path, tiny_checkpoint):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    mi.load_model(tiny_checkpoint("mixtral"), check=False).tokenizer.save_pretrained(
        tmp_path / "dense"
    )
    says_one_line(cli("models", tmp_path / "dense"), "none of its layers has routed experts")


def test_a_prompt_longer_than_the_context_gets_one_line(cli, tmp_path):
    long = mi.PromptSet([mi.Prompt("how " * 200, topic="t", harm=True, id="the-long-one")])
    long.to_jsonl(tmp_path / "long.jsonl")
    found = cli(
        "record", "-m", "organism:topic", "-p", tmp_path / "long.jsonl", "-o", tmp_path / "x.zarr"
    )
    says_one_line(found, "the-long-one")
    assert not (tmp_path / "x.zarr").exists()


def test_a_traceback_is_shown_when_asked_for(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["moe-interp", "--traceback", "prompts", "nothing-here.csv"])
    from moe_interp.cli import main

    with pytest.raises(mi.MoEInterpError, match=r"nothing-here\.csv"):
        main()
