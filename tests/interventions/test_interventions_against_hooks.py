"""Every intervention against hooks and loops that know nothing of nnsight or of moe_interp."""

import plain_changes
import plain_hooks
import pytest
import torch
from plain_changes import changed
from plain_scenes import CASES, LAYERS, Scene, until_end

from moe_interp import run

# Softmax (with a shared expert), renormalised, sigmoid with bias and groups, softmax after the
# choice, weights that multiply an expert's input, one expert per token, and a class to skip.
FAMILIES = (
    "olmoe",
    "qwen2_moe",
    "mixtral",
    "deepseek_v3",
    "gpt_oss",
    "granitemoe",
    "llama4_text",
    "olmoe-top1",
    "zaya",
)
cases = pytest.mark.parametrize("kind", CASES)


@pytest.fixture(scope="module", params=FAMILIES)
def scene(request, tiny_model, plain_model, texts):
    return Scene(request.param, tiny_model(request.param), plain_model(request.param), texts)


def prepared(scene, kind):
    if kind == "patch-unweighted" and scene.weighs_input:
        pytest.skip("Llama 4 has no unweighted outputs; test_refusals has its error.")
    make, change = CASES[kind]
    changes = [
        {layer: change(scene, layer, prompt) for layer in LAYERS}
        for prompt in range(len(scene.texts))
    ]
    return make(scene), changes


@cases
def test_next_token_logits_equal_those_under_plain_hooks(kind, scene):
    interventions, changes = prepared(scene, kind)
    measured, reach = run(scene.model, scene.texts, interventions).logits, 0.0
    for text, change, logits in zip(scene.texts, changes, measured, strict=True):
        untouched = plain_hooks.next_logits(scene.plain, scene.ids(text))
        with changed(scene.plain, change):
            expected = plain_hooks.next_logits(scene.plain, scene.ids(text))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-5)
        reach = max(reach, float((expected - untouched).abs().max()))
    assert reach > 0.01


@cases
def test_greedy_texts_equal_those_under_plain_hooks_though_they_end_at_different_steps(
    kind, scene, monkeypatch
):
    interventions, changes = prepared(scene, kind)

    free = []
    for text, change in zip(scene.texts, changes, strict=True):
        with changed(scene.plain, change):
            free.append(plain_hooks.greedy(scene.plain, scene.ids(text), 4, ()))
    ends = [free[0][1], free[1][2]]
    config = scene.model.nnsight._module.generation_config
    monkeypatch.setattr(config, "eos_token_id", ends)
    result = run(scene.model, scene.texts, interventions, max_new_tokens=4)
    expected = [until_end(tokens, ends) for tokens in free]
    assert list(result.tokens) == expected
    assert len({len(tokens) for tokens in expected}) > 1


def test_the_families_are_those_the_hooks_know():
    assert {family.split("-")[0] for family in FAMILIES} <= set(plain_changes.ROUTERS)
