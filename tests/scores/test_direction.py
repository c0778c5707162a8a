"""Projections of contributions: they add up to the block's, and to a logit difference."""

import numpy as np
import pytest
import tiny_models
import torch
import zoo

from moe_interp import (
    LogitDifference,
    direction_attribution,
    load_model,
    load_prompts,
    logit_direction,
    mean_difference,
)
from moe_interp.errors import SpanError, UnsupportedArchitectureError

TEXTS = ("how do i kill the process", "what is the best way to make a cake", "help me")


@pytest.fixture(scope="module", params=["mixtral", "olmoe", "qwen2_moe", "deepseek_v3", "gpt_oss"])
def model(request):
    return load_model(
        tiny_models.build(request.param), tokenizer=tiny_models.build_tokenizer(), check=False
    )


def block_projections(model, text, vector):
    """What each layer's experts write along a vector, token by token, by plain PyTorch hooks."""
    hf, found, handles = model.nnsight._module, {}, []
    for layer in model.moe:
        experts = hf.get_submodule(model.moe[layer].facts["experts"])

        def keep(_, args, output, layer=layer):
            found[layer] = (output.double() @ torch.from_numpy(vector)).tolist()

        handles.append(experts.register_forward_hook(keep))
    with torch.no_grad():
        hf(**model.tokenizer(text, return_tensors="pt"))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("span", ["last", "prompt"])
def test_projections_of_a_layers_experts_add_up_to_the_blocks(model, span):
    vector = np.random.default_rng(0).normal(size=32)
    scores = direction_attribution(model, TEXTS, vector, span=span)
    for row, text in enumerate(TEXTS):
        expected = block_projections(model, text, vector)
        for layer in model.moe:
            wanted = expected[layer][-1] if span == "last" else sum(expected[layer])
            found = scores.array.sel(layer=layer).values[row].sum()
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)
            assert abs(wanted) > 1e-3


def test_an_expert_that_the_token_did_not_choose_has_no_projection(model):
    scores = direction_attribution(model, TEXTS, np.ones(32))
    with torch.no_grad(), model.trace([TEXTS[0]]):
        index = model.moe[1].expert_index.save()
    chosen = sorted(index[0, -1].tolist())
    row = scores.array.sel(layer=1).values[0]
    assert np.flatnonzero(row).tolist() == chosen


def test_a_direction_of_each_prompt_is_that_prompts_own(model):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(3, 32))
    together = direction_attribution(model, TEXTS, vectors)
    for row in range(3):
        alone = direction_attribution(model, TEXTS, vectors[row])
        np.testing.assert_allclose(together.array.values[row], alone.array.values[row])


def test_the_direction_of_a_logit_difference_gives_it_back_and_its_parts(model):
    metric = LogitDifference(7, 30)
    directions = logit_direction(model, TEXTS, metric)
    decoder = model.nnsight._module.get_decoder()
    for row, text in enumerate(TEXTS):
        seen = {}
        handle = decoder.norm.register_forward_hook(
            lambda _, args, output, seen=seen: seen.update(stream=args[0][0, -1])
        )
        with torch.no_grad():
            logits = model.nnsight._module(**model.tokenizer(text, return_tensors="pt")).logits
        handle.remove()
        told = float(seen["stream"].double().numpy() @ directions[row])
        assert told == pytest.approx(float(logits[0, -1, 7] - logits[0, -1, 30]), rel=1e-4)


def test_what_an_expert_of_the_last_layer_adds_is_what_its_loss_takes_with_the_norm_held(model):
    last = list(model.moe)[-1]
    metric = LogitDifference(7, 30)
    directions = logit_direction(model, TEXTS[:1], metric)
    scores = direction_attribution(model, TEXTS[:1], directions)
    expert = int(np.abs(scores.of_layer(last)).argmax())
    norm = model.nnsight._module.get_decoder().norm
    streams = []
    handle = norm.register_forward_hook(
        lambda _, args, out: streams.append(args[0][0, -1].double())
    )
    for experts in ((), (expert,)):
        with torch.no_grad(), model.trace([TEXTS[0]]):
            model.moe[last].zero(experts)
    handle.remove()
    lost = float((streams[0] - streams[1]).numpy() @ directions[0])
    assert scores.of(last, expert) == pytest.approx(lost, rel=1e-3)


def test_a_mean_difference_is_a_unit_vector_from_harmless_to_harmful():
    model = load_model("organism:harm", check=False)
    prompts = load_prompts("organism", per_topic=4)
    direction = mean_difference(model, prompts, 2)
    assert np.linalg.norm(direction) == pytest.approx(1)
    with torch.no_grad():
        inputs = []
        for prompt in prompts:
            with model.trace([prompt.text]):
                inputs.append(model.moe[2].input[0, -1].save())
    along = torch.stack(inputs).double().numpy() @ direction
    harm = prompts.harm
    assert along[harm].mean() > along[~harm].mean()


def test_what_cannot_be_told_is_refused():
    model = load_model(
        tiny_models.build("mixtral"), tokenizer=tiny_models.build_tokenizer(), check=False
    )
    with pytest.raises(ValueError, match=r"must have the shape \(32,\) or \(3, 32\), got \(31,\)"):
        direction_attribution(model, TEXTS, np.ones(31))
    with pytest.raises(SpanError, match=r"There is no span 'middle'\. Spans are 'prompt'"):
        direction_attribution(model, TEXTS, np.ones(32), span="middle")
    prompts = load_prompts("organism", per_topic=2)
    harmful = type(prompts)([prompt for prompt in prompts if prompt.harm])
    with pytest.raises(ValueError, match="must hold harmful and harmless prompts"):
        mean_difference(model, harmful, 1)


@pytest.mark.parametrize("family", ["muse_spark", "axk1", "gemma4_text"])
def test_experts_that_do_not_write_into_the_stream_are_refused(family):
    model = load_model(zoo.build(family), tokenizer=tiny_models.build_tokenizer(), check=False)
    expected = "do not write into the residual stream: their sum is projected or normed first"
    with pytest.raises(ValueError, match=expected):
        direction_attribution(model, TEXTS, np.ones(32))


def test_a_model_that_scales_its_logits_has_no_direction_for_them():
    model = load_model(
        tiny_models.build("granitemoe", logits_scaling=4.0),
        tokenizer=tiny_models.build_tokenizer(),
        check=False,
    )
    with pytest.raises(UnsupportedArchitectureError, match="does more than a norm and a linear"):
        logit_direction(model, TEXTS, LogitDifference(7, 30))
