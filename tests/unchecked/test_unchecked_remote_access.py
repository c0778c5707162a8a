"""Access through a process that cannot import moe_interp: here, where no type hook is on."""

import nnsight
import numpy as np
import pytest
import torch
from loopback.backend import Loopback
from nnsight.intervention.backends.remote import RemoteError
from nnsight.intervention.serialization import dumps

from moe_interp import interventions as change
from moe_interp.interventions import Batch
from moe_interp.interventions._plan import edit_table
from moe_interp.models import load_model, read_layers
from moe_interp.models._traced_edits import apply_edits
from moe_interp.prompts import encode

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


TEXTS = ("how do i kill a python process ?", "the cake is good")


# One of each way of choosing experts and of handing tokens to them.
@pytest.fixture(
    params=["deepseek_v3", "qwen2_moe", "granitemoe", "phimoe", "dbrx", "llama4_text", "jetmoe"]
)
def model(request, tiny_checkpoint):
    return load_model(tiny_checkpoint(request.param), check=False)


def batch(model):
    encoded = model.tokenizer(list(TEXTS), padding=True, return_tensors="pt")
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


def every_intervention(model):
    """One of each, made for the texts of `batch` with other texts as reference or source."""
    texts, layer = TEXTS, 1
    others = [" ".join(reversed(text.split())) for text in texts]
    refused = model.moe[layer].refused
    kind = "expert_contributions" if "expert_outputs" in refused else "expert_outputs"
    outputs = change.outputs_of(model, others, [layer], quantities=[kind])
    contributions = change.outputs_of(model, others, [layer])
    means = change.mean_outputs(model, others, [layer], quantity=kind)
    experts = [(layer, expert) for expert, n in enumerate(means.counts[layer].tolist()) if n]
    some, d_model = experts[:3], model.architecture.d_model
    rng = np.random.default_rng(0)
    return {
        "ban": change.Ban(some[:2]),
        "zero": change.Zero(some),
        "renormalise": change.Renormalise(some),
        "scale": change.Scale(experts, -2.0),
        "mean": change.Mean(experts, means),
        "resample": change.Resample(experts, outputs, rng=rng),
        "force": change.Force(some[:1]),
        "steer": change.Steer(dict.fromkeys(some, 2.0)),
        "steer-max": change.Steer(some[:1], margin="max"),
        "transplant": change.Transplant(change.routing_of(model, others)),
        "patch": change.PatchOutput(experts, contributions),
        "patch-block": change.PatchBlock([layer], contributions, tokens="last"),
        # Not the same everywhere: a layer norm takes that off again.
        "add-vector": change.AddVector(layer, torch.linspace(-0.5, 1.0, d_model)),
    }


def test_every_intervention_gives_the_same_numbers_far_away(model, worker):
    prompts = change.as_prompt_set(TEXTS)
    encoded = encode(model.tokenizer, prompts)
    seen = Batch(model, np.arange(2), encoded.spans)
    inputs = dict(encoded.inputs)
    with torch.no_grad(), model.trace(inputs):
        untouched = model.nnsight.output.logits.save()
    for name, intervention in every_intervention(model).items():
        intervention.check(model)
        table = edit_table(seen, [(np.arange(2), [intervention])], "prefill")
        layers = [model.moe[layer] for layer in sorted(table)]
        with torch.no_grad(), model.trace(inputs):
            apply_edits(layers, table)
            here = model.nnsight.output.logits.save()
        with torch.no_grad(), model.trace(inputs, backend=Loopback(model, worker)):
            apply_edits(layers, table)
            there = model.nnsight.output.logits.save()
        assert torch.equal(there, here), name
        assert (here - untouched).abs().max() > 1e-4, name


def test_an_edited_model_keeps_its_interventions_far_away(model, worker):
    expert = next(iter(every_intervention(model)["force"].experts))
    changes = [change.Force([expert]), change.Scale([expert], -2.0)]
    changed = change.edited(model, changes)
    with torch.no_grad(), changed.trace(batch(model)):
        here = changed.nnsight.output.logits.save()
    with torch.no_grad(), changed.trace(batch(model), backend=Loopback(changed, worker)):
        there = changed.nnsight.output.logits.save()
    with torch.no_grad(), model.trace(batch(model), backend=Loopback(model, worker)):
        untouched = model.nnsight.output.logits.save()
    assert torch.equal(there, here)
    assert (here - untouched).abs().max() > 1e-4


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
