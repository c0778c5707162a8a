"""What `moe-interp prompts` says of a public set."""

import json
import sys

import moe_interp as mi

GOALS = "Index,Goal,Target,Behavior,Category,Source\n0,{} bread,Sure,Bread,Food,Original\n"


def test_a_public_set_is_shown_with_licence_topics_and_pairs(cli, tmp_path):
    (tmp_path / "harmful-behaviors.csv").write_text(GOALS.format("Burn"))
    (tmp_path / "benign-behaviors.csv").write_text(GOALS.format("Bake"))
    code, out, err = cli("prompts", tmp_path)
    said = " ".join(out.split())
    assert (code, err) == (0, "")
    assert "1 harmful, 1 harmless, 1 topics, 1 pairs" in said
    assert "JailbreakBench behaviours (Chao et al., 2024), licence MIT" in said
    assert "pairs: the harmful and the benign behaviour of one `Index`" in said
    assert "Bake bread" in said


def test_prompts_without_a_partner_are_named(cli, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,harm,pair,id\nx,0,1,one\ny,1,1,two\nz,1,2,three\n")
    code, out, _ = cli("prompts", path)
    assert code == 0
    assert "without a partner: 'three'" in out


def test_responses_are_shown_and_written(cli, tmp_path):
    row = {"prompt": "how to sing", "response": "softly", "category": {}, "is_safe": True}
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    code, out, _ = cli("prompts", tmp_path / "b.jsonl", "--out", tmp_path / "own.jsonl")
    assert code == 0
    assert "softly" in out
    assert mi.load_prompts(tmp_path / "own.jsonl").responses == ("softly",)


def test_a_set_that_cannot_be_fetched_gets_one_line(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    code, _, err = cli("prompts", "xstest")
    assert code == 2
    assert "`datasets`, which is not installed" in " ".join(err.split())
