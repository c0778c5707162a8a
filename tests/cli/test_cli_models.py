"""The list of families in a shell: all of them, and everything about one, at any width."""

import textwrap

import pytest

from moe_interp.cli import _models
from moe_interp.models import supported_families

TABLE = supported_families()


def words(text):
    return " ".join(text.split())


def rows(out):
    """The first word of each line, and the line."""
    return {line.split()[0]: line for line in out.splitlines() if line.strip()}


@pytest.fixture
def printed(cli, monkeypatch):
    """What `moe-interp models` prints on a terminal of some width."""

    def run(*arguments, width=200):
        monkeypatch.setattr(_models.console, "_width", width)
        code, out, err = cli("models", *arguments)
        assert (code, err) == (0, "")
        return out

    return run


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_all_families_are_listed_and_no_line_is_too_long(printed, width):
    out = printed(width=width)
    lines = rows(out)
    assert set(TABLE) <= set(lines)
    assert max(map(len, out.splitlines())) <= width
    for name in TABLE.offered:
        assert TABLE[name].shared.split()[0] in lines[name]
    for name in TABLE.refused:
        assert words(TABLE[name].reason)[:20] in lines[name]
    assert f"{len(TABLE.offered)} model types with routed experts are read" in out


def test_a_wide_terminal_also_shows_how_they_route(printed):
    wide, narrow = rows(printed(width=140)), rows(printed(width=80))
    assert "top-k + bias in groups" in wide["exaone_moe"]
    assert "sigmoid" in wide["deepseek_v3"]
    assert "sigmoid" not in narrow["deepseek_v3"]
    assert narrow["deepseek_v3"].split() == ["deepseek_v3", "plain", "Σ", "+", "S", "all"]
    assert wide["llama4_text"].rstrip().endswith("all but")
    assert "all but expert_outputs" in rows(printed(width=200))["llama4_text"]
    assert "f a factor" in words(printed(width=80))


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("given", [("--family", "llama4_text"), ("llama4_text",)])
def test_a_family_is_told_with_its_reasons(printed, given, width):
    out = printed(*given, width=width)
    assert max(map(len, out.splitlines())) <= width
    family, lines = TABLE["llama4_text"], rows(out)
    for text in ("Llama4TextMoe", "Llama4Router", "Llama4TextExperts", "input_scaled"):
        assert text in out
    assert words(f"output_from {family.output_from}").startswith(words(lines["output_from"]))
    assert words(f"Note: {family.notes[0]}.") in words(out)
    first = textwrap.shorten(family.read["expert_outputs"], 25, placeholder="")
    assert lines["expert_outputs"].split(maxsplit=1)[1].startswith(first)
    for quantity in family.read:
        assert quantity in lines
    assert lines["router_logits"].split() == ["router_logits", "yes", "yes"]


def test_a_text_part_leads_to_its_family(printed):
    out = printed("--family", "qwen3_vl_moe_text")
    assert out.startswith("qwen3_vl_moe (its text part, qwen3_vl_moe_text) is read")


@pytest.mark.parametrize("name", TABLE.refused)
def test_a_refused_family_is_told_with_its_reason(printed, name):
    out = words(printed("--family", name))
    assert out.startswith(f"{name} is refused: {words(TABLE[name].reason)}")
    assert TABLE[name].model_class in out


@pytest.mark.parametrize("name", TABLE)
def test_every_family_can_be_told(printed, name):
    assert printed("--family", name).startswith(name)


def test_a_folder_of_a_familys_name_is_a_model(cli, tmp_path, monkeypatch):
    (tmp_path / "mixtral").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("models", "mixtral")
    assert (code, out) == (2, "")
    assert "'mixtral' holds no config.json" in err
