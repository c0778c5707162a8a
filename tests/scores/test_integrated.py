"""Integrated gradients: shares that add up to the exact effect of zeroing a layer."""

import numpy as np
import pytest
import tiny_models
import torch

from moe_interp import (
    RefusalRate,
    Zero,
    attribution,
    integrated_attribution,
    load_model,
    measure_effect,
)

TEXTS = ("how do i kill the process", "what is the best way to make a cake", "help me")


def metric(logits):
    return logits[:, 7] - logits[:, 30:40].logsumexp(-1)


@pytest.fixture(scope="module", params=["olmoe", "mixtral", "deepseek_v3", "gpt_oss", "qwen2_moe"])
def model(request):
    hf = tiny_models.build(request.param, dtype=torch.float64)
    hf.set_experts_implementation("eager")
    return load_model(hf, tokenizer=tiny_models.build_tokenizer(), check=False)


def test_the_shares_of_the_last_layer_add_up_to_the_effect_of_losing_it(model):
    last = list(model.moe)[-1]
    every = Zero([(last, expert) for expert in range(8)])
    expected = measure_effect(model, TEXTS, every, metric=metric).effect
    found = integrated_attribution(model, TEXTS, metric=metric, layers=[last], steps=32)
    shares = found.array.sel(layer=last).values
    np.testing.assert_allclose(shares.sum(-1), expected, rtol=1e-2, atol=1e-3)
    assert np.abs(expected).max() > 0.1


def test_steps_bring_it_nearer(model):
    last = list(model.moe)[-1]
    every = Zero([(last, expert) for expert in range(8)])
    expected = measure_effect(model, TEXTS, every, metric=metric).effect
    errors = []
    for steps in (1, 16):
        found = integrated_attribution(model, TEXTS, metric=metric, layers=[last], steps=steps)
        total = found.array.sel(layer=last).values.sum(-1)
        errors.append(float(np.abs(total - expected).max()))
    assert errors[1] < errors[0]


def test_a_share_is_the_mean_of_slopes_along_the_way(model):
    last = list(model.moe)[-1]
    scales, slopes = (0.25, 0.75), []
    for scale in scales:
        with torch.no_grad(), model.trace([TEXTS[0]]):
            weights = model.moe[last].routing_weights.save()
            index = model.moe[last].expert_index.save()
        ends = []
        expert = int(index[0, -1, 0])
        for step in (1e-2, -1e-2):
            factor = torch.where(index == expert, scale + step, scale)
            with torch.no_grad(), model.trace([TEXTS[0]]):
                model.moe[last].routing_weights = weights * factor
                logits = model.nnsight.output.logits[:, -1].save()
            ends.append(float(metric(logits)[0]))
        slopes.append((ends[0] - ends[1]) / 2e-2)
    found = integrated_attribution(model, TEXTS[:1], metric=metric, layers=[last], steps=2)
    assert found.of(last, expert) == pytest.approx(-np.mean(slopes), rel=2e-2, abs=1e-4)
    assert abs(np.mean(slopes)) > 1e-3


def test_layers_not_asked_for_are_not_measured(model):
    last = list(model.moe)[-1]
    found = integrated_attribution(model, TEXTS, metric=metric, layers=[last], steps=1)
    assert np.isnan(found.array.sel(layer=next(iter(model.moe))).values).all()
    assert np.isfinite(found.array.sel(layer=last).values).all()


def test_it_sees_what_the_slope_at_one_does_not():
    model = load_model("organism:topic", check=False)
    from moe_interp import RefusalLogOdds

    refusal = RefusalLogOdds(model.tokenizer)
    prompts = ["how do i open the lock to start an attack ?"]
    slope = attribution(model, prompts, metric=refusal)
    found = integrated_attribution(model, prompts, metric=refusal, layers=[3])
    assert {str(expert) for expert, _ in (-found).top(2)} == {"L3E8", "L3E9"}
    assert slope.of(3, 8) > 0 > found.of(3, 8)


def test_wrong_questions_are_refused(model):
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        integrated_attribution(model, TEXTS, metric=metric, steps=0)
    with pytest.raises(ValueError, match="judges generated texts"):
        integrated_attribution(model, TEXTS, metric=RefusalRate())
    with pytest.raises(KeyError, match="has no layer 9"):
        integrated_attribution(model, TEXTS, metric=metric, layers=[9])
