"""Captures that are not waited for: their folder is all that another process needs."""

import itertools
import json
import time

import numpy as np
import pytest
import tiny_models
from fake_ndif import FakeNDIF, result

import moe_interp as mi
from moe_interp.capture import _job, _there, all_jobs
from moe_interp.capture._there import _given
from moe_interp.errors import JobTimeoutError, RemoteBodyError, ResultError, ResultExistsError
from moe_interp.models import MoEModel
from moe_interp.models._traced_pack import pack
from moe_interp.models._traced_record import record_layers
from moe_interp.prompts import tokenize
from moe_interp.remote import Connection

MODEL_KEY = 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "tiny/mixtral"}'
TEXTS = ("how do i kill a python process ?", "the cake is good", "what is the best way")
SPANS = ("prompt", "last")
WAITING = {"id": "x", "status": "QUEUED", "description": ""}


@pytest.fixture
def fake():
    server = FakeNDIF([0])
    server.script = ["taken"]
    yield server
    server.close()


@pytest.fixture
def there(fake, monkeypatch, tmp_path):
    """A model on the server, which takes two batches of one prompt to a job."""
    monkeypatch.setattr(_there, "BATCHES_PER_JOB", 2)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    here = tiny_models.wrapped("mixtral")
    server = mi.Server(fake.url, wait=0.01, retries=1)
    connection = Connection(server, MODEL_KEY, "0")
    return MoEModel(here.nnsight, here.sites, source="tiny/mixtral", connection=connection)


def submit(model, **options):
    return mi.submit_routing(model, TEXTS, spans=SPANS, batch_size=1, **options)


def completed(fake, job, part, batches):
    """Let the server have the result of a part, as the real one computes it."""
    here = tiny_models.wrapped("mixtral")
    tokens = tokenize(here.tokenizer, TEXTS, spans=SPANS)
    names, packed = ["expert_index", "routing_weights"], []
    for inputs, real, spans in _given(tokens, batches[2 * part : 2 * part + 2], "right"):
        with here.trace(inputs):
            recorded = record_layers(list(here.moe.values()), names, real, spans, {}).save()
        packed.append(pack(recorded, 8))
    fake.facts[f"/result-{part}"] = result({"packed": packed})
    done = {"id": job, "status": "COMPLETED", "data": f"{fake.url}/result-{part}"}
    fake.facts[f"/response/{job}"] = done


def asked(job):
    """The newest job of each part."""
    return [sent[-1]["job"] for sent in job.asked["parts"]]


def said(fake, *jobs, status="QUEUED"):
    for job in jobs:
        fake.facts[f"/response/{job}"] = {"id": job, "status": status, "description": ""}


@pytest.fixture
def clock(monkeypatch):
    """Seconds since now, as a job counts them."""
    now, later = itertools.count(time.time(), 1e-6), [0.0]
    monkeypatch.setattr(_job.time, "time", lambda: next(now) + later[0])
    return later


def test_parts_are_collected_by_another_process(fake, there):
    job = submit(there)
    assert asked(job) == ["job-1", "job-2"]
    assert all(not post["session_id"] for post in fake.posts)
    # What another process would have: the name.
    found = mi.open_job(job.folder.name)
    batches = found.asked["batches"]
    assert found.fetch(there) == 2
    completed(fake, "job-2", 1, batches)
    fake.facts["/response/job-1"] = WAITING
    assert found.fetch(there) == 1
    completed(fake, "job-1", 0, batches)
    record = mi.open_job(job.folder).wait(there, timeout=5.0)
    expected = mi.record_routing(tiny_models.wrapped("mixtral"), TEXTS, spans=SPANS, batch_size=1)
    assert record.prompts.texts == expected.prompts.texts
    np.testing.assert_array_equal(record.dataset["expert_index"], expected.dataset["expert_index"])
    halves = expected.dataset["routing_weights"].values.astype(np.float16)
    np.testing.assert_array_equal(record.dataset["routing_weights"], halves)
    assert len(fake.posts) == 2


def test_a_lost_part_is_asked_again_and_a_finished_one_never(fake, there):
    job = submit(there)
    completed(fake, "job-1", 0, job.asked["batches"])
    evicted = {"id": "job-2", "status": "ERROR", "description": "Replica was evicted while ..."}
    fake.facts["/response/job-2"] = evicted
    assert job.fetch(there) == 1
    assert asked(mi.open_job(job.folder)) == ["job-1", "job-3"]
    # The finished part is not even looked after.
    fake.facts["/response/job-1"] = 500
    completed(fake, "job-3", 1, job.asked["batches"])
    assert job.fetch(there) == 0
    assert len(fake.posts) == 3


def test_a_part_that_was_never_sent_is_sent(fake, there):
    fake.script = ["taken", 400]
    with pytest.raises(mi.MoEInterpError, match="refused"):
        submit(there)
    (job,) = all_jobs()
    assert job.asked["parts"][1] == []
    fake.script = ["taken"]
    assert job.fetch(there) == 2
    assert asked(job) == ["job-1", "job-3"]


@pytest.mark.parametrize("state", ["unknown", "running"])
def test_a_part_of_which_nothing_is_heard_is_asked_again(fake, there, clock, state):
    job = submit(there)
    if state == "running":
        said(fake, "job-1", status="RUNNING")
        said(fake, "job-2", status="DISPATCHED")
    patience = _job.PATIENCE_SECONDS[state]
    clock[0] = 0.9 * patience
    assert job.fetch(there) == 2
    assert len(fake.posts) == 2
    clock[0] = 1.1 * patience
    assert job.fetch(there) == 2
    assert asked(job) == ["job-3", "job-4"]


def assert_asked_after(job, there, clock, pauses):
    """That one more job is sent after each pause, and none before its end."""
    for pause in pauses:
        sent = sum(map(len, job.asked["parts"]))
        clock[0] += 0.9 * pause
        job.fetch(there)
        assert sum(map(len, job.asked["parts"])) == sent
        clock[0] += 0.2 * pause
        job.fetch(there)
        assert sum(map(len, job.asked["parts"])) == sent + 1


def test_of_parts_that_seem_to_wait_only_the_last_is_asked_again_and_ever_later(fake, there, clock):
    job = submit(there)
    said(fake, *(f"job-{n}" for n in range(1, 9)))
    patience = _job.PATIENCE_SECONDS["queued"]
    assert_asked_after(job, there, clock, [patience, 2 * patience, 4 * patience])
    assert [sent["job"] for sent in job.asked["parts"][0]] == ["job-1"]
    assert [sent["job"] for sent in job.asked["parts"][1]] == [f"job-{n}" for n in range(2, 6)]


def test_a_part_that_was_overtaken_is_asked_again(fake, there, clock):
    """The real server may write that a job is queued after it wrote that it is done."""
    job = submit(there)
    batches = job.asked["batches"]
    said(fake, "job-1")
    completed(fake, "job-2", 1, batches)
    assert job.fetch(there) == 1
    clock[0] = 0.9 * _job.OVERTAKEN_SECONDS
    assert mi.open_job(job.folder).fetch(there) == 1
    assert len(fake.posts) == 2
    clock[0] = 1.1 * _job.OVERTAKEN_SECONDS
    found = mi.open_job(job.folder)
    assert found.fetch(there) == 1
    assert asked(found) == ["job-3", "job-2"]
    # The new one waits for as long as nothing passes it.
    said(fake, "job-3")
    clock[0] += 1.1 * _job.OVERTAKEN_SECONDS
    assert found.fetch(there) == 1
    assert len(fake.posts) == 3


def test_one_that_waits_before_the_first_result_was_not_overtaken(fake, there, clock):
    job = submit(there)
    said(fake, "job-2")
    completed(fake, "job-1", 0, job.asked["batches"])
    assert job.fetch(there) == 1
    clock[0] = 1.1 * _job.OVERTAKEN_SECONDS
    assert job.fetch(there) == 1
    assert len(fake.posts) == 2


def test_the_first_answer_counts_though_a_part_was_given_up(fake, there, clock):
    job = submit(there)
    said(fake, "job-1", "job-2", "job-3")
    completed(fake, "job-1", 0, job.asked["batches"])
    clock[0] = 1.1 * _job.PATIENCE_SECONDS["queued"]
    assert job.fetch(there) == 1
    assert asked(job) == ["job-1", "job-3"]
    completed(fake, "job-2", 1, job.asked["batches"])
    assert mi.open_job(job.folder).fetch(there) == 0
    assert len(fake.posts) == 3


def test_what_is_lost_again_and_again_is_asked_for_more_and_more_rarely(fake, there, clock):
    job = submit(there)
    completed(fake, "job-1", 0, job.asked["batches"])
    evicted = {"status": "ERROR", "description": "Replica was evicted while ..."}
    fake.facts.update({f"/response/job-{n}": {"id": "x", **evicted} for n in range(2, 20)})
    job.fetch(there)
    assert asked(job) == ["job-1", "job-3"]
    assert_asked_after(job, there, clock, [1.0, 3.0, 7.0])


def test_a_part_whose_result_was_dropped_is_asked_again(fake, there):
    job = submit(there)
    completed(fake, "job-1", 0, job.asked["batches"])
    fake.facts["/result-0"] = 403
    fake.facts["/response/job-2"] = WAITING
    assert job.fetch(there) == 2
    assert asked(job) == ["job-3", "job-2"]


def test_an_error_in_a_part_is_told(fake, there):
    job = submit(there)
    raised = {"id": "x", "status": "ERROR", "description": "Traceback ...\nKeyError: 'x'"}
    fake.facts["/response/job-1"] = raised
    with pytest.raises(RemoteBodyError, match="KeyError: 'x'"):
        job.fetch(there)
    assert len(fake.posts) == 2


def test_waiting_ends_and_says_how_to_go_on(fake, there):
    job = submit(there)
    with pytest.raises(JobTimeoutError, match=r"2 of 2 parts .*moe-interp jobs --fetch"):
        job.wait(there, timeout=0.0)


def test_jobs_are_listed_and_say_how_far_they_are(fake, there):
    assert all_jobs() == []
    job = submit(there)
    completed(fake, "job-1", 0, job.asked["batches"])
    job.fetch(there)
    (listed,) = all_jobs()
    assert f"tiny/mixtral on {fake.url}, 3 prompts" in listed.summary()
    assert "1 of 2 parts are here" in listed.summary()
    assert "key" not in json.dumps(listed.asked)


def test_what_is_no_job_is_refused(fake, there, tmp_path):
    with pytest.raises(ResultError, match=r"is no job. Give the folder of one, or its name; known"):
        mi.open_job(tmp_path)
    with pytest.raises(ResultExistsError):
        submit(there, folder=tmp_path)
    with pytest.raises(ValueError, match=r"runs here.*Use record_routing"):
        submit(tiny_models.wrapped("mixtral"))
