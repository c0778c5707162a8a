import json
import sys

import pytest

from moe_interp.cli import main
from moe_interp.studies import STUDIES

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("study-command")]


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run the command line in this process; gives exit code, standard output and error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moe-interp", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


def test_the_list_has_every_study_with_its_formulas(cli):
    code, out, _ = cli("study", "--list")
    assert code == 0
    for study in STUDIES.values():
        assert study.reference in out
        assert study.claim in out
        assert study.adds in out
        for what, source in study.status.items():
            assert f"formula: {what}: {source}" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["siddiki", "-m", "x", "-p", "y", "-o", "z"], "There is no study 'siddiki'. Studies: "),
        ([], "A study needs NAME, --model, --prompts, --out."),
        (["safex2025", "-m", "organism:harm"], "A study needs --prompts, --out."),
    ],
)
def test_what_is_wrong_is_said_in_one_line(cli, arguments, said):
    code, out, err = cli("study", *arguments)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_a_result_that_stands_there_is_not_replaced(cli, tmp_path):
    (tmp_path / "results.json").write_text("old")
    code, _, err = cli(
        "study", "safex2025", "-m", "organism:harm", "-p", "organism", "-o", tmp_path
    )
    assert code == 2
    assert "already holds a result" in err
    assert "--force" in err
    assert (tmp_path / "results.json").read_text() == "old"


def test_a_study_runs_from_the_command_line(cli, prompts, tmp_path):
    file = tmp_path / "prompts.jsonl"
    prompts.to_jsonl(file)
    out = tmp_path / "out"
    code, said, err = cli(
        "study", "safex2025", "-m", "organism:topic", "-p", file, "-o", out, "--seed", 3
    )
    assert code == 0, err
    assert "safex2025 (SAFEx (2025), arXiv 2506.17368) on organism:topic" in said
    assert str(out / "report.html") in said
    assert json.loads((out / "results.json").read_text())["settings"]["seed"] == 3
