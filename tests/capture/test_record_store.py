"""A record on disk is the record, or a named refusal."""

import json

import numpy as np
import pytest
import xarray as xr

from moe_interp.capture import check_free, open_record, record_routing
from moe_interp.errors import PromptError, ResultError, ResultExistsError
from moe_interp.prompts import Prompt, PromptSet


def same(first, second):
    """Whether two records hold the same values of the same kinds, whatever keeps their texts."""
    names = set(first.dataset.variables)
    return names == set(second.dataset.variables) and all(
        first.dataset[name].dims == second.dataset[name].dims
        and first.dataset[name].values.tolist() == second.dataset[name].values.tolist()
        and (
            first.dataset[name].dtype.kind in "OT"
            or first.dataset[name].dtype == second.dataset[name].dtype
        )
        for name in names
    )


def test_a_saved_record_is_opened_the_same(record, tmp_path):
    record.save(tmp_path / "a.zarr")
    opened = open_record(tmp_path / "a.zarr")
    assert same(record, opened)
    assert opened.dataset.attrs == record.dataset.attrs
    assert opened.prompts == record.prompts
    assert opened.summary() == record.summary().replace(
        *(
            "expert_index, routing_weights, router_logits, random_profile, in_span",
            "expert_index, in_span, random_profile, router_logits, routing_weights",
        )
    )


def test_an_opened_record_gives_the_same_profiles(record, tmp_path):
    record.save(tmp_path / "a.zarr")
    opened = open_record(tmp_path / "a.zarr")
    for span in record.spans:
        assert np.array_equal(opened.profile(span).shares, record.profile(span).shares)
        assert np.array_equal(opened.random_profiles(span), record.random_profiles(span))


def test_texts_survive_whatever_they_hold(model, tmp_path):
    prompts = PromptSet(
        [
            Prompt("make é😀 \n\t cake", topic="tö pic", harm=True, pair="a" * 300),
            Prompt("steal\u2028car", wording="w", id="ü"),
            Prompt("bake", topic="tö pic", harm=False),
        ]
    )
    record_routing(model, prompts, progress=False).save(tmp_path / "a.zarr")
    assert open_record(tmp_path / "a.zarr").prompts == prompts


def test_unknown_harm_stays_unknown_and_is_refused_for_tests(model, tmp_path):
    prompts = PromptSet([Prompt("make", harm=True), Prompt("bake", id="odd")])
    record_routing(model, prompts, progress=False).save(tmp_path / "a.zarr")
    opened = open_record(tmp_path / "a.zarr")
    assert np.isnan(opened.dataset["harm"].values[1])
    assert opened.shares("user").shape[0] == 2
    with pytest.raises(PromptError, match=r"do not say whether they are harmful: 'odd'"):
        opened.profile("user")


def test_other_tools_can_read_it(record, tmp_path):
    record.save(tmp_path / "a.zarr")
    plain = xr.open_zarr(tmp_path / "a.zarr", chunks=None)
    assert plain.attrs["kind"] == "moe_interp routing record"
    assert np.array_equal(plain["expert_index"], record.dataset["expert_index"])


def test_an_opened_record_can_be_saved_over_itself(record, tmp_path):
    record.save(tmp_path / "a.zarr")
    open_record(tmp_path / "a.zarr").save(tmp_path / "a.zarr", force=True)
    assert same(open_record(tmp_path / "a.zarr"), record)


def test_a_record_is_not_replaced_unasked(record, tmp_path):
    record.save(tmp_path / "a.zarr")
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "a.zarr").rglob("*"))
    with pytest.raises(ResultExistsError, match="exists already and was left as it is"):
        record.save(tmp_path / "a.zarr")
    assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "a.zarr").rglob("*")) == before


def test_force_replaces_a_record(record, model, tmp_path):
    record_routing(model, ["bake"], progress=False).save(tmp_path / "a.zarr")
    record.save(tmp_path / "a.zarr", force=True)
    assert same(open_record(tmp_path / "a.zarr"), record)


def test_force_replaces_nothing_but_a_record(record, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ResultExistsError, match="is no routing record, so it is not replaced"):
        record.save(tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_a_free_place_is_free(tmp_path):
    check_free(tmp_path / "new")


def test_nothing_else_is_left_beside_a_record(record, tmp_path):
    record.save(tmp_path / "deep" / "a.zarr")
    record.save(tmp_path / "deep" / "a.zarr", force=True)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.zarr"]


def test_a_failed_save_leaves_nothing(record, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_zarr", fail)
    with pytest.raises(OSError, match="disk full"):
        record.save(tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_record(record, model, tmp_path, monkeypatch):
    record.save(tmp_path / "a.zarr")
    small = record_routing(model, ["bake"], progress=False)

    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_zarr", fail)
    with pytest.raises(OSError, match="disk full"):
        small.save(tmp_path / "a.zarr", force=True)
    assert same(open_record(tmp_path / "a.zarr"), record)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ResultError, match=r"There is no folder '.*none.zarr'. Give a folder"):
        open_record(tmp_path / "none.zarr")


def test_a_folder_that_is_no_zarr_is_refused(tmp_path):
    with pytest.raises(ResultError, match="cannot be read as a zarr folder"):
        open_record(tmp_path)


def test_another_zarr_folder_is_refused(tmp_path):
    xr.Dataset({"x": ("n", [1, 2])}).to_zarr(tmp_path / "a.zarr", zarr_format=2)
    with pytest.raises(ResultError, match="is a zarr folder, but no routing record"):
        open_record(tmp_path / "a.zarr")


def test_a_record_of_another_version_is_refused_with_who_wrote_it(record, tmp_path):
    record.save(tmp_path / "a.zarr")
    attributes = tmp_path / "a.zarr" / ".zattrs"
    content = json.loads(attributes.read_text())
    attributes.write_text(json.dumps({**content, "schema_version": 99}))
    with pytest.raises(ResultError, match=r"record of version 99.*'moe_interp': '0"):
        open_record(tmp_path / "a.zarr")
