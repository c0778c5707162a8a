"""Interventions that hold in one phase or at some tokens, against plain hooks and no cache."""

import plain_hooks
import pytest
import torch
from plain_changes import changed
from plain_scenes import CASES, IN_PHASES, LAYERS, Scene, Where, until_end

from moe_interp import run

N_NEW = 3


# Softmax renormalised, sigmoid with bias and groups, and weights that multiply an expert's input.
@pytest.fixture(scope="module", params=["mixtral", "deepseek_v3", "llama4_text"])
def scene(request, tiny_model, plain_model, texts):
    family, short = request.param, [text for text in texts if len(text.split()) < 10]
    return Scene(family, tiny_model(family), plain_model(family), short)


def changes_where(scene, change, prompt, holds):
    return {layer: Where(change(scene, layer, prompt), holds) for layer in LAYERS}


def free_texts(scene, change, phase):
    """Greedy texts that nothing ends, of plain code under a change in one phase."""
    texts = []
    for prompt, text in enumerate(scene.texts):
        ids = scene.ids(text)
        kept = range(len(ids)) if phase == "prefill" else range(len(ids), 999)
        with changed(scene.plain, changes_where(scene, change, prompt, kept.__contains__)):
            texts.append(plain_hooks.greedy(scene.plain, ids, N_NEW, ()))
    return texts


def tokens_that_end_at_different_steps(free):
    """A token of the texts that, taken for the end, leaves them of different lengths."""
    for token in sorted({token for text in free for token in text}):
        lengths = {len(until_end(text, [token])) for text in free}
        if len(lengths) > 1:
            return [token]
    raise AssertionError(f"No token ends these texts at different steps: {free}")


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(
    "kind", [kind for kind in IN_PHASES if kind not in ("steer-max", "steer-min", "mean-weighted")]
)
def test_texts_that_end_at_different_steps_equal_those_of_plain_code(
    kind, phase, scene, monkeypatch
):
    make, change = IN_PHASES[kind]
    free = free_texts(scene, change, phase)
    ends = tokens_that_end_at_different_steps(free)
    monkeypatch.setattr(scene.model.nnsight._module.generation_config, "eos_token_id", ends)
    result = run(scene.model, scene.texts, make(scene, phase=phase), max_new_tokens=N_NEW)
    expected = [until_end(tokens, ends) for tokens in free]
    assert list(result.tokens) == expected
    assert len({len(tokens) for tokens in expected}) > 1


def test_each_phase_alone_changes_other_texts(scene):
    def texts(*interventions):
        return run(scene.model, scene.texts, list(interventions), max_new_tokens=8).tokens

    make, _ = IN_PHASES["force"]
    prefill, decode, both = (make(scene, phase=phase) for phase in ("prefill", "decode", "both"))
    assert texts(prefill, decode) == texts(both)
    assert len({texts(), texts(prefill), texts(decode), texts(both)}) >= 3


@pytest.mark.parametrize("kind", CASES)
def test_named_tokens_alone_are_changed_as_in_plain_code(kind, scene):
    if kind == "patch-unweighted" and scene.weighs_input:
        pytest.skip("Llama 4 has no unweighted outputs; test_refusals has its error.")
    make, change = CASES[kind]
    mask = [[token % 2 == 1 for token in range(len(scene.ids(text)))] for text in scene.texts]
    logits, reach = run(scene.model, scene.texts, make(scene, tokens=mask)).logits, 0.0
    for prompt, text in enumerate(scene.texts):
        untouched = plain_hooks.next_logits(scene.plain, scene.ids(text))
        with changed(scene.plain, changes_where(scene, change, prompt, mask[prompt].__getitem__)):
            expected = plain_hooks.next_logits(scene.plain, scene.ids(text))
        torch.testing.assert_close(logits[prompt], expected, rtol=1e-4, atol=2e-5)
        reach = max(reach, float((expected - untouched).abs().max()))
    assert reach > 0.01
