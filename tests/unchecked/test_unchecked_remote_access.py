"""Access through a process that cannot import moe_interp: here, where no type hook is on."""

import nnsight
import pytest
import torch
from loopback.backend import Loopback, Worker
from nnsight.intervention.backends.remote import RemoteError
from nnsight.intervention.serialization import dumps

from moe_interp.models import load_model, read_layers

NAMES = (
    "router_input",
    "router_logits",
    "router_probs",
    "expert_index",
    "routing_weights",
    "expert_outputs",
    "expert_contributions",
    "output",
)


@pytest.fixture(scope="module")
def worker():
    nnsight.register("moe_interp")
    process = Worker()
    yield process
    process.close()


# One of each way of choosing experts and of handing tokens to them.
@pytest.fixture(
    params=["deepseek_v3", "qwen2_moe", "granitemoe", "phimoe", "dbrx", "llama4_text", "jetmoe"]
)
def model(request, tiny_checkpoint):
    return load_model(tiny_checkpoint(request.param), check=False)


def batch(model):
    text = ["how do i kill a python process ?", "the cake is good"]
    encoded = model.tokenizer(text, padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def test_what_is_read_far_away_equals_what_is_read_here(model, worker):
    layers = tuple(model.moe.values())
    names = tuple(name for name in NAMES if name in layers[0].offered)
    with model.trace(batch(model)):
        here = nnsight.save(read_layers(layers, names))
    with model.trace(batch(model), backend=Loopback(model, worker)):
        there = nnsight.save(read_layers(layers, names))
    assert here.keys() == there.keys()
    for layer, values in here.items():
        for name, value in values.items():
            assert torch.equal(value, there[layer][name]), (layer, name)


def test_a_ban_works_far_away(model, worker):
    with model.trace(batch(model)):
        before = model.moe[1].expert_index.save()
    expert = int(before[0, -1, 0])
    with model.trace(batch(model), backend=Loopback(model, worker)):
        layer = model.moe[1]
        layer.ban([expert])
        index = layer.expert_index.save()
        logits = model.nnsight.output.logits.save()
    with model.trace(batch(model)):
        model.moe[1].ban([expert])
        expected = model.nnsight.output.logits.save()
    assert not bool((index == expert).any())
    assert torch.equal(logits, expected)


def test_a_user_writes_logits_and_weights_far_away(model, worker):
    with model.trace(batch(model), backend=Loopback(model, worker)):
        layer = model.moe[1]
        layer.router_logits = -layer.router_logits
        layer.routing_weights = layer.routing_weights * 0
        routed = layer.routed_output.save()
    assert float(routed.abs().max()) == 0.0


def test_a_user_writes_what_experts_put_out_far_away(model, worker):
    with model.trace(batch(model), backend=Loopback(model, worker)):
        layer = model.moe[1]
        layer.expert_contributions = layer.expert_contributions * 2
        routed = layer.routed_output.save()
        layer.output = layer.output * 0
        output = layer.output.save()
    with model.trace(batch(model)):
        expected = model.moe[1].routed_output.save()
    torch.testing.assert_close(routed, 2 * expected)
    assert float(output.abs().max()) == 0.0


def test_a_refused_quantity_is_named_far_away(tiny_checkpoint, worker):
    model = load_model(tiny_checkpoint("llama4_text"), check=False)
    with (
        pytest.raises(RemoteError, match="does not offer `expert_outputs`: its weight multiplies"),
        model.trace(batch(model), backend=Loopback(model, worker)),
    ):
        model.moe[1].expert_outputs.save()


def test_nothing_travels_as_bytecode(model):
    nnsight.register("moe_interp")
    payload = dumps((model, read_layers))
    assert b"router_logits" in payload
    assert b"CodeType" not in payload
