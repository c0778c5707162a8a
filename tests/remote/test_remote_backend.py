"""Jobs on a server that fails in each of the ways that servers fail in."""

import gc
import warnings

import pytest
import tiny_models
import torch
from fake_ndif import FakeNDIF

from moe_interp.errors import (
    ApiKeyError,
    JobTimeoutError,
    ModelNotServedError,
    RemoteBodyError,
    RemoteRunError,
    ResultTooLargeError,
    ServerUnreachableError,
    UnsupportedOnServerError,
)
from moe_interp.models import MoEModel
from moe_interp.remote import Connection, Server, VersionDifferenceWarning

KEY = "0b5d7a1e-secret"
MODEL_KEY = 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "tiny/mixtral"}'


@pytest.fixture
def serve():
    """A function that starts a server with a script, and gives a model that runs there."""
    started = []

    def start(*script, values=None, facts=None, **settings):
        fake = FakeNDIF(script, values, facts)
        started.append(fake)
        settings = {"key": KEY, "wait": 0.01, "retries": 2, "timeout": 10.0, **settings}
        return fake, there(Server(fake.url, **settings))

    yield start
    for fake in started:
        fake.close()


def there(server):
    here = tiny_models.wrapped("mixtral")
    connection = Connection(server, MODEL_KEY, "0")
    return MoEModel(here.nnsight, here.sites, source="tiny/mixtral", connection=connection)


def ask(model):
    with model.trace("the cake is good"):
        index = model.moe[1].expert_index.save()
    return index  # noqa: RET504  Only a name bound in the block leaves it.


def test_a_job_that_goes_well_binds_what_was_saved(serve):
    fake, model = serve("ok", values={"index": torch.tensor([[3, 4]])})
    assert ask(model).tolist() == [[3, 4]]
    traffic = model.connection.traffic
    assert (traffic.jobs, traffic.received_bytes) == (1, len(fake.values))
    assert 1000 < traffic.sent_bytes < 60_000
    assert set(fake.keys) == {KEY}


def test_a_result_that_lies_elsewhere_is_fetched(serve):
    fake, model = serve("url", values={"index": torch.tensor([[5]])})
    assert ask(model).tolist() == [[5]]
    assert model.connection.traffic.received_bytes == len(fake.values)


@pytest.mark.parametrize(
    "fault", [500, 503, 429, "drop", "end", "Replica was evicted while processing your request."]
)
def test_what_is_the_servers_fault_is_asked_again(serve, fault):
    fake, model = serve(fault, fault, "ok", values={"index": torch.tensor([[1]])})
    assert ask(model).tolist() == [[1]]
    assert len(fake.posts) == 3
    # Sockets that were left open are told of here, and warnings are errors.
    gc.collect()


def test_patience_ends(serve):
    fake, model = serve(500)
    with pytest.raises(ServerUnreachableError, match=r"cannot work now \(500.*Try again later"):
        ask(model)
    assert len(fake.posts) == 3


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (401, ApiKeyError, "does not know the API key it was given .*NDIF_API_KEY"),
        (403, ApiKeyError, "nnsight login"),
        (400, RemoteRunError, "refused .400"),
        (422, RemoteRunError, "refused .422"),
        ("Could not deploy this model. No such repo.", ModelNotServedError, "does not run 'tiny/"),
        ("Your job exceeded the execution timeout of 4.0s.", JobTimeoutError, "at its time limit"),
        (
            "Traceback (most recent call last):\n  File x\nIndexError: index 9 is out of range",
            RemoteBodyError,
            "raised an error on the NDIF server: IndexError: index 9 is out of range",
        ),
        (
            "Your request payload could not be read (ModuleNotFoundError: No module named 'mine').",
            RemoteRunError,
            r"cannot read what was sent.*'mine'.*nnsight.register",
        ),
        (
            "The model architecture on this server doesn't match the one your code was traced "
            "against: it has no module at 'model.layers.3.mlp'.\n\nThis usually means ...",
            RemoteRunError,
            "from other modules than this machine .*model.layers.3.mlp.*release of transformers",
        ),
    ],
)
def test_what_is_the_callers_is_said_once_and_not_repeated(serve, fault, kind, words):
    fake, model = serve(fault)
    with pytest.raises(kind, match=words) as caught:
        ask(model)
    assert type(caught.value) is kind
    assert len(fake.posts) == 1
    assert KEY not in str(caught.value)


def test_a_servers_traceback_comes_along_as_a_note(serve):
    _, model = serve("Traceback (most recent call last):\n  File somewhere\nKeyError: 'x'")
    with pytest.raises(RemoteBodyError) as caught:
        ask(model)
    assert "File somewhere" in caught.value.__notes__[0]


def test_a_job_that_takes_too_long_is_left(serve):
    fake, model = serve("silent", timeout=0.6)
    with pytest.raises(
        JobTimeoutError, match=r"within 0.6 s. Job job-1 .* was queued; .*`timeout`"
    ):
        ask(model)
    assert len(fake.posts) == 1


def test_a_result_that_is_too_large_is_not_fetched(serve):
    values = {"index": torch.randint(9, (100, 100))}
    for way in ("ok", "url"):
        _, model = serve(way, values=values, max_result_bytes=500)
        with pytest.raises(ResultTooLargeError, match=r"job-1 has .* MiB or more.*`batch_size`"):
            ask(model)


def test_a_result_that_is_not_kept_is_told(serve):
    _, model = serve("url", values={"index": torch.zeros(1)}, facts={"/result": 410})
    with pytest.raises(RemoteRunError, match=r"job-1 is not on http.* any more \(410\).*ask again"):
        ask(model)


def test_a_server_that_is_down_says_so(serve):
    model = there(Server("http://127.0.0.1:9", key=KEY, retries=0))
    with pytest.raises(ServerUnreachableError, match=r"127.0.0.1:9 does not answer .*Connection"):
        ask(model)


def test_a_server_that_wants_a_key_is_told_apart(serve, monkeypatch):
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    monkeypatch.setattr("nnsight.schema.config.CONFIG.API.APIKEY", None)
    _, model = serve(401, key="")
    with pytest.raises(ApiKeyError, match="wants an API key"):
        ask(model)


def test_the_key_is_not_shown():
    server = Server("http://localhost", key=KEY)
    assert KEY not in repr(server)
    assert server.headers == {"ndif-api-key": KEY}


def test_other_releases_are_named_before_the_first_job(serve):
    facts = {"/env": {"packages": {"transformers": "5.22.2"}, "python_version": "3.8.1 (x)"}}
    fake, model = serve("ok", facts=facts, values={"index": torch.zeros(1)})
    with pytest.warns(
        VersionDifferenceWarning, match=r"transformers 5.22.2 \(here 5.*Python 3.8.1 \(here"
    ):
        model.backend()
    assert fake.posts == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.backend()


def test_gradients_in_a_sandbox_are_refused_before_anything_is_sent(serve):
    cases = (
        ({"email": "a@b.c", "tags": []}, {}, True),
        ({"email": "a@b.c", "tags": ["trusted"]}, {}, False),
        ({"email": None, "tags": []}, {}, False),
        ({"email": None, "tags": []}, {"trusted": False}, True),
    )
    for identity, settings, refused in cases:
        fake, model = serve("ok", facts={"/whoami": identity}, **settings)
        if refused:
            with pytest.raises(UnsupportedOnServerError, match=r"needs gradients.*Use `sweep`"):
                model.require_gradients("This score", "Use `sweep`")
        else:
            model.require_gradients("This score", "Use `sweep`")
        assert fake.posts == []


def test_untrusted_jobs_ask_for_the_sandbox(serve):
    fake, model = serve("ok", values={"index": torch.zeros(1)}, trusted=False)
    ask(model)
    assert fake.posts[0]["trusted"] is False
    fake, model = serve("ok", values={"index": torch.zeros(1)})
    ask(model)
    assert "trusted" not in fake.posts[0]


def test_an_interrupt_says_what_it_leaves(serve, monkeypatch):
    _, model = serve("silent")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_interp.remote._backend.ServerBackend._watch", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        ask(model)
    assert "Job job-1" in caught.value.__notes__[0]
    assert "runs to its end there" in caught.value.__notes__[0]


@pytest.mark.parametrize("remote", [3, None, ["http://a"]])
def test_what_names_no_server_is_refused(remote):
    with pytest.raises(TypeError, match="`remote` must be True, the address"):
        Server.of(remote)
    with pytest.raises(ValueError, match="begins with http"):
        Server("api.ndif.us")
