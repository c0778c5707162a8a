"""Gradients of every family reach what was read, and agree with differences and each other."""

import nnsight
import pytest
import torch
import zoo_runs
from tiny_models import TEXTS
from zoo_runs import FAMILIES

pytestmark = pytest.mark.conformance

DIFFERENTIABLE = ("router_logits", "routing_weights", "expert_outputs", "expert_contributions")
# The weights of sparsemixer do not depend on the logits but where two of them nearly tie.
NO_GRADIENT_OF_LOGITS = ("phimoe",)
# Step, relative and absolute bound. The norms of most families round to float32 whatever the dtype,
# which a step must be large against; a layer norm does not, and shows how exact the gradients are.
ROUNDED = (1e-2, 1e-3, 2e-5)
DIFFERENCED = {
    "dbrx": (1e-4, 1e-7, 0.0),
    "deepseek_v2-greedy": ROUNDED,
    "deepseek_v3-plain": ROUNDED,
    "gemma4_text": ROUNDED,
    "jetmoe": ROUNDED,
    "longcat_flash": ROUNDED,
    "mixtral": ROUNDED,
    "nemotron_h-wide": ROUNDED,
    "qwen2_moe": ROUNDED,
}


def target(model):
    """In a trace: the logit that is differentiated."""
    return model.nnsight.output.logits[:, -1, 7].sum()


def gradients(model, batch, layer, names):
    """Values read in one forward, and the gradient of one logit with respect to each."""
    with model.nnsight.trace(batch):
        found = nnsight.save(layer.read(*names))
        logit = nnsight.save(target(model))
    slopes = torch.autograd.grad(logit, [found[name] for name in names], allow_unused=True)
    return found, dict(zip(names, slopes, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_what_was_read(family):
    model = zoo_runs.wrapped(family, zoo_runs.implementations(family)[0])
    layer = list(model.moe.values())[-1]
    names = tuple(name for name in DIFFERENTIABLE if name in layer.offered)
    batch = zoo_runs.prompts(family, TEXTS[:1])
    _, slopes = gradients(model, batch, layer, names)
    for name, slope in slopes.items():
        assert slope is not None, name
        assert torch.isfinite(slope).all(), name
        if name != "router_logits" or family not in NO_GRADIENT_OF_LOGITS:
            assert float(slope.abs().max()) > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_a_contribution_is_that_of_the_sum(family):
    model = zoo_runs.wrapped(family, zoo_runs.implementations(family)[0])
    layer = list(model.moe.values())[-1]
    batch = zoo_runs.prompts(family, TEXTS[:1])
    _, slopes = gradients(model, batch, layer, ("expert_contributions", "routed_output"))
    expected = slopes["routed_output"][:, :, None].expand_as(slopes["expert_contributions"])
    assert zoo_runs.distance(slopes["expert_contributions"], expected) <= 1e-6


@pytest.mark.parametrize("family", DIFFERENCED)
def test_gradients_are_what_differences_give(family):
    step, relative, absolute = DIFFERENCED[family]
    model = zoo_runs.wrapped(family, zoo_runs.implementations(family)[0], torch.float64)
    layer = list(model.moe.values())[-1]
    batch = zoo_runs.prompts(family, TEXTS[:1])
    names = ("router_logits", "routing_weights", "expert_outputs")
    found, slopes = gradients(model, batch, layer, names)
    for name in names:
        direction = torch.randn(
            found[name].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        ends = []
        for sign in (1, -1):
            with torch.no_grad(), model.nnsight.trace(batch):
                setattr(layer, name, getattr(layer, name) + sign * step * direction)
                ends.append(nnsight.save(target(model)))
        measured = float(ends[0] - ends[1]) / (2 * step)
        expected = float((slopes[name] * direction).sum())
        assert abs(expected) > 10 * absolute
        assert measured == pytest.approx(expected, rel=relative, abs=absolute), name
