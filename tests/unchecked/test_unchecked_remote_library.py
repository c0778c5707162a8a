"""The library's functions on a model whose blocks run in a process that lacks the library."""

import numpy as np
import pytest
import torch
from loopback.connection import on_worker

import moe_interp as mi
from moe_interp.capture import QUANTITIES
from moe_interp.models._selfcheck import check_access

TEXTS = ("how do i kill a python process ?", "the cake is good", "what is the best way")
METRIC = mi.LogitDifference(40, 41)


@pytest.fixture(scope="module", params=["mixtral", "deepseek_v3"])
def both(request, tiny_checkpoint, worker):
    """One checkpoint as a model here, and as one whose blocks run far away."""
    folder = tiny_checkpoint(request.param)
    here = mi.load_model(folder, check=False)
    return here, on_worker(mi.load_model(folder, check=False), worker)


def experts(model):
    """What the first text's last token chose in the last layer, so that it matters."""
    layer = list(model.moe)[-1]
    with model.trace(TEXTS[0]):
        index = model.moe[layer].expert_index.save()
    return [(layer, expert) for expert in index[0, -1].tolist()]


def test_a_record_is_the_same(both):
    options = {
        "quantities": QUANTITIES,
        "spans": ("prompt", "last"),
        "n_random_routers": 3,
        "batch_size": 2,
    }
    jobs = both[1].connection.jobs
    here, there = (
        mi.record_routing(model, TEXTS, rng=np.random.default_rng(0), **options).dataset
        for model in both
    )
    assert both[1].connection.jobs == jobs + 1
    assert set(here.data_vars) == {*QUANTITIES, "random_profile", "in_span"}
    for name in here.data_vars:
        # Half precision is what these travel at.
        halves = name in ("routing_weights", "router_probs")
        expected = here[name].astype(np.float16) if halves else here[name]
        np.testing.assert_allclose(there[name], expected, rtol=1e-5, err_msg=name)


def test_next_token_logits_under_interventions_are_the_same(both):
    here, there = (mi.run(model, TEXTS, mi.Ban(experts(model))) for model in both)
    torch.testing.assert_close(there.logits, here.logits)
    assert there.next_tokens == here.next_tokens


def test_texts_under_interventions_are_the_same(both):
    chosen = experts(both[0])
    changes = [mi.Zero(chosen), mi.Scale(chosen, 3.0, phase="decode")]
    here, there = (mi.run(model, TEXTS, changes, max_new_tokens=5) for model in both)
    untouched = mi.run(both[0], TEXTS, max_new_tokens=5)
    assert there.tokens == here.tokens != untouched.tokens


def test_a_text_that_ends_early_is_the_same(both):
    end = mi.run(both[0], TEXTS[:1], max_new_tokens=2).tokens[0][1]
    configs = [model.nnsight._module.generation_config for model in both]
    before = configs[0].eos_token_id
    for config in configs:
        config.eos_token_id = end
    here, there = (mi.run(model, TEXTS[:1], max_new_tokens=5) for model in both)
    for config in configs:
        config.eos_token_id = before
    assert there.tokens == here.tokens
    assert len(here.tokens[0]) == 2


def test_effects_and_sweeps_are_the_same(both):
    here, there = (
        mi.measure_effect(model, TEXTS, mi.Zero(experts(model)), metric=METRIC) for model in both
    )
    np.testing.assert_allclose(there.effect, here.effect, atol=1e-4)
    assert np.abs(here.effect).max() > 1e-3
    here, there = (
        mi.sweep(model, TEXTS, metric=METRIC, experts=experts(model)).array for model in both
    )
    np.testing.assert_allclose(there, here, atol=1e-4)
    assert there.attrs["not_taken_over"] == "what layers hold stays on the server"


def test_scores_from_gradients_are_the_same(both):
    for score in (mi.attribution, mi.gradient_sensitivity, mi.integrated_attribution):
        here, there = (score(model, TEXTS, metric=METRIC).array for model in both)
        np.testing.assert_allclose(there, here, atol=1e-4, err_msg=score.__name__)
        assert np.abs(here).max() > 1e-3


def test_hooks_are_the_same(both):
    name = f"blocks.{list(both[0].moe)[-1]}.mlp.hook_router_logits"
    texts = list(TEXTS)
    here, there = (model.run_with_cache(texts, names_filter=name)[1][name] for model in both)
    assert torch.equal(there, here)
    flip = [(name, lambda value, hook: -value)]
    here, there = (model.run_with_hooks(texts, fwd_hooks=flip) for model in both)
    torch.testing.assert_close(there, here)


def test_the_self_check_runs_there_as_one_job(both):
    here, there = both
    layers = tuple(there.moe.values())
    jobs = there.connection.jobs
    exact = check_access(there.nnsight, there.sites, layers, backend=there.backend())
    assert there.connection.jobs == jobs + 1
    assert exact == check_access(here.nnsight, here.sites, tuple(here.moe.values()))
