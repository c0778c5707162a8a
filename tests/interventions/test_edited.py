"""Models that keep interventions, in traces of one's own."""

import pytest
import torch

from moe_interp import Ban, Zero, run
from moe_interp.interventions import AddVector, Scale, Steer, Transplant, edited, routing_of
from moe_interp.prompts import Prompt, PromptSet, encode

CHANGES = [
    Ban("L1E0,L1E2"),
    Scale("L2E5,L2E1", 2.0),
    Steer({(2, 3): 1.0}),
    AddVector(1, [0.5] * 32),
]


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "llama4_text"])
def test_runs_of_an_edited_model_are_runs_with_the_interventions(family, tiny_model, texts):
    model = tiny_model(family)
    changed = edited(model, CHANGES)
    before = run(model, texts).logits
    expected = run(model, texts, CHANGES).logits
    assert torch.equal(run(changed, texts).logits, expected)
    assert torch.equal(run(model, texts).logits, before)
    assert (expected - before).abs().max() > 0.01
    more = Zero("L1E3,L1E5,L1E6")
    torch.testing.assert_close(
        run(changed, texts, more).logits, run(model, texts, [*CHANGES, more]).logits
    )


def test_a_model_can_be_asked_for_an_edited_one(tiny_model, texts):
    model = tiny_model("olmoe")
    expected = run(model, texts, CHANGES).logits
    assert torch.equal(run(model.edited(CHANGES), texts).logits, expected)


def test_generation_of_an_edited_model_is_changed_at_every_step(tiny_model, texts):
    model = tiny_model("olmoe")
    changed = edited(model, CHANGES)
    expected = run(model, texts, CHANGES, max_new_tokens=5).tokens
    assert run(changed, texts, max_new_tokens=5).tokens == expected
    assert expected != run(model, texts, max_new_tokens=5).tokens
    for phase in ("prefill", "decode"):
        change = AddVector(1, [1.5] * 32, phase=phase)
        alone = run(model, texts, change, max_new_tokens=5).tokens
        assert run(edited(model, change), texts, max_new_tokens=5).tokens == alone


def test_a_trace_of_ones_own_reads_what_the_changed_model_computes(tiny_model, texts):
    model = tiny_model("olmoe")
    changed = edited(model, CHANGES)
    encoded = encode(model.tokenizer, texts)
    with torch.no_grad(), changed.trace(encoded.inputs):
        index = changed.moe[1].expert_index.save()
        found = changed.moe[2].read("router_logits", "routing_weights")
        logits = found["router_logits"].save()
        weights = found["routing_weights"].save()
        out = changed.nnsight.output.logits[:, -1].save()
    assert not bool(((index == 0) | (index == 2)).any())
    assert logits.shape[-1] == 8
    assert weights.shape == index.shape
    torch.testing.assert_close(out, run(model, texts, CHANGES).logits, rtol=0, atol=1e-5)


def test_a_model_edited_for_prompts_knows_their_tokens(tiny_model, texts):
    model = tiny_model("mixtral")
    others = [" ".join(reversed(text.split())) for text in texts]
    changes = [Transplant(routing_of(model, others)), Zero("L1E1,L1E3,L1E5", tokens="last")]
    changed = edited(model, changes, prompts=texts)
    encoded = encode(model.tokenizer, texts)
    with torch.no_grad(), changed.trace(encoded.inputs):
        out = changed.nnsight.output.logits[:, -1].save()
    torch.testing.assert_close(out, run(model, texts, changes).logits, rtol=0, atol=1e-5)
    assert (out - run(model, texts).logits).abs().max() > 1e-2


def test_no_intervention_gives_the_model_itself(tiny_model, texts):
    model = tiny_model("olmoe")
    assert torch.equal(run(edited(model, []), texts).logits, run(model, texts).logits)


def test_what_speaks_of_tokens_needs_prompts(tiny_model, texts):
    model = tiny_model("olmoe")
    with pytest.raises(ValueError, match=r"needs the tokens of the prompts \('last'\).*`prompts=`"):
        edited(model, Zero("L1E0", tokens="last"))
    with pytest.raises(ValueError, match=r"needs the tokens of the prompts \('prompt'\)"):
        edited(model, Transplant(routing_of(model, texts)))
    bound = edited(model, Zero("L1E0", tokens="last"), prompts=texts)
    said = r"Layer 1: an edit made for 4 rows of 16 tokens meets 1 rows of 2 tokens"
    with pytest.raises(ValueError, match=said):
        run(bound, PromptSet([Prompt("help me")]))
