"""Edits of every family: rewriting what was read changes nothing, and a change reaches the logits.

An edit in one invoke leaves the other invoke's logits alone, and banning an expert that nobody
chose leaves all of them alone.
"""

import nnsight
import pytest
import torch
import zoo_runs
from zoo_runs import FAMILIES

pytestmark = pytest.mark.conformance

CASES = [
    pytest.param(family, implementation, id=f"{family}-{zoo_runs.case_id(implementation)}")
    for family in FAMILIES
    for implementation in zoo_runs.implementations(family)
]
families = pytest.mark.parametrize("family", FAMILIES)
WRITABLE = (
    "router_logits",
    "expert_index",
    "routing_weights",
    "expert_outputs",
    "expert_contributions",
    "routed_output",
    "output",
)


def writable(layer):
    """What can be assigned to a layer."""
    return tuple(name for name in WRITABLE if name in layer.offered)


def edited_logits(model, batch, edit, layers=None):
    """The logits of a forward with an edit in layers, all of them if not given."""
    encoder = tuple(model.encoder_moe.values()) if layers is None else ()
    layers = tuple(model.moe.values()) if layers is None else layers
    with torch.no_grad(), model.nnsight.trace(batch):
        for layer in (*encoder, *layers):
            edit(layer)
        logits = nnsight.save(model.nnsight.output.logits)
    return logits.clone()


def chosen(plain, model, layer):
    """The index that a layer has in a plain run; it is written before it can be read."""
    encoder = layer in model.encoder_moe.values()
    calls = plain.encoder_calls if encoder else plain.calls
    return calls[layer.layer][0].values["expert_index"]


def rewrite(quantity, plain, model):
    """An edit that assigns what is there."""

    def edit(layer):
        given = quantity == "expert_index"
        value = chosen(plain, model, layer) if given else getattr(layer, quantity)
        setattr(layer, quantity, value)

    return edit


def shake(quantity, plain, model):
    """An edit that changes a quantity at every token and slot, each in a way of its own."""

    def edit(layer):
        if quantity == "expert_index":
            layer.expert_index = (chosen(plain, model, layer) + 1) % layer.n_experts
            return
        value = getattr(layer, quantity)
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        setattr(layer, quantity, value + 2 * value.abs().mean() * noise.to(value.dtype))

    return edit


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_rewriting_what_was_read_changes_no_bit(family, implementation):
    model = zoo_runs.wrapped(family, implementation)
    plain, batch = zoo_runs.plain_prefill(family, implementation), zoo_runs.prompts(family)
    for quantity in writable(next(iter(model.moe.values()))):
        logits = edited_logits(model, batch, rewrite(quantity, plain, model))
        assert torch.equal(logits, plain.result.logits), quantity


@families
def test_a_change_of_any_quantity_moves_the_logits(family):
    implementation = zoo_runs.implementations(family)[-1]
    model = zoo_runs.wrapped(family, implementation)
    plain, batch = zoo_runs.plain_prefill(family, implementation), zoo_runs.prompts(family)
    for layer in model.moe.values():
        for quantity in writable(layer):
            logits = edited_logits(model, batch, shake(quantity, plain, model), (layer,))
            assert zoo_runs.distance(logits, plain.result.logits) > 1e-4, (layer, quantity)


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_banning_an_expert_that_nobody_chose_changes_no_bit(family, implementation):
    model = zoo_runs.wrapped(family, implementation)
    batch = zoo_runs.prompts(family, ("the cake",))
    plain = zoo_runs.see(family, implementation, batch)

    def ban_unused(layer):
        chosen = plain.calls[layer.layer][0].values["expert_index"]
        layer.ban(sorted(set(range(layer.n_experts)) - set(chosen.flatten().tolist())))

    logits = edited_logits(model, batch, ban_unused, tuple(model.moe.values()))
    assert torch.equal(logits, plain.result.logits)
