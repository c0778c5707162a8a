"""The library on a real NDIF server equals the library here, on both of the server's paths.

One module, so that one server serves all of it.
"""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch

import moe_interp as mi
from moe_interp import interventions as change
from moe_interp.capture import _job
from moe_interp.errors import (
    ModelNotServedError,
    RemoteBodyError,
    ResultTooLargeError,
    ServerUnreachableError,
    UnsupportedOnServerError,
)
from moe_interp.interventions import Batch
from moe_interp.interventions._plan import edit_table
from moe_interp.models._traced_edits import apply_edits
from moe_interp.prompts import encode
from moe_interp.remote import ServerBackend, VersionDifferenceWarning
from moe_interp.studies import find_study

pytestmark = pytest.mark.ndif

FAMILIES = ("mixtral", "olmoe", "deepseek_v3", "gpt_oss")
TEXTS = ("how do i kill a python process ?", "the cake is good", "what is the best way")
METRIC = mi.LogitDifference(40, 41)
#: A job that the server calls queued for ever is asked for again after two minutes, then four.
JOB_SECONDS = 600
QUANTITIES = (
    "router_input",
    "router_logits",
    "router_probs",
    "expert_index",
    "routing_weights",
    "expert_outputs",
    "expert_contributions",
    "routed_output",
    "output",
)


@pytest.fixture(scope="module")
def loaded(connect, checkpoints):
    """A function from family and path to the model here and the model there, each made once."""
    made = {}

    def both(model_type, path):
        if model_type not in made:
            made[model_type] = mi.load_model(str(checkpoints / "tiny" / model_type))
        key = model_type, path
        if key not in made:
            made[key] = connect(f"tiny/{model_type}", trusted=path == "trusted")
        return made[model_type], made[key]

    return both


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module", params=["trusted", "sandbox"])
def both(request, family, loaded):
    return loaded(family, request.param)


@pytest.fixture(scope="module", params=["trusted", "sandbox"])
def one(request, loaded):
    """One family on both paths, for what the families do not differ in."""
    return loaded("deepseek_v3", request.param)


def experts(model, n=None):
    """What the first text's last token chose in the last layer, so that it matters."""
    layer = list(model.moe)[-1]
    with model.trace(TEXTS[0]):
        index = model.moe[layer].expert_index.save()
    return [(layer, expert) for expert in index[0, -1].tolist()][:n]


def test_every_quantity_is_the_same(both):
    layer = list(both[0].moe)[-1]
    expected, found = (read(model, layer) for model in both)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def read(model, layer):
    names = [name for name in QUANTITIES if name in model.moe[layer].offered]
    with model.trace(list(TEXTS)):
        values = model.moe[layer].read(*names).save()
    return values  # noqa: RET504  Only a name bound in the block leaves it.


def every_intervention(model):
    """One of each, with other texts as reference or source."""
    chosen = experts(model)
    layer = chosen[0][0]
    others = [" ".join(reversed(text.split())) for text in TEXTS]
    outputs = change.outputs_of(model, others, [layer], quantities=["expert_outputs"])
    contributions = change.outputs_of(model, others, [layer])
    means = change.mean_outputs(model, others, [layer])
    known = [(layer, expert) for expert, n in enumerate(means.counts[layer].tolist()) if n]
    return {
        "ban": mi.Ban(chosen[:1]),
        "zero": mi.Zero(chosen),
        "renormalise": mi.Renormalise(chosen[:1]),
        "scale": mi.Scale(chosen, -2.0),
        "mean": mi.Mean(known, means),
        "resample": mi.Resample(known, outputs, rng=np.random.default_rng(0)),
        "force": mi.Force([(layer, 5)]),
        "steer": mi.Steer({chosen[0]: -3.0}),
        "steer-margin": mi.Steer([(layer, 5)], margin="max"),
        "transplant": mi.Transplant(change.routing_of(model, others)),
        "patch": mi.PatchOutput(known, contributions),
        "patch-block": mi.PatchBlock([layer], contributions, tokens="last"),
        "add-vector": mi.AddVector(layer, torch.linspace(-0.5, 1.0, model.architecture.d_model)),
    }


def test_every_intervention_is_the_same(both):
    here, there = both
    changes = every_intervention(here)
    encoded = encode(here.tokenizer, change.as_prompt_set(TEXTS))
    batch = Batch(here, np.arange(len(TEXTS)), encoded.spans)
    tables = [
        edit_table(batch, [(batch.prompt_index, [each])], "prefill") for each in changes.values()
    ]
    inputs, plain = dict(encoded.inputs), mi.run(here, TEXTS).logits
    nn, layers = there.nnsight, dict(there.moe)
    with there.session():
        found = [].save()
        for table in tables:
            with nn.trace(inputs):
                apply_edits([layers[layer] for layer in sorted(table)], table)
                found.append(nn.output.logits[:, -1].clone())
    for (name, each), logits in zip(changes.items(), found, strict=True):
        expected = mi.run(here, TEXTS, each, batch_size=3).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4, msg=name)
        assert (expected - plain).abs().max() > 1e-3, name


def test_runs_and_texts_under_interventions_are_the_same(both):
    chosen = experts(both[0])
    changes = [mi.Zero(chosen), mi.Scale(chosen, 3.0, phase="decode")]
    here, there = (mi.run(model, TEXTS, changes, max_new_tokens=4) for model in both)
    assert there.tokens == here.tokens
    assert here.tokens != mi.run(both[0], TEXTS, max_new_tokens=4).tokens


def distinct_prompts(number):
    """Prompts of which no two are alike, so that nothing of one tells of another."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 24, size=number)
    return [" ".join(rng.choice(tiny_models.WORDS.split(), size=length)) for length in lengths]


def test_a_record_in_a_store_is_the_same_and_small_on_the_way(both, tmp_path):
    names = ("expert_index", "routing_weights")
    prompts = distinct_prompts(150)
    traffic = both[1].connection.traffic
    before = traffic.received_bytes
    here, there = (
        mi.record_routing(
            model, prompts, quantities=names, spans=("prompt",), store=tmp_path / f"{place}.zarr"
        )
        for place, model in zip(("here", "there"), both, strict=True)
    )
    np.testing.assert_array_equal(there.dataset["expert_index"], here.dataset["expert_index"])
    halves = here.dataset["routing_weights"].values.astype(np.float16)
    np.testing.assert_allclose(there.dataset["routing_weights"], halves, rtol=2e-3)
    assert mi.open_record(tmp_path / "there.zarr").n_prompts == len(prompts)
    # A byte for each choice of each real token in each layer, and two for its weight.
    n_tokens = sum(len(both[0].tokenizer(text).input_ids) for text in prompts)
    least = 3 * n_tokens * len(both[0].moe) * both[0].architecture.top_k
    assert 0.3 * least < traffic.received_bytes - before <= 1.2 * least


def test_effects_and_sweeps_are_the_same(one):
    chosen = experts(one[0])
    here, there = (mi.measure_effect(model, TEXTS, mi.Zero(chosen), metric=METRIC) for model in one)
    np.testing.assert_allclose(there.effect, here.effect, atol=1e-4)
    assert np.abs(here.effect).max() > 1e-3
    here, there = (
        mi.sweep(model, TEXTS, metric=METRIC, experts=chosen).array.values for model in one
    )
    np.testing.assert_allclose(there, here, atol=1e-4)


def test_gradients_are_the_same_or_refused(family, loaded):
    here, there = loaded(family, "trusted")
    expected, found = (mi.attribution(model, TEXTS, metric=METRIC).array for model in (here, there))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 1e-3
    _, sandboxed = loaded(family, "sandbox")
    jobs = sandboxed.connection.traffic.jobs
    with pytest.raises(UnsupportedOnServerError, match="needs gradients"):
        mi.attribution(sandboxed, TEXTS, metric=METRIC)
    assert sandboxed.connection.traffic.jobs == jobs


def test_hooks_are_the_same(one):
    name = f"blocks.{list(one[0].moe)[-1]}.mlp.hook_router_logits"
    texts = list(TEXTS)
    here, there = (model.run_with_cache(texts, names_filter=name)[1][name] for model in one)
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)
    flip = [(name, lambda value, hook: -value)]
    here, there = (model.run_with_hooks(texts, fwd_hooks=flip) for model in one)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def test_an_error_in_the_block_comes_back_as_one_line(one):
    _, there = one
    with (
        pytest.raises(RemoteBodyError, match=r"raised an error .* has experts 0–7, got \[99\]"),
        there.trace(TEXTS[0]),
    ):
        there.moe[1].ban([99])


def test_other_releases_are_named_first_and_a_result_that_is_too_large_is_refused(connect):
    model = connect("tiny/mixtral", check=False, max_result_bytes=1000)
    with (
        pytest.warns(VersionDifferenceWarning, match=r"nnsight 0.8.0 \(here 0.8.1\)"),
        pytest.raises(ResultTooLargeError, match="are allowed"),
    ):
        read(model, 1)


def test_a_model_that_the_server_does_not_find_is_named(connect):
    with pytest.raises(ModelNotServedError, match="does not run 'tiny/absent'"):
        connect("tiny/absent", retries=0)


def test_a_submitted_capture_is_collected_from_a_shell(loaded, hub_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub_cache))
    here, there = loaded("mixtral", "trusted")
    prompts = distinct_prompts(20)
    job = mi.submit_routing(there, prompts, spans=("prompt",), batch_size=2)
    assert job.n_parts == 2
    out = tmp_path / "collected.zarr"
    shell = [Path(sys.executable).with_name("moe-interp"), "jobs", "--timeout", str(JOB_SECONDS)]
    command = [*shell, "--fetch", job.folder.name, "--out", out]
    subprocess.run(command, check=True, timeout=2 * JOB_SECONDS)
    expected = mi.record_routing(here, prompts, spans=("prompt",), batch_size=2).dataset
    found = mi.open_record(out).dataset
    np.testing.assert_array_equal(found["expert_index"], expected["expert_index"])


def test_a_job_that_seems_queued_for_ever_is_asked_for_again(server, loaded, tmp_path, monkeypatch):
    """What this server does when it is busy: an old message is written over that of the result."""
    monkeypatch.setattr(_job, "OVERTAKEN_SECONDS", 1.0)
    here, there = loaded("mixtral", "trusted")
    prompts = distinct_prompts(20)
    job = mi.submit_routing(there, prompts, spans=("prompt",), batch_size=2, folder=tmp_path / "j")
    sent = [part[0]["job"] for part in job.asked["parts"]]
    backend = there.backend()
    until(lambda: all(backend.state_of(job)[0] == "done" for job in sent))
    status = {"id": sent[0], "status": "QUEUED", "description": "Moved to position 1 in Queue."}
    place = f"{server.store}/ndif-results/responses/{sent[0]}.json"
    # The store asks for the form of a signature, and does not check it.
    signed = "AWS4-HMAC-SHA256 Credential=none/20260101/us-east-1/s3/aws4_request, Signature=none"
    assert httpx.put(place, json=status, headers={"Authorization": signed}).status_code == 200
    assert backend.state_of(sent[0]) == ("queued", None)
    found = job.wait(there, timeout=JOB_SECONDS).dataset
    assert [len(part) for part in job.asked["parts"]] == [2, 1]
    expected = mi.record_routing(here, prompts, spans=("prompt",), batch_size=2).dataset
    np.testing.assert_array_equal(found["expert_index"], expected["expert_index"])


def until(holds):
    deadline = time.monotonic() + JOB_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_capture_is_submitted_to_the_sandbox(loaded, tmp_path):
    here, there = loaded("mixtral", "sandbox")
    job = mi.submit_routing(there, TEXTS, spans=("prompt",), folder=tmp_path / "job")
    found = job.wait(there, timeout=JOB_SECONDS).dataset
    expected = mi.record_routing(here, TEXTS, spans=("prompt",)).dataset
    np.testing.assert_array_equal(found["expert_index"], expected["expert_index"])


@pytest.mark.parametrize(("name", "path"), [("siddiky2026", "trusted"), ("olmoe2024", "sandbox")])
def test_a_study_is_the_same(name, path, connect, checkpoints):
    """Scores, ablations beside their null and written answers; and what a capture alone tells."""
    here = mi.load_model(str(checkpoints / "organism" / "topic"))
    there = connect("organism/topic", trusted=path == "trusted")
    # Of the two experts of a token each has the other's slope, so an odd number would cut a tie.
    few = {"n_null": 19, "n_resamples": 99, "n_suppressed": 2}
    options = few if name == "siddiky2026" else {}
    prompts = mi.load_prompts("organism", per_topic=6)
    run = find_study(name).run
    expected, found = (
        run(model, prompts, rng=np.random.default_rng(0), **options) for model in (here, there)
    )
    assert [arm.sentence() for arm in found.arms] == [arm.sentence() for arm in expected.arms]
    for table, frame in expected.tables.items():
        # Gradients that are but rounding are in the family that p-values are corrected for.
        decided = ("gradient_p", "gradient_p_adjusted", "gradient_class")
        kept = frame.columns.difference(decided)
        pd.testing.assert_frame_equal(found.tables[table][kept], frame[kept], rtol=1e-3, atol=1e-4)


def test_the_tutorial_holds_on_it(server, hub_cache):
    tutorial = Path(__file__).parents[2] / "tutorials" / "08_remote.py"
    places = {"NDIF_HOST": server.url, "HF_HUB_CACHE": str(hub_cache), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, tutorial], env={**os.environ, **places}, check=True, timeout=JOB_SECONDS
    )


def after_the_second_job_is_sent(monkeypatch, act):
    """Have something happen while the second job of a capture is under way."""
    post, sent = ServerBackend._post, []

    def then(self, *request):
        taken = post(self, *request)
        sent.append(taken)
        if len(sent) == 2:
            act()
        return taken

    monkeypatch.setattr(ServerBackend, "_post", then)
    return sent


def test_a_capture_outlives_an_api_that_is_started_again(server, loaded, monkeypatch):
    here, there = loaded("mixtral", "trusted")
    options = {"spans": ("prompt",), "batch_size": 1}
    prompts = distinct_prompts(24)
    expected = mi.record_routing(here, prompts, **options).dataset
    threads = []

    def restart():
        server.ask("stop api")
        threads.append(threading.Timer(2.0, server.ask, ["start api"]))
        threads[0].start()

    sent = after_the_second_job_is_sent(monkeypatch, restart)
    found = mi.record_routing(there, prompts, **options).dataset
    threads[0].join()
    assert len(sent) == 4  # Three parts, of which the second was asked twice.
    for name in ("expert_index", "router_logits"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_captures_go_on_after_the_whole_server_was_killed(server, loaded, monkeypatch, tmp_path):
    _, there = loaded("mixtral", "trusted")
    options = {"spans": ("prompt",), "batch_size": 1}
    prompts = distinct_prompts(24)
    expected = mi.record_routing(there, prompts, **options, store=tmp_path / "whole.zarr")
    monkeypatch.setattr(there.connection, "server", hasty(there.connection.server))
    submitted = mi.submit_routing(there, prompts, **options, folder=tmp_path / "job")
    sent = after_the_second_job_is_sent(monkeypatch, lambda: server.ask("kill"))
    with pytest.raises(ServerUnreachableError) as caught:
        mi.record_routing(there, prompts, **options, store=tmp_path / "again.zarr")
    assert "1 of 3 blocks are safe" in caught.value.__notes__[0]
    assert len(sent) == 2
    server.ask("start")
    mi.record_routing(there, prompts, **options, store=tmp_path / "again.zarr")
    assert len(sent) == 4  # What had come back was not asked for again.
    assert contents(tmp_path / "again.zarr") == contents(tmp_path / "whole.zarr")
    # Of what was submitted the new server knows nothing.
    with monkeypatch.context() as hurried:
        hurried.setitem(_job.PATIENCE_SECONDS, "unknown", 0.0)
        assert submitted.fetch(there) == submitted.n_parts == 3
    found = submitted.wait(there, timeout=JOB_SECONDS).dataset
    np.testing.assert_array_equal(found["expert_index"], expected.dataset["expert_index"])


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def hasty(server):
    return dataclasses.replace(server, retries=0)
