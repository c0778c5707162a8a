"""Interventions that hold in one phase of a generation, against plain hooks and no cache."""

import plain_hooks
import pytest
from plain_changes import changed
from plain_scenes import IN_PHASES, LAYERS, InPhase, Scene, until_end

from moe_interp import run

N_NEW = 3


# Softmax renormalised, sigmoid with bias and groups, and weights that multiply an expert's input.
@pytest.fixture(scope="module", params=["mixtral", "deepseek_v3", "llama4_text"])
def scene(request, tiny_model, plain_model, texts):
    family, short = request.param, [text for text in texts if len(text.split()) < 10]
    return Scene(family, tiny_model(family), plain_model(family), short)


def free_texts(scene, change, phase):
    """Greedy texts that nothing ends, of plain code under a change in one phase."""
    texts = []
    for prompt, text in enumerate(scene.texts):
        ids = scene.ids(text)
        changes = {
            layer: InPhase(change(scene, layer, prompt), phase, len(ids)) for layer in LAYERS
        }
        with changed(scene.plain, changes):
            texts.append(plain_hooks.greedy(scene.plain, ids, N_NEW, ()))
    return texts


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(
    "kind", [kind for kind in IN_PHASES if kind not in ("steer-max", "steer-min", "mean-weighted")]
)
def test_texts_that_end_at_different_steps_equal_those_of_plain_code(
    kind, phase, scene, monkeypatch
):
    make, change = IN_PHASES[kind]
    free = free_texts(scene, change, phase)
    ends = [free[0][1], free[1][2]]
    monkeypatch.setattr(scene.model.nnsight._module.generation_config, "eos_token_id", ends)
    result = run(scene.model, scene.texts, make(scene, phase=phase), max_new_tokens=N_NEW)
    expected = [until_end(tokens, ends) for tokens in free]
    assert list(result.tokens) == expected
    assert len({len(tokens) for tokens in expected}) > 1


def test_each_phase_alone_changes_other_texts(scene):
    def texts(*interventions):
        return run(scene.model, scene.texts, list(interventions), max_new_tokens=N_NEW).tokens

    make, _ = IN_PHASES["force"]
    prefill, decode, both = (make(scene, phase=phase) for phase in ("prefill", "decode", "both"))
    assert texts(prefill, decode) == texts(both)
    assert len({texts(), texts(prefill), texts(decode), texts(both)}) == 4
