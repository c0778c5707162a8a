"""Sensitivity to router logits against finite differences of the logits themselves."""

import numpy as np
import pytest
import tiny_models
import torch

from moe_interp import RefusalRate, gradient_sensitivity, load_model

TEXTS = ("how do i kill the process", "what is the best way to make a cake", "help me")


def metric(logits):
    return logits[:, 7] - logits[:, 30:40].logsumexp(-1)


@pytest.fixture(scope="module", params=["mixtral", "olmoe", "deepseek_v3", "gpt_oss"])
def model(request):
    hf = tiny_models.build(request.param, dtype=torch.float64)
    hf.set_experts_implementation("eager")
    return load_model(hf, tokenizer=tiny_models.build_tokenizer(), check=False)


def nudged(model, text, layer, position, expert, step):
    """The metric of one prompt with one logit nudged, through a trace."""
    with torch.no_grad(), model.trace([text]):
        logits = model.moe[layer].router_logits.clone()
        logits[0, position, expert] += step
        model.moe[layer].router_logits = logits
        last = model.nnsight.output.logits[:, -1].save()
    return float(metric(last)[0])


def slope_at(model, text, layer, position, expert, step=2e-3):
    """Central difference of the metric along one logit."""
    ends = [nudged(model, text, layer, position, expert, sign * step) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


def test_sensitivity_is_the_mean_slope_along_each_logit(model):
    layer = list(model.moe)[-1]
    expected = np.zeros(8)
    n_tokens = len(model.tokenizer(TEXTS[2])["input_ids"])
    for expert in range(8):
        for position in range(n_tokens):
            slope = slope_at(model, TEXTS[2], layer, position, expert)
            expected[expert] += abs(slope) / n_tokens
    found = gradient_sensitivity(model, TEXTS, metric=metric)
    found = found.array.sel(layer=layer).values[2]
    np.testing.assert_allclose(found, expected, atol=0.03 * expected.max())
    assert expected.max() > 1e-3


def test_input_times_gradient_is_signed_and_sums_over_tokens(model):
    layer = list(model.moe)[-1]
    with torch.no_grad(), model.trace([TEXTS[2]]):
        logits = model.moe[layer].router_logits.save()
    expected = np.zeros(8)
    for expert in range(8):
        for position in range(logits.shape[1]):
            slope = slope_at(model, TEXTS[2], layer, position, expert)
            expected[expert] += slope * float(logits[0, position, expert])
    found = gradient_sensitivity(model, TEXTS, metric=metric, kind="input")
    found = found.array.sel(layer=layer).values[2]
    np.testing.assert_allclose(found, expected, atol=0.03 * abs(expected).max())
    assert (expected > 1e-4).any()
    assert (expected < -1e-4).any()


def test_padding_and_batches_change_nothing(model):
    together = gradient_sensitivity(model, TEXTS, metric=metric)
    alone = gradient_sensitivity(model, TEXTS, metric=metric, batch_size=1)
    np.testing.assert_allclose(together.array.values, alone.array.values, atol=1e-6)


def test_an_unknown_kind_and_a_metric_of_texts_are_refused(model):
    with pytest.raises(ValueError, match=r"must be one of \('magnitude', 'input'\), got 'x'"):
        gradient_sensitivity(model, TEXTS, metric=metric, kind="x")
    with pytest.raises(ValueError, match="judges generated texts, which have no gradient"):
        gradient_sensitivity(model, TEXTS, metric=RefusalRate())
