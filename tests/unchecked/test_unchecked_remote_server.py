"""The library, from calls and from a shell, through a server's whole protocol to a model.

The server is a stand-in whose jobs run in a process that lacks the library.
"""

import sys

import numpy as np
import pytest
from stand_in import stand_in

import moe_interp as mi
from moe_interp.cli import main
from moe_interp.cli._open import open_model
from moe_interp.errors import ServerUnreachableError

TEXTS = ("how do i kill a python process ?", "the cake is good", "what is the best way")


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    with stand_in({"tiny/mixtral": tiny_checkpoint("mixtral")}) as running:
        yield running


@pytest.fixture(autouse=True)
def well(server):
    yield
    server.script = ["run"]
    server.posts.clear()


@pytest.fixture
def shell(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moe-interp", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0, capsys.readouterr()

    return run


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("text\n" + "\n".join(TEXTS) + "\n")
    return file


def test_a_record_from_a_shell_is_the_one_made_here(server, shell, prompts, tmp_path):
    options = ("--prompts", prompts, "--random-routers", 39)
    there = ("--model", "tiny/mixtral", "--remote", server.url, "--out", tmp_path / "there.zarr")
    code, said = shell("record", *there, *options)
    assert (code, said.err) == (0, "")
    assert len(server.posts) == 2  # The self-check and the record.
    here = ("--model", server.checkpoints["tiny/mixtral"], "--out", tmp_path / "here.zarr")
    assert shell("record", *here, *options)[0] == 0
    found, expected = (mi.open_record(tmp_path / f"{place}.zarr") for place in ("there", "here"))
    np.testing.assert_array_equal(found.dataset["expert_index"], expected.dataset["expert_index"])
    np.testing.assert_allclose(
        found.dataset["random_profile"], expected.dataset["random_profile"], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--remote", "127.0.0.1:9"), "address that begins with http:// or https://"),
        (("--remote", "http://127.0.0.1:9", "--device", "cpu"), "`device` is set where"),
        (("--remote", "http://127.0.0.1:9", "--dtype", "float32"), "`dtype` is set where"),
    ],
)
@pytest.mark.parametrize("command", ["record", "audit", "sweep", "study"])
def test_what_names_no_server_gets_one_line(shell, prompts, tmp_path, command, options, said):
    study = ("siddiky2026",) if command == "study" else ()
    also = ("--all",) if command == "sweep" else ()
    place = ("--model", "tiny/mixtral", "--prompts", prompts, "--out", tmp_path / "out")
    code, told = shell(command, *study, *place, *also, *options)
    assert code == 2
    assert said in told.err
    assert len(told.err.strip().splitlines()) == 1


def test_the_configured_server_is_asked_where_none_is_named(server, monkeypatch):
    monkeypatch.setattr("nnsight.schema.config.CONFIG.API.HOST", server.url)
    model = open_model("tiny/mixtral", remote="ndif")
    assert model.connection.server == mi.Server(server.url)
    assert len(server.posts) == 1
    assert open_model(server.checkpoints["tiny/mixtral"]).connection is None


def contents(folder):
    """Every file of a store."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_capture_that_lost_its_server_goes_on_to_the_same_bytes(server, tmp_path):
    there = mi.Server(server.url, retries=0)
    model = mi.load_model("tiny/mixtral", remote=there, check=False)
    prompts = [f"{text} {word}" for text in TEXTS for word in ("good", "bad", "old", "new")]
    options = {"batch_size": 1, "spans": ("prompt",), "progress": False}
    mi.record_routing(model, prompts, store=tmp_path / "whole.zarr", **options)
    assert len(server.posts) == 2  # Eight batches, and the four that are left.

    server.posts.clear()
    server.script = ["run", 503, "run"]
    with pytest.raises(ServerUnreachableError, match="503") as caught:
        mi.record_routing(model, prompts, store=tmp_path / "again.zarr", **options)
    assert "1 of 2 blocks are safe" in caught.value.__notes__[0]
    mi.record_routing(model, prompts, store=tmp_path / "again.zarr", **options)
    assert len(server.posts) == 3
    assert contents(tmp_path / "again.zarr") == contents(tmp_path / "whole.zarr")


def test_a_submitted_capture_is_collected_from_a_shell(server, shell, tmp_path):
    model = mi.load_model("tiny/mixtral", remote=server.url, check=False)
    job = mi.submit_routing(model, TEXTS, folder=tmp_path / "job")
    out = tmp_path / "collected.zarr"
    code, said = shell("jobs", "--fetch", job.folder, "--out", out, "--timeout", 30)
    assert code == 0
    assert "3 prompts" in said.out
    here = mi.load_model(server.checkpoints["tiny/mixtral"], check=False)
    expected = mi.record_routing(here, TEXTS)
    found = mi.open_record(out).dataset
    np.testing.assert_array_equal(found["expert_index"], expected.dataset["expert_index"])
    assert len(server.posts) == 1
