"""A folder that is broken or means harm gives an error that says so; nothing runs or changes."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest

from moe_interp.capture import check_blocks, open_record, record_routing
from moe_interp.errors import ResultError, ResultExistsError
from moe_interp.prompts import Prompt, PromptSet

PROMPTS = PromptSet([Prompt("how do i bake", harm=False), Prompt("steal a car", harm=True)])


class Payload:
    """What an attacker would pack into a chunk."""

    def __reduce__(self):
        return os.mkdir, (os.environ["PAYLOAD"],)


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "a.zarr"
    record_routing(model, PROMPTS, store=path, progress=False)
    return path


@pytest.fixture
def store(good, tmp_path, monkeypatch):
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "executed"))
    return shutil.copytree(good, tmp_path / "a.zarr")


def files(folder):
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in found}


def edit(store, key, **changes):
    """Change what the store says of an array or of itself, in both places where it says so."""
    listed = json.loads((store / ".zmetadata").read_text())
    listed["metadata"][key] |= changes
    (store / ".zmetadata").write_text(json.dumps(listed))
    (store / key).write_text(json.dumps(listed["metadata"][key]))


def drop(store, *names):
    listed = json.loads((store / ".zmetadata").read_text())
    for name in names:
        del listed["metadata"][f"{name}/.zarray"], listed["metadata"][f"{name}/.zattrs"]
    (store / ".zmetadata").write_text(json.dumps(listed))


def refuse(store, said):
    """Opening, checking and going on with it are refused, and leave all as it was."""
    before = files(store.parent)
    with pytest.raises(ResultError, match=said):
        open_record(store)
    assert files(store.parent) == before
    assert not (store.parent / "executed").exists()


CODECS = [
    {"dtype": "|O", "filters": [{"id": "pickle"}]},
    {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]},
    {"dtype": "|O", "filters": [{"id": "json2"}]},
    {"dtype": "|O", "filters": [{"id": "msgpack2"}]},
    {"dtype": "|O", "filters": [{"id": "vlen-bytes"}]},
    {"dtype": "|O", "filters": [{"id": "vlen-array", "dtype": "<i4"}]},
    {"dtype": "|O", "filters": None},
    {"dtype": "|O"},
    {"filters": [{"id": "pickle"}]},
    {"filters": [{"id": "delta", "dtype": "<i4"}]},
    {"compressor": {"id": "pickle"}},
    {"compressor": {"id": "no-such-codec"}},
    {"compressor": "zstd"},
    {"dtype": [["a", "|O"]]},
    {"dtype": "|V8"},
    {"dtype": "<M8[ns]"},
    {"dtype": "<U9999999"},
    {"dtype": None},
]


@pytest.mark.parametrize("changes", CODECS, ids=str)
def test_an_array_that_could_run_code_is_not_opened(store, changes):
    edit(store, "token_text/.zarray", **{"filters": None, **changes})
    (store / "token_text" / "0").write_bytes(pickle.dumps(Payload()))
    refuse(store, "'token_text' of .* is not plain numbers or texts .* may run code")
    with pytest.raises(ResultError, match="not plain numbers or texts"):
        check_blocks(store)


def test_a_payload_would_run_if_it_were_unpacked(store):
    """What the cases above rest on."""
    pickle.loads(pickle.dumps(Payload()))
    assert (store.parent / "executed").is_dir()


@pytest.mark.parametrize(
    "shape", [[-1], ["a"], [2**60], 5, None, [1.5], [True], {"a": 1}, [1, 1]], ids=str
)
def test_an_impossible_shape_is_refused(store, shape):
    edit(store, "pos/.zarray", shape=shape)
    refuse(store, "'pos' of .* has an impossible shape")


@pytest.mark.parametrize("chunks", [[0], [-5], None, ["x"]], ids=str)
def test_impossible_chunks_are_refused(store, chunks):
    edit(store, "pos/.zarray", chunks=chunks)
    refuse(store, "'pos' of .* has an impossible shape")


@pytest.mark.parametrize(
    "key",
    [
        "../outside/.zarray",
        "/etc/.zarray",
        "a/../../b/.zarray",
        "a/b/.zarray",
        "..\\b/.zarray",
        "~/.zarray",
        "pos/zarr.json",
        "",
        "pos\n/.zarray",
    ],
    ids=repr,
)
def test_a_path_out_of_the_folder_is_refused(store, key):
    listed = json.loads((store / ".zmetadata").read_text())
    listed["metadata"][key] = listed["metadata"]["pos/.zarray"]
    (store / ".zmetadata").write_text(json.dumps(listed))
    refuse(store, "among its arrays, and no record has a path like that")


@pytest.mark.parametrize("place", ["expert_index", "expert_index/0.0.0", "new", ".capture/x.npz"])
def test_a_link_out_of_the_folder_is_refused(store, place, tmp_path):
    (tmp_path / "secret").write_text("key")
    target = store / place
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    target.symlink_to(tmp_path / "secret")
    refuse(store, "leads out of the record's folder")


def test_a_link_within_the_folder_and_one_to_the_record_are_fine(store, tmp_path):
    chunk = next((store / "expert_index").glob("0*"))
    chunk.rename(store / "moved")
    chunk.symlink_to(store / "moved")
    (tmp_path / "link.zarr").symlink_to(store)
    assert open_record(tmp_path / "link.zarr").n_prompts == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".zmetadata", b""),
        (".zmetadata", b"[]"),
        (".zmetadata", b"{"),
        (".zmetadata", b"\xff\xfe"),
        (".zmetadata", b'{"metadata": []}'),
        (".zmetadata", b'{"metadata": {".zattrs": 5}}'),
        (".zmetadata", b"[" * 100_000),
        (".zmetadata", b'{"metadata": {}, "zarr_consolidated_format": 1}'),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_metadata_that_is_none_is_refused(store, name, content):
    (store / name).write_bytes(content)
    refuse(store, "cannot be read as a zarr folder|no routing record|is broken")


def test_without_metadata_it_is_refused(store):
    (store / ".zmetadata").unlink()
    refuse(store, "cannot be read as a zarr folder")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "something else"}, "but no routing record"),
        ({"kind": None}, "but no routing record"),
        ({"schema_version": 99}, "routing record of version 99"),
        ({"schema_version": "1"}, "routing record of version '1'"),
        ({"model": None}, "is broken: 'model' is missing"),
        ({"model": {}}, "is broken: 'model' is missing"),
        ({"prompts": []}, "is broken: 'prompts' is missing"),
        ({"complete": False}, "not whole"),
    ],
    ids=str,
)
def test_a_store_that_says_something_else_of_itself_is_refused(store, changes, said):
    edit(store, ".zattrs", **changes)
    refuse(store, said)


@pytest.mark.parametrize(
    "name", ["expert_index", "in_span", "prompt_index", "pos", "token_id", "text", "id", "harm"]
)
def test_a_record_without_what_every_record_has_is_refused(store, name):
    drop(store, name)
    refuse(store, f"is broken: '{name}' is missing or has other axes")


@pytest.mark.parametrize(
    ("name", "axes"),
    [("expert_index", ["layer", "token", "top_k"]), ("pos", ["prompt"]), ("text", ["token"])],
)
def test_a_record_along_other_axes_is_refused(store, name, axes):
    edit(store, f"{name}/.zattrs", _ARRAY_DIMENSIONS=axes)
    refuse(store, "is broken|cannot be read as a zarr folder")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"kind": "moe_interp capture"}', b'{"kind": 5, "identity": 1}']
)
def test_a_capture_whose_identity_is_broken_is_left_alone(store, model, content):
    (store / ".capture" / "capture.json").write_bytes(content)
    before = files(store)
    with pytest.raises(ResultExistsError, match="was left as it is"):
        record_routing(model, PROMPTS, store=store, progress=False)
    with pytest.raises(ResultError, match="no capture with checksums"):
        check_blocks(store)
    assert files(store) == before


@pytest.mark.parametrize("kind", ["file", "folder", "empty", "other"])
def test_a_place_that_holds_something_else_is_left_alone(tmp_path, model, kind):
    place = tmp_path / "mine"
    if kind == "file":
        place.write_text("years")
    else:
        (place / ".capture").mkdir(parents=True)
    if kind == "folder":
        (place / "thesis.txt").write_text("years")
    if kind == "other":
        (place / ".capture" / "thesis.txt").write_text("years")
    before = files(tmp_path)
    with pytest.raises(ResultExistsError, match="was left as it is"):
        record_routing(model, PROMPTS, store=place, progress=False)
    assert files(tmp_path) == before


def test_edges_of_objects_are_not_unpacked(model, tmp_path, monkeypatch):
    """The rows beside a store that is being filled, where an attacker may have put them."""
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "executed"))
    store = tmp_path / "a.zarr"
    prompts = PromptSet(Prompt("how " * (1 + row % 5)) for row in range(24))
    options = {"store": store, "batch_size": 1, "progress": False}
    record_routing(model, prompts, shard=(0, 2), **options)
    edges = next((store / ".capture").glob("*.npz"))
    np.savez(edges, **{"expert_index-0": np.array([Payload()], dtype=object)})
    with pytest.raises(ResultError, match=r"cannot be read as numbers.*Remove the file"):
        record_routing(model, prompts, shard=(1, 2), **options)
    assert not (tmp_path / "executed").exists()
