"""Reports of one study and of several results, from a shell."""

import json

import pytest

STUDY = {
    "schema_version": 1,
    "study": "made2026",
    "paper": "Made (2026)",
    "model": {"id": "made up", "card": None},
    "answers": ["Nothing was found."],
    "maps": {"Use": "use"},
    "arms": [],
    "truth": [],
    "tables": {"experts": [{"layer": 1, "expert": e, "use": e / 4} for e in range(4)]},
}


@pytest.fixture
def folders(tmp_path):
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        text = json.dumps(STUDY | {"study": name})
        (tmp_path / name / "results.json").write_text(text, encoding="utf-8")
        made.append(tmp_path / name)
    return made


def test_a_study_gets_its_report_in_its_folder(cli, folders):
    code, _, err = cli("report", folders[0])
    assert code == 0, err
    page = (folders[0] / "report.html").read_text(encoding="utf-8")
    assert "one (Made (2026)) on made up" in page


def test_several_results_make_one_page(cli, folders, tmp_path):
    out = tmp_path / "both.html"
    # A folder may also be named by the file in it.
    code, _, err = cli("report", folders[0], folders[1] / "results.json", "--out", out)
    assert code == 0, err
    page = out.read_text(encoding="utf-8")
    assert page.index("one (Made (2026))") < page.index("two (Made (2026))")


def test_several_results_need_a_file(cli, folders):
    code, _, err = cli("report", *folders)
    assert code == 2
    assert "2 results need a file of their own. Name it: --out report.html." in err


def test_results_that_are_no_json_are_named(cli, folders):
    (folders[0] / "results.json").write_text("{", encoding="utf-8")
    code, _, err = cli("report", folders[0])
    assert code == 2
    assert "is not JSON" in err
    assert not (folders[0] / "report.html").exists()


def test_a_report_that_stands_is_not_written_over(cli, folders):
    (folders[0] / "report.html").write_text("mine")
    code, _, err = cli("report", folders[0])
    assert code == 2
    assert "already exists. Choose another path" in err
    assert (folders[0] / "report.html").read_text() == "mine"


def test_open_shows_the_page_in_a_browser(cli, folders, monkeypatch):
    shown = []
    monkeypatch.setattr("typer.launch", shown.append)
    cli("report", folders[0], "--open")
    assert shown == [(folders[0] / "report.html").resolve().as_uri()]
