"""Hooks in a process that cannot import moe_interp, and what users see without the type hook."""

import nnsight
import pytest
import tiny_models
import torch
from loopback.backend import Loopback
from nnsight.intervention.backends.remote import RemoteError

from moe_interp.models import load_model

NAME = "blocks.1.mlp.hook_"


@pytest.fixture(params=["deepseek_v3", "qwen2_moe", "granitemoe", "phimoe"])
def model(request, tiny_checkpoint):
    return load_model(tiny_checkpoint(request.param), check=False)


class Counted(Loopback):
    """The way to the worker, which knows how often it was taken."""

    taken = 0

    def request(self, request, tracer):
        self.taken += 1
        return super().request(request, tracer)


@pytest.fixture
def far(model, worker):
    backend = Counted(model, worker)
    yield {"backend": backend}
    assert backend.taken == 1


def test_a_cache_filled_far_away_equals_one_filled_here(model, far):
    with torch.no_grad():
        expected, here = model.run_with_cache(tiny_models.encode())
        logits, there = model.run_with_cache(tiny_models.encode(), **far)
    assert torch.equal(logits, expected)
    assert list(there) == list(here)
    for name, value in here.items():
        assert torch.equal(there[name], value), name


def test_functions_of_a_user_run_far_away(model, far):
    def invert(value, hook):
        return -value if hook.layer() == 1 and hook.name.endswith("logits") else None

    def silence(value, hook):
        return value.index_fill(-1, torch.tensor([0, 3]), 0.0)

    def swap(value, hook):
        return value.flip(-1)

    def half(value, hook):
        return value * 0.5

    hooks = [
        (f"{NAME}out", half),
        (f"{NAME}expert_outputs", half),
        (f"{NAME}expert_weights", silence),
        (f"{NAME}expert_indices", swap),
        (lambda name: name.endswith("hook_router_logits"), invert),
    ]
    with torch.no_grad():
        before = model.run_with_hooks(tiny_models.encode())
        expected = model.run_with_hooks(tiny_models.encode(), fwd_hooks=hooks)
        logits = model.run_with_hooks(tiny_models.encode(), fwd_hooks=hooks, **far)
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, before)


def test_every_hook_calls_its_function_far_away(model, far):
    def look(value, hook):
        assert value.dim() in (2, 3, 4)

    hooks = [(name, look) for name in model.hook_dict]
    with torch.no_grad():
        logits = model.run_with_hooks(tiny_models.encode(), fwd_hooks=hooks, **far)
        assert torch.equal(logits, model.run_with_hooks(tiny_models.encode()))


def test_an_error_far_away_names_the_hook(model, far):
    hooks = [(f"{NAME}router_probs", lambda value, hook: value)]
    with pytest.raises(RemoteError, match=r"'blocks.1.mlp.hook_router_probs' gave a new value"):
        model.run_with_hooks(tiny_models.encode(), fwd_hooks=hooks, **far)


def test_remote_goes_to_the_trace(model, monkeypatch):
    nnsight.register("moe_interp")
    asked, make = [], type(model.nnsight)._remote_backend

    def remember(self, remote, *options):
        asked.append(remote)
        return make(self, remote, *options)

    monkeypatch.setattr(type(model.nnsight), "_remote_backend", remember)
    with torch.no_grad():
        expected, here = model.run_with_cache(tiny_models.encode())
        logits, there = model.run_with_cache(tiny_models.encode(), remote="local")
        hooked = model.run_with_hooks(
            tiny_models.encode(), fwd_hooks=[(f"{NAME}out", lambda v, hook: v)], remote="local"
        )
    assert torch.equal(logits, expected)
    assert torch.equal(hooked, expected)
    assert torch.equal(there.stack("hook_out"), here.stack("hook_out"))
    assert asked == ["local", "local"]


@pytest.mark.parametrize("hooks", [["x"], [("hook_out",)], [(3, print)], [("hook_out", 3)]])
def test_hooks_are_pairs_of_a_name_and_a_function(hooks):
    message = r"`fwd_hooks` holds pairs \(name or function of a name, function of value and hook\)"
    with pytest.raises(TypeError, match=message):
        tiny_models.wrapped("mixtral").run_with_hooks(tiny_models.encode(), fwd_hooks=hooks)


@pytest.mark.parametrize("names_filter", [3, [3], {"hook_out": 1}])
def test_a_filter_of_another_kind_is_refused(names_filter):
    message = r"`names_filter` takes a hook's name, several names, or a function of a name"
    with pytest.raises(TypeError, match=message):
        tiny_models.wrapped("mixtral").run_with_cache(
            tiny_models.encode(), names_filter=names_filter
        )


def test_options_of_transformer_lens_that_are_not_there_are_no_silent_keywords():
    with pytest.raises(TypeError, match="remove_batch_dim"):
        tiny_models.wrapped("mixtral").run_with_cache(tiny_models.encode(), remove_batch_dim=True)
