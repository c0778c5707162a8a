"""Attribution against finite differences of the routing weights themselves."""

from dataclasses import dataclass

import numpy as np
import pytest
import tiny_models
import torch

from moe_interp import ExpertSet, RefusalRate, attribution, load_model
from moe_interp.interventions import Edit, ExpertIntervention, measure_many

TEXTS = ("how do i kill the process", "what is the best way to make a cake", "help me")


def scale(layer, index, weights, where, factor):
    return torch.where(where.gather(-1, index), weights * factor.to(weights.dtype), weights)


@dataclass(frozen=True)
class Scale(ExpertIntervention):
    factor: float = 1.0

    def edits(self, batch):
        factor = torch.full((1, 1, 1), self.factor, dtype=torch.float64)
        return [
            Edit(layer, "weights", scale, where, (factor,)) for layer, where in self.where(batch)
        ]


def metric(logits):
    return logits[:, 7] - logits[:, 30:40].logsumexp(-1)


@pytest.fixture(scope="module", params=["olmoe", "mixtral", "deepseek_v3", "gpt_oss", "qwen2_moe"])
def model(request):
    # Differences of small steps need double precision, which grouped_mm does not have.
    hf = tiny_models.build(request.param, dtype=torch.float64)
    hf.set_experts_implementation("eager")
    return load_model(hf, tokenizer=tiny_models.build_tokenizer(), check=False)


def test_attribution_is_the_slope_along_each_experts_weights(model):
    scores = attribution(model, TEXTS, metric=metric)
    # Norms compute in float32 whatever the dtype, so the steps cannot be small; the difference of
    # five points is exact up to their fourth power instead, unless a later choice of experts flips.
    step = 0.004
    experts = [(layer, expert) for layer in (1, 2) for expert in range(8)]
    sets = [ExpertSet([expert]) for expert in experts]

    def at(factor):
        return measure_many(
            model, TEXTS, sets, metric=metric, mode=lambda chosen: Scale(chosen, factor=factor)
        )

    near, far = at(1 + step) - at(1 - step), at(1 + 2 * step) - at(1 - 2 * step)
    # Zeroing goes from factor 1 to 0: the predicted change is minus the slope at 1.
    expected = -(8 * near - far) / (12 * step)
    measured = np.stack([scores.array.sel(layer=la, expert=e).values for la, e in experts])
    np.testing.assert_allclose(measured, expected, atol=3e-4)
    assert np.abs(expected).max() > 0.05


def test_attribution_does_not_depend_on_batches_or_frozen_parameters(model):
    whole = attribution(model, TEXTS, metric=metric)
    module = model.nnsight._module
    module.requires_grad_(False)
    single = attribution(model, TEXTS, metric=metric, batch_size=1)
    np.testing.assert_allclose(single.array.values, whole.array.values, atol=1e-6)
    assert not any(weight.requires_grad for weight in module.parameters())
    module.requires_grad_(True)
    assert all(weight.grad is None for weight in module.parameters())


def test_experts_that_a_prompt_did_not_choose_have_no_attribution(model):
    scores = attribution(model, TEXTS[2:], metric=metric)
    layer = model.moe[1]
    with torch.no_grad(), model.nnsight.trace(list(TEXTS[2:])):
        index = layer.expert_index.save()
    chosen = set(index.flatten().tolist())
    rest = [expert for expert in range(8) if expert not in chosen]
    assert rest
    assert (scores.of_layer(1)[rest] == 0).all()
    assert (scores.of_layer(1)[sorted(chosen)] != 0).all()


def test_metrics_without_a_gradient_are_refused(model):
    with pytest.raises(ValueError, match=r"refusal_rate judges generated texts, which have no"):
        attribution(model, TEXTS, metric=RefusalRate())
    with pytest.raises(ValueError, match=r"cuts the gradient"):
        attribution(model, TEXTS, metric=lambda logits: logits[:, 0].detach())
    with pytest.raises(ValueError, match=r"must turn logits .* shape \(3,\), got \(3, \d+\)"):
        attribution(model, TEXTS, metric=lambda logits: logits)
