"""Routers that say too little of what they chose: a class to skip, capacity, weights of 0."""

import numpy as np
import pytest
import torch
import zoo_runs
from tiny_models import build_tokenizer

from moe_interp import load_model, run
from moe_interp.interventions import (
    AddVector,
    Ban,
    CapturedRun,
    Force,
    Mean,
    MeanOutputs,
    Scale,
    Transplant,
    Zero,
    edited,
    mean_outputs,
    measure_effect,
    outputs_of,
    routing_of,
)

VECTOR = torch.linspace(-1, 1, 32)
SKIP = 8
WEIGHTS = "routing_weights"


def weighted(model, texts, experts):
    """Mean contributions of experts of layer 1 over the texts themselves."""
    return Mean(experts, mean_outputs(model, texts, [1], quantity="expert_contributions"))


@pytest.mark.parametrize("family", ["zaya", "llama4_text", "olmoe"])
def test_what_is_put_in_for_an_expert_does_not_ask_for_its_weight(family, tiny_model, texts):
    model = tiny_model(family)
    index = routing_of(model, texts).values[1]["expert_index"]
    known = [(1, e) for e in torch.cat(index).unique().tolist()]
    mean = weighted(model, texts, known)
    expected = run(model, texts, mean).logits
    assert (expected - run(model, texts).logits).abs().max() > 1e-3
    for gone in (Zero(known), Scale(known, 0.0), Zero(known[:1])):
        logits = run(model, texts, [gone, mean]).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_a_transplanted_weight_of_0_leaves_the_expert_chosen(tiny_model, texts):
    model = tiny_model("llama4_text")
    routing = routing_of(model, texts, [1])
    weights = tuple(part * torch.tensor([1.0, 0.0]) for part in routing.values[1][WEIGHTS])
    silent = CapturedRun(routing.ids, {1: {**routing.values[1], WEIGHTS: weights}})
    alone = run(model, texts, Transplant(silent)).logits
    assert (alone - run(model, texts).logits).abs().max() > 1e-3
    outputs = outputs_of(model, texts, [1]).values[1]["expert_contributions"]
    for prompt, text in enumerate(texts):
        changed = edited(model, Transplant(of_prompt(silent, prompt)), prompts=[text])
        with torch.no_grad(), changed.trace(text):
            routed = changed.moe[1].routed_output.save()
        torch.testing.assert_close(routed[0], outputs[prompt][:, 0], rtol=1e-4, atol=1e-5)
    # Every expert that was chosen adds its mean; one that was not adds nothing.
    known = [(1, e) for e in torch.cat(routing.values[1]["expert_index"]).unique().tolist()]
    mean = weighted(model, texts, known)
    both = run(model, texts, [Transplant(silent), mean]).logits
    torch.testing.assert_close(both, run(model, texts, mean).logits, rtol=0, atol=1e-5)


def of_prompt(captured, prompt):
    """What was captured of one prompt."""
    values = {
        layer: {name: (parts[prompt],) for name, parts in quantities.items()}
        for layer, quantities in captured.values.items()
    }
    return CapturedRun((captured.ids[prompt],), values)


def test_a_skipped_token_is_not_taken_for_one_of_expert_0(tiny_model, texts):
    model = tiny_model("zaya")
    routing = routing_of(model, texts, [1])
    zeros = tuple(torch.zeros_like(part) for part in routing.values[1]["expert_index"])
    halves = tuple(torch.full_like(part, 0.5) for part in routing.values[1][WEIGHTS])
    to_0 = Transplant(CapturedRun(routing.ids, {1: {"expert_index": zeros, WEIGHTS: halves}}))
    skipping = run(model, texts, Force([(1, SKIP)])).logits
    silent = run(model, texts, Zero([(1, expert) for expert in range(8)])).logits
    torch.testing.assert_close(skipping, silent, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        run(model, texts, [to_0, Force([(1, SKIP)])]).logits, skipping, rtol=0, atol=1e-5
    )
    assert (run(model, texts, to_0).logits - skipping).abs().max() > 1e-3


@pytest.fixture(scope="module")
def switch():
    """Its tokens go to one expert each, and to none if that one has had enough of their row."""
    return zoo_runs.wrapped("switch_transformers", None)


def by_hand(block, hidden, n_most, *, banned=(), forced=None, factor=1.0, vector=None, added=None):
    """What the block makes of its input, token by token; and how many experts were too full."""
    probs, total, n_over = block.router.classifier(hidden).softmax(-1), torch.zeros_like(hidden), 0
    for row in range(len(hidden)):
        taken = [0] * probs.shape[-1]
        for token in range(hidden.shape[1]):
            order = probs[row, token].argsort(descending=True).tolist()
            expert = next(e for e in order if e not in banned) if forced is None else forced
            taken[expert] += 1
            n_over += taken[expert] > n_most
            if added is not None:
                total[row, token] = added[expert]
            if added is not None or taken[expert] > n_most:
                continue
            written = block.experts[f"expert_{expert}"](hidden[row, token])
            written = written if vector is None else vector
            total[row, token] = factor * probs[row, token, expert] * written
    return total, n_over


LONG = {
    **zoo_runs.prompts("switch_transformers"),
    "decoder_input_ids": torch.arange(40, 58).reshape(2, 9),
}
EVERY = [(1, expert) for expert in range(8)]
BANNED = (0, 3, 5, 6)
ADDED = torch.arange(8.0)[:, None] * VECTOR
CHANGES = {
    "nothing": ((), {}),
    "ban": (Ban("L1E0,L1E3,L1E5,L1E6"), {"banned": BANNED}),
    "force": (Force("L1E2"), {"forced": 2}),
    "zero": (Zero(EVERY), {"factor": 0.0}),
    "scale": (Scale(EVERY, -1.5), {"factor": -1.5}),
    "mean": (Mean(EVERY, dict.fromkeys(EVERY, VECTOR)), {"vector": VECTOR}),
    "ban-and-scale": (
        [Ban("L1E0,L1E3,L1E5,L1E6"), Scale(EVERY, 2.0)],
        {"banned": BANNED, "factor": 2.0},
    ),
    # What an expert adds becomes its mean, also where it had no room to add anything.
    "ban-and-added": (
        [
            Ban([(1, expert) for expert in BANNED]),
            Mean(
                EVERY,
                MeanOutputs(
                    "expert_contributions", {1: ADDED}, {1: torch.ones(8, dtype=torch.int64)}
                ),
            ),
        ],
        {"banned": BANNED, "added": ADDED},
    ),
    "force-and-mean": (
        [Force("L1E2"), Mean(EVERY, dict.fromkeys(EVERY, VECTOR))],
        {"forced": 2, "vector": VECTOR},
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_capacity_holds_for_what_an_intervention_chooses(kind, switch):
    interventions, expected = CHANGES[kind]
    changed, path = edited(switch, interventions), switch.moe[1].facts["block"]
    with torch.no_grad(), changed.trace(LONG):
        hidden = changed.nnsight.get(path).input.save()
        output = changed.moe[1].output.save()
    block = switch.nnsight._module.get_submodule(path)
    with torch.no_grad():
        total, n_over = by_hand(block, hidden, block.router.expert_capacity, **expected)
    torch.testing.assert_close(output, total, rtol=1e-4, atol=1e-5)
    assert n_over > 0 or ("ban" not in kind and "force" not in kind)


def test_a_vector_is_added_to_what_leaves_a_full_block(switch):
    outputs = []
    for model in (switch, edited(switch, AddVector(1, VECTOR))):
        with torch.no_grad(), model.trace(LONG):
            outputs.append(model.moe[1].output.save())
    torch.testing.assert_close(outputs[1], outputs[0] + VECTOR, rtol=0, atol=1e-6)


def test_prompts_are_not_run_through_an_encoder_decoder(switch):
    model = load_model(switch.nnsight._module, tokenizer=build_tokenizer(), check=False)
    said = "'SwitchTransformersForConditionalGeneration' is an encoder-decoder, which reads"
    for attempt in (
        lambda: run(model, ["help me"], Zero("L1E0")),
        lambda: run(model, ["help me"], Zero("L1E0"), max_new_tokens=2),
        lambda: routing_of(model, ["help me"]),
        lambda: measure_effect(model, ["help me"], Zero("L1E0"), metric=np.mean),
    ):
        with pytest.raises(ValueError, match=said):
            attempt()


def zeroed(model, text, experts, quantity):
    """A trace of one's own in which the experts' weights become 0 before something is read."""
    with torch.no_grad(), model.trace(text):
        model.moe[1].zero(experts)
        model.moe[1].read(quantity)


def test_a_trace_that_has_lost_whose_weight_is_0_says_so(tiny_model, texts):
    model = tiny_model("llama4_text")
    layer, text = model.moe[1], texts[0]
    used = routing_of(model, [text], [1]).values[1]["expert_index"][0].unique().tolist()
    for quantity in ("expert_index", "expert_contributions"):
        with pytest.raises(ValueError, match=r"Layer 1: some routing weights are 0.*such as Zero"):
            zeroed(model, text, used[:1], quantity)
    with torch.no_grad(), model.trace(text):
        layer.zero(used[:1])
        weights = layer.routing_weights.save()
    assert (weights == 0).any()
