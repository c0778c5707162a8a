"""Arguments that make no sense end in one line and a code that is not 0, and write nothing."""

import pytest

RECORD = ("record", "-m", "organism:topic", "-p", "organism", "-o", "OUT")

CASES = [
    ("no-such-command",),
    ("record",),
    ("record", "-m", "organism:topic"),
    ("record", "-m", "organism:nothing", "-p", "organism", "-o", "OUT"),
    ("record", "-m", "", "-p", "organism", "-o", "OUT"),
    ("record", "-m", "../../etc", "-p", "organism", "-o", "OUT"),
    ("record", "-m", "organism:../../etc", "-p", "organism", "-o", "OUT"),
    ("record", "-m", "BROKEN", "-p", "organism", "-o", "OUT"),
    ("record", "-m", "organism:topic", "-p", "none.csv", "-o", "OUT"),
    ("record", "-m", "organism:topic", "-p", "BROKEN", "-o", "OUT"),
    ("record", "-m", "organism:topic", "-p", "organism", "-o", "MINE"),
    ("record", "-m", "organism:topic", "-p", "organism", "-o", "MINE", "--force"),
    ("record", "-m", "organism:topic", "-p", "organism", "-o", "FILE"),
    ("record", "-m", "organism:topic", "-p", "organism", "-o", "FILE", "--force"),
    (*RECORD, "--batch-size", "0"),
    (*RECORD, "--batch-size", "-1"),
    (*RECORD, "--batch-size", "many"),
    (*RECORD, "--seed", "-1"),
    (*RECORD, "--seed", "1.5"),
    (*RECORD, "--random-routers", "3"),
    (*RECORD, "--random-routers", "x"),
    (*RECORD, "--shard", "1"),
    (*RECORD, "--shard", "2/2"),
    (*RECORD, "--shard", "0/0"),
    (*RECORD, "--shard", "-1/2"),
    (*RECORD, "--shard", "1/2/3"),
    (*RECORD, "--shard", "one/two"),
    (*RECORD, "--shard", "0/2", "--force"),
    (*RECORD, "--on-error", "ignore"),
    (*RECORD, "--weight-dtype", "int8"),
    (*RECORD, "--no-such-option"),
    (*RECORD, "surplus"),
    (*RECORD, "--dtype", "float7"),
    (*RECORD, "--dtype", "int8"),
    (*RECORD, "--device", "abacus"),
    (*RECORD, "--device", "cuda:99"),
    ("test",),
    ("test", "none.zarr"),
    ("test", "FILE"),
    ("test", "MINE"),
    ("score",),
    ("score", "MINE"),
    ("score", "none.zarr"),
    ("audit", "-m", "organism:topic", "-p", "organism"),
    ("audit", "-m", "organism:topic", "-p", "organism", "-o", "OUT", "--alpha", "2"),
    ("audit", "-m", "organism:topic", "-p", "organism", "-o", "OUT", "--no-such"),
    ("study", "none2099", "-m", "organism:topic", "-p", "organism", "-o", "OUT"),
    ("study", "siddiky2026", "-m", "organism:topic", "-p", "organism"),
    ("study",),
    ("report", "FILE"),
    ("report", "MINE"),
    ("report", "none.json"),
    ("prompts", "none2099"),
    ("prompts", "FILE"),
    ("models", "BROKEN"),
    ("jobs", "--fetch", "none"),
    ("tune",),
]


@pytest.mark.parametrize("arguments", CASES, ids=" ".join)
def test_what_makes_no_sense_is_told_and_changes_nothing(cli, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "MINE").mkdir()
    (tmp_path / "MINE" / "thesis.txt").write_text("years")
    (tmp_path / "FILE").write_text("years")
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "config.json").write_text("{")
    (tmp_path / "BROKEN" / "a.csv").write_text('text\n"never closed')
    before = {str(path): path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    code, _, err = cli(*arguments)
    assert code == 2
    assert "Traceback" not in err
    assert err.strip()
    after = {str(path): path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert after == before


def test_an_optional_package_that_is_not_there_is_named_in_one_line(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("moe_interp.models._load.find_spec", lambda name: None)
    out = tmp_path / "a.zarr"
    code, _, err = cli(*RECORD[:-1], out, "--device", "auto")
    assert code == 2
    told = "moe-interp: `device='auto'` needs accelerate. Install it: pip install"
    assert err.strip() == f"{told} 'moe-interp[devices]'."
    assert not out.exists()
