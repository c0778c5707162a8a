"""A store that is filled block by block: the same record, whatever cut the capture off."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from moe_interp.capture import _chunks, _fill, _run, _session, _stream, open_record, record_routing
from moe_interp.capture._blocks import BlockPlan, checked_shard
from moe_interp.capture._identity import tokens_digest
from moe_interp.capture._stream import check_blocks
from moe_interp.errors import PromptError, ResultError, ResultExistsError, StoreFullError
from moe_interp.prompts import Prompt, PromptSet, tokenize

RECORDED = (
    *("expert_index", "routing_weights", "router_logits", "router_probs"),
    *("mean_router_input", "random_profile", "in_span"),
)
QUANTITIES = RECORDED[:5]


def capture(model, prompts, store=None, **changes):
    options = {
        "quantities": QUANTITIES,
        "batch_size": 1,
        "rng": np.random.default_rng(0),
        "n_random_routers": 3,
        "progress": False,
    }
    return record_routing(model, prompts, store=store, **{**options, **changes})


def files(folder):
    """All files of a folder and what they hold."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module", autouse=True)
def remembered():
    """Run every batch of a model once: what is tested here is where results go."""
    run_batch, known = _run.run_batch, {}

    def run(model, encoded, quantities, routers):
        spans = b"".join(span.numpy().tobytes() for span in encoded.spans.values())
        drawn = b"".join(router.numpy().tobytes() for router in routers.values())
        asked = (encoded.input_ids, encoded.attention_mask)
        key = (id(model), *quantities, spans, drawn, *(part.numpy().tobytes() for part in asked))
        if key not in known:
            known[key] = run_batch(model, encoded, quantities, routers)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run, "run_batch", run)
        yield


@pytest.fixture(scope="module")
def many():
    """Forty prompts, which make five blocks of eight that end within chunks."""
    rng = np.random.default_rng(1)
    words = ("how", "do", "i", "kill", "a", "python", "process", "make", "cake", "steal", "car")
    return PromptSet(
        Prompt(
            " ".join(rng.choice(words, size=1 + row % 7)), harm=bool(row % 2), pair=f"{row // 2}"
        )
        for row in range(40)
    )


@pytest.fixture(scope="module")
def whole(model, many, tmp_path_factory):
    """What nobody disturbed."""
    store = tmp_path_factory.mktemp("whole") / "a.zarr"
    capture(model, many, store)
    return store


def test_a_streamed_record_is_the_record(model, many, whole):
    memory, opened = capture(model, many), open_record(whole)
    assert set(opened.dataset.variables) == set(memory.dataset.variables)
    assert opened.dataset.attrs == memory.dataset.attrs
    assert opened.prompts == memory.prompts
    for name in memory.dataset.variables:
        found, expected = opened.dataset[name], memory.dataset[name]
        assert found.dims == expected.dims
        # One prompt a batch in both, so that not even rounding differs.
        assert found.values.tolist() == expected.values.tolist()
        assert found.dtype.kind in "OT" or found.dtype == expected.dtype


def test_the_plan_has_blocks_that_meet_within_chunks(whole):
    """What the tests below rest on."""
    plan = BlockPlan(
        **json.loads((whole / ".capture/capture.json").read_text())["identity"]["plan"]
    )
    ends = np.cumsum(np.bincount(open_record(whole).dataset["prompt_index"].values))
    assert plan.n_blocks == 5
    assert (ends[7::8] % plan.rows != 0).sum() >= 3
    assert all(n for n in (plan.inner(0, int(ends[7]))[1], plan.rows))


def test_other_tools_read_it(whole):
    plain = xr.open_zarr(whole, chunks=None)
    assert plain.attrs["complete"] is True
    assert set(RECORDED) == set(plain.data_vars)
    assert np.array_equal(plain["expert_index"], open_record(whole).dataset["expert_index"])


def test_formats_are_compact(model, many, whole, tmp_path):
    dataset = open_record(whole).dataset
    assert dataset["expert_index"].dtype == np.uint8
    assert dataset["router_logits"].dtype == dataset["routing_weights"].dtype == np.float32
    half = capture(model, many, tmp_path / "a.zarr", weight_dtype="float16").dataset
    assert half["routing_weights"].dtype == half["router_probs"].dtype == np.float16
    assert half["router_logits"].dtype == np.float32
    expected = dataset["routing_weights"].values.astype(np.float16)
    assert np.array_equal(half["routing_weights"].values, expected)


def test_a_store_knows_what_it_was_made_of(model, many, whole):
    known = json.loads((whole / ".capture/capture.json").read_text())["identity"]
    assert known["model"] == model.id
    assert known["prompts"] == many.digest
    assert known["spans"] == ["user", "prompt", "last"]
    assert len(known["tokenizer"]) == len(known["weights"]) == 16
    assert known["versions"]["torch"] == torch.__version__


def test_a_store_knows_its_tokens_and_where_the_spans_lie(model, many, whole):
    known = json.loads((whole / ".capture/capture.json").read_text())["identity"]
    tokens = tokenize(model.tokenizer, many, spans=("user", "prompt", "last"))
    assert known["tokens"] == tokens_digest(tokens)
    ids, user = tokens.token_ids, tokens.spans["user"]
    others = (
        ((*ids[:-1], (*ids[-1][:-1], ids[-1][-1] + 1)), user),
        # The same tokens and spans in a row, cut elsewhere between two prompts.
        (((*ids[0], ids[1][0]), ids[1][1:], *ids[2:]), user),
        (ids, (~user[0], *user[1:])),
    )
    for token_ids, span in others:
        changed = replace(tokens, token_ids=token_ids, spans={**tokens.spans, "user": span})
        assert tokens_digest(changed) != known["tokens"]


def test_a_chunk_of_zeros_is_written_so_that_a_missing_one_was_lost(tmp_path):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    _chunks.create_array(group, "index", ("token",), (8,), (4,), np.uint8)
    _chunks.write_rows(group, "index", 0, 0, np.zeros(8, dtype=np.uint8))
    files = _chunks.chunk_files(group["index"], 0, 0, 8)
    assert files == ["0", "1"]
    assert all(_chunks.is_whole(tmp_path / "a.zarr" / "index" / name) for name in files)


def test_a_store_knows_which_revision_it_was_made_of(model, many, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(model.nnsight, "revision", "v2", raising=False)
        with pytest.raises(ResultExistsError, match=r"revision .* there, 'v2' now"):
            capture(model, many, whole)
    with monkeypatch.context() as patch:
        patch.setattr(model.config, "_commit_hash", "0a1b", raising=False)
        with pytest.raises(ResultExistsError, match=r"commit None there, '0a1b' now"):
            capture(model, many, whole)
    assert capture(model, many, whole).n_prompts == 40


def test_asking_again_runs_nothing_and_changes_nothing(model, many, whole, monkeypatch):
    before = files(whole)
    monkeypatch.setattr(_run, "run_batch", None)
    assert capture(model, many, whole).n_prompts == 40
    assert files(whole) == before


class Cut(BaseException):
    """Stops a capture like a kill does, wherever it is."""


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2, 3))])
def test_wherever_it_is_cut_off_it_goes_on_to_the_same_bytes(
    model, many, whole, tmp_path, monkeypatch, part
):
    """Stopped before the n-th write of anything, for every third n, and again ten writes later."""
    count = {"left": 10**9}

    def cutting(write):
        def counted(*args, **options):
            count["left"] -= 1
            if count["left"] < 0:
                raise Cut
            return write(*args, **options)

        return counted

    for name in ("write_rows", "write_whole"):
        monkeypatch.setattr(_stream, name, cutting(getattr(_chunks, name)))
    capture(model, many, tmp_path / "a.zarr")
    n_writes = 10**9 - count["left"]
    assert n_writes > 50
    for n in range(3 * part, n_writes, 12):
        store = tmp_path / f"{n}.zarr"
        for allowed in (n, 10):
            count["left"] = allowed
            with pytest.raises(Cut):
                capture(model, many, store)
        count["left"] = 10**9
        assert capture(model, many, store).n_prompts == 40
        assert files(store) == files(whole)
        assert not list(tmp_path.glob(f".{n}.zarr*"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_make_what_one_process_makes(model, many, whole, tmp_path, order):
    store = tmp_path / "a.zarr"
    found = [capture(model, many, store, shard=(number, 3)) for number in order]
    assert found[:2] == [None, None]
    assert found[2].n_prompts == 40
    assert files(store) == files(whole)


def test_a_store_that_is_not_whole_is_not_opened(model, many, tmp_path):
    capture(model, many, tmp_path / "a.zarr", shard=(0, 2))
    with pytest.raises(
        ResultError, match=r"not whole: 3 of its blocks are there. Ask for the same"
    ):
        open_record(tmp_path / "a.zarr")
    with pytest.raises(ResultError, match="is not whole: block 1 is missing"):
        check_blocks(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spans": ("last",)}, r"spans \['user', 'prompt', 'last'\] there, \['last'\] now"),
        ({"quantities": ()}, "quantities"),
        ({"batch_size": 2}, "batch_size 1 there, 2 now"),
        ({"padding_side": "left"}, "padding_side 'right' there, 'left' now"),
        ({"weight_dtype": "float16"}, "weight_dtype 'float32' there, 'float16' now"),
        ({"rng": np.random.default_rng(1)}, "random_routers"),
        ({"n_random_routers": 4}, r"random_routers \(n 3 there, 4 now"),
    ],
)
def test_a_capture_of_something_else_is_refused_by_field(model, many, whole, changes, said):
    before = files(whole)
    with pytest.raises(ResultExistsError, match=f"of something else and was left.*{said}"):
        capture(model, many, whole, **changes)
    assert files(whole) == before


def test_other_prompts_are_refused_by_name(model, many, whole):
    with pytest.raises(ResultExistsError, match=r"prompts '[0-9a-f]+\.\.\. there, '[0-9a-f]+"):
        capture(model, many.select(range(39)), whole)


def test_another_model_is_refused_by_name(make_model, many, whole):
    with pytest.raises(ResultExistsError, match=r"left as it is: model '.*' there, '.*' now"):
        capture(make_model("mixtral"), many, whole)


def test_other_weights_and_another_tokenizer_are_refused_by_name(model, many, whole, monkeypatch):
    monkeypatch.setattr("moe_interp.capture._identity.weights_digest", lambda model: "other")
    monkeypatch.setattr("moe_interp.capture._identity.tokenizer_digest", lambda model: "changed")
    with pytest.raises(ResultExistsError, match=r"weights '.*' there, 'other' now; tokenizer '"):
        capture(model, many, whole)


def test_a_tokenizer_that_only_pads_otherwise_is_the_same(model, many, whole):
    before = model.tokenizer.padding_side
    model.tokenizer(["how do i", "a"], padding=True, truncation=True, max_length=2)
    try:
        assert capture(model, many, whole).n_prompts == 40
    finally:
        model.tokenizer.padding_side = before


def test_without_resume_it_is_left_alone(model, many, whole):
    with pytest.raises(ResultExistsError, match=r"it is this capture. Pass resume=True"):
        capture(model, many, whole, resume=False)


def test_what_is_lost_or_cut_is_done_again(model, many, whole, tmp_path):
    store = tmp_path / "a.zarr"
    capture(model, many, store, shard=(0, 2))
    capture(model, many, tmp_path / "b.zarr", shard=(0, 2))
    inner = sorted(path for path in store.glob("router_logits/*.0.0"))
    inner[0].unlink()
    inner[-1].write_bytes(b"")
    capture(model, many, store, shard=(0, 2))
    assert files(store) == files(tmp_path / "b.zarr")
    # Rows that wait for their neighbours are lost alone.
    waiting = sorted(store.glob(".capture/*.npz"))
    assert waiting
    for path in waiting:
        path.unlink()
    capture(model, many, store, shard=(0, 2))
    assert files(store) == files(tmp_path / "b.zarr")


def test_a_changed_value_is_told(whole, model, many, tmp_path):
    check_blocks(whole)
    store = tmp_path / "a.zarr"
    capture(model, many, store)
    weights = zarr.open_group(store, mode="r+", zarr_format=2)["routing_weights"]
    weights[3, 1, 0] = weights[3, 1, 0] + 1e-6
    with pytest.raises(
        ResultError, match=r"'routing_weights' of prompts 0 to 7 .* Capture it again"
    ):
        check_blocks(store)


def test_a_torn_chunk_is_not_read_as_numbers(whole, model, many, tmp_path):
    store = tmp_path / "a.zarr"
    capture(model, many, store)
    chunk = store / "router_logits" / "0.0.0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ResultError, match=r"cannot be read.*Capture it again"):
        check_blocks(store)


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def refused(*paths):
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OSError, match="no"):
        _chunks.write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_shard_that_is_none_is_refused(model, many, tmp_path):
    for shard in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=r"`shard` must be \(i, n\) with 0 <= i < n"):
            checked_shard(shard)
    with pytest.raises(ValueError, match="`shard` needs the `store`"):
        capture(model, many, shard=(0, 2))


def test_a_batch_that_does_not_fit_is_halved(model, many, whole, tmp_path, monkeypatch):
    run_batch, sizes = _run.run_batch, []

    def small(model, encoded, *rest):
        sizes.append(len(encoded.input_ids))
        if len(encoded.input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return run_batch(model, encoded, *rest)

    expected = capture(model, many, batch_size=8).dataset
    monkeypatch.setattr(_run, "run_batch", small)
    found = capture(model, many, tmp_path / "a.zarr", batch_size=8).dataset
    assert sizes[:4] == [8, 4, 2, 2]
    for name in RECORDED:
        np.testing.assert_allclose(found[name].values, expected[name].values, atol=1e-4)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
        ),
        torch.OutOfMemoryError("x"),
    ],
)
def test_running_out_of_memory_is_known_whoever_says_so(error):
    assert _run.is_out_of_memory(error)
    wrapped = ValueError("in a trace")
    wrapped.__cause__ = error
    assert _run.is_out_of_memory(wrapped)
    assert not _run.is_out_of_memory(RuntimeError("shapes differ"))


def test_one_prompt_that_does_not_fit_is_an_error(model, many, monkeypatch):
    def never(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(_run, "run_batch", never)
    with pytest.raises(torch.OutOfMemoryError):
        capture(model, many, batch_size=8)


def failing(monkeypatch, lengths):
    """Let prompts of some lengths fail, whatever batch they are in."""
    run_batch = _run.run_batch

    def fail(model, encoded, *rest):
        if set(encoded.attention_mask.sum(dim=1).tolist()) & lengths:
            raise RuntimeError("no such token\nand more")
        return run_batch(model, encoded, *rest)

    monkeypatch.setattr(_run, "run_batch", fail)


@pytest.mark.parametrize("stored", [True, False])
def test_a_prompt_that_fails_is_noted_and_the_rest_goes_on(
    model, many, tmp_path, monkeypatch, stored
):
    lengths = np.bincount(capture(model, many).dataset["prompt_index"].values)
    bad = lengths == 5
    expected = capture(model, many.select(~bad), batch_size=4)
    failing(monkeypatch, {5})
    store = tmp_path / "a.zarr" if stored else None
    record = capture(model, many, store, batch_size=4, on_error="skip")
    ids = np.array(many.ids)[bad].tolist()
    assert 1 < len(ids) < 40
    assert record.failed == dict.fromkeys(ids, "RuntimeError: no such token")
    assert f"{len(ids)} prompts failed: '{ids[0]}'" in record.summary()
    assert record.prompts == many.select(~bad)
    for name in ("pos", "token_id", "prompt_index", *RECORDED):
        found = record.dataset[name].values
        np.testing.assert_allclose(found, expected.dataset[name].values, atol=1e-4)
    if stored:
        again = open_record(store)
        assert again.failed == record.failed
        assert np.array_equal(again.shares("user"), record.shares("user"))


def test_a_failure_is_raised_unless_it_is_to_be_skipped(model, many, monkeypatch):
    failing(monkeypatch, {5})
    with pytest.raises(RuntimeError, match="no such token"):
        capture(model, many, batch_size=4)


def test_prompts_that_are_too_long_or_overflow_are_noted_too(model, many, tmp_path, monkeypatch):
    prompts = PromptSet([*many[:3], Prompt("how " * 300, id="endless")])
    run_batch = _run.run_batch

    def overflow(model, encoded, *rest):
        found = run_batch(model, encoded, *rest)
        if encoded.input_ids.shape[1] == 5:
            infinite = torch.full_like(found[1]["routing_weights"], float("inf"))
            return {**found, 1: {**found[1], "routing_weights": infinite}}
        return found

    monkeypatch.setattr(_run, "run_batch", overflow)
    record = capture(model, prompts, tmp_path / "a.zarr", on_error="skip")
    assert record.failed["endless"] == "303 tokens, and the model reads 256"
    assert record.failed["p0001"] == "routing weights that are not finite in float32"
    assert record.prompts.ids == ("p0000", "p0002")
    assert np.isfinite(record.dataset["routing_weights"].values).all()


def test_if_every_prompt_fails_there_is_no_record(model, many, tmp_path, monkeypatch):
    failing(monkeypatch, set(range(300)))
    with pytest.raises(PromptError, match="Every prompt failed, the first one of: RuntimeError"):
        capture(model, many, on_error="skip")
    with pytest.raises(ResultError, match="Every prompt of this record failed, the first one"):
        capture(model, many, tmp_path / "a.zarr", on_error="skip")


def test_an_unknown_choice_is_refused(model, many):
    with pytest.raises(
        ValueError, match=r"`on_error` must be one of \('raise', 'skip'\), got 'no'"
    ):
        capture(model, many, on_error="no")
    with pytest.raises(ValueError, match=r"`weight_dtype` must be one of .* got 'int8'"):
        capture(model, many, weight_dtype="int8")


@pytest.mark.parametrize("allowed", [5, 60])
def test_a_full_disk_stops_with_what_is_safe(model, many, whole, tmp_path, monkeypatch, allowed):
    """While the store is made, and while it is filled."""
    left = {"writes": allowed}

    def full(write):
        def writing(*args, **options):
            left["writes"] -= 1
            if left["writes"] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*args, **options)

        return writing

    for name in ("write_rows", "write_whole"):
        monkeypatch.setattr(_stream, name, full(getattr(_chunks, name)))
    store = tmp_path / "a.zarr"
    with pytest.raises(StoreFullError, match=r"is full. \d of 5 blocks are safe .* Make room, and"):
        capture(model, many, store)
    left["writes"] = 10**9
    capture(model, many, store)
    assert files(store) == files(whole)


def test_another_trouble_of_the_disk_stays_what_it_is(model, many, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(_stream, "write_whole", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        capture(model, many, tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_what_is_safe(model, many, whole, tmp_path, monkeypatch):
    blocks = {"left": 2}
    block = _session.Capture.block

    def interrupted(self, *args):
        blocks["left"] -= 1
        if blocks["left"] < 0:
            raise KeyboardInterrupt
        return block(self, *args)

    monkeypatch.setattr(_session.Capture, "block", interrupted)
    store = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt) as caught:
        capture(model, many, store)
    assert "2 of 5 blocks are safe in" in caught.value.__notes__[0]
    blocks["left"] = 5
    capture(model, many, store)
    assert files(store) == files(whole)


def test_a_process_that_is_faster_at_making_the_store_wins(
    model, many, whole, tmp_path, monkeypatch
):
    rename, store = os.rename, tmp_path / "a.zarr"

    def late(source, target):
        monkeypatch.setattr(os, "rename", rename)
        capture(model, many, store, shard=(1, 2))
        rename(source, target)

    monkeypatch.setattr(_stream.os, "rename", late)
    capture(model, many, store)
    assert files(store) == files(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_the_bar_counts_what_is_left(model, many, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    capture(model, many, tmp_path / "a.zarr", progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "capturing routing" in captured.err
    with _fill.progress_bar(3, shown=False) as advance:
        advance()
    assert capfd.readouterr().err == ""
