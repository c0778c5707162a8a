"""A sweep that was stopped goes on where it stood, and no other is mixed into it."""

import numpy as np
import pytest
import tiny_models
import torch

from moe_interp import load_model, sweep
from moe_interp.errors import ResultExistsError
from moe_interp.scores import _sweep_job

TEXTS = ("how do i kill a python process ?", "the cake is good", "what is the best way to help me")


class Difference:
    """A metric that can be made to stop the sweep."""

    name = "difference"

    def __init__(self, calls_left=10**6):
        self.calls_left = calls_left

    def __call__(self, logits):
        self.calls_left -= 1
        if self.calls_left < 0:
            raise KeyboardInterrupt
        return logits[:, 10] - logits[:, 20]

    def __repr__(self):
        return "Difference()"


def other(logits):
    return logits[:, 3]


@pytest.fixture(scope="module")
def model():
    return tiny_models.wrapped("mixtral")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_stopped_sweep_gives_the_same_table_bit_for_bit(model, tmp_path, calls):
    given = {"batch_size": 2}
    whole = sweep(model, TEXTS, metric=Difference(), store=tmp_path / "whole", **given)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, TEXTS, metric=Difference(calls), store=tmp_path / "cut", **given)
    done = list((tmp_path / "cut").glob("prompts-*.npz"))
    (tmp_path / "cut" / ".prompts-00001-layer-002.4711.npz").write_bytes(b"half a file")
    rest = sweep(model, TEXTS, metric=Difference(), store=tmp_path / "cut", **given)
    np.testing.assert_array_equal(rest.array, whole.array)
    assert rest.array.attrs == whole.array.attrs
    assert len(done) < len(list((tmp_path / "cut").glob("prompts-*.npz"))) == 6


def test_what_is_done_is_not_run_again(model, tmp_path, monkeypatch):
    stopped = Difference(10)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, TEXTS, metric=stopped, store=tmp_path / "cut", batch_size=1)
    n_done = len(list((tmp_path / "cut").glob("prompts-*.npz")))
    measured, measure = [], _sweep_job.LogitJob.measure

    def noted(self, chunk, layer):
        measured.append((chunk, layer))
        return measure(self, chunk, layer)

    monkeypatch.setattr(_sweep_job.LogitJob, "measure", noted)
    # A sweep that goes on does what the first part did, without trying it out again.
    monkeypatch.setattr(_sweep_job, "settle_reuse", None)
    first = sweep(model, TEXTS, metric=Difference(), store=tmp_path / "cut", batch_size=1)
    assert n_done > 0
    assert len(measured) == 9 - n_done
    again = sweep(model, TEXTS, metric=Difference(0), store=tmp_path / "cut", batch_size=1)
    np.testing.assert_array_equal(again.array, first.array)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"metric": other}, "metric 'difference: Difference\\(\\)' there, 'other"),
        ({"mode": "ban"}, "mode 'zero' there, 'ban' now"),
        ({"prompts": TEXTS[:2]}, "prompts '3 prompts"),
        ({"experts": "L1E0"}, "interventions '24 interventions"),
        ({"batch_size": 2}, "batch_size 'auto' there, 2 now"),
        ({"model": None}, "weights '"),
    ],
)
def test_a_store_of_other_inputs_is_refused_by_name_and_stays(model, tmp_path, changed, named):
    given = {"model": model, "prompts": TEXTS, "metric": Difference(), "store": tmp_path / "s"}
    sweep(**given)
    before = contents(tmp_path / "s")
    if "model" in changed:
        changed = {"model": tuned()}
    with pytest.raises(ResultExistsError, match=named):
        sweep(**{**given, **changed})
    assert contents(tmp_path / "s") == before


def tuned():
    """The same model, with one matrix changed a little."""
    module = tiny_models.build("mixtral")
    module.set_experts_implementation("grouped_mm")
    with torch.no_grad():
        module.model.layers[1].mlp.experts.down_proj.mul_(1.001)
    return load_model(module, tokenizer=tiny_models.build_tokenizer(), check=False)


def test_a_finished_sweep_is_kept_unless_it_may_be_resumed(model, tmp_path):
    given = {"metric": Difference(), "store": tmp_path / "s"}
    sweep(model, TEXTS, **given)
    with pytest.raises(ResultExistsError, match="holds this sweep already"):
        sweep(model, TEXTS, **given, resume=False)


def test_a_folder_of_something_else_is_refused(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultExistsError, match="exists and is no sweep"):
        sweep(model, TEXTS, metric=Difference(), store=tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
