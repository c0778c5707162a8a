"""What must not change a bit, and what must add up."""

import numpy as np
import pytest
import torch

from moe_interp import ExpertSet, Zero, measure_effect, record_routing, run
from moe_interp.errors import SpanError
from moe_interp.interventions import (
    AddVector,
    Force,
    Mean,
    PatchBlock,
    PatchOutput,
    Renormalise,
    Resample,
    Scale,
    Steer,
    Transplant,
    edited,
    mean_outputs,
    measure_many,
    outputs_of,
    patch,
    routing_of,
)
from moe_interp.prompts import Prompt, PromptSet, encode

FAMILIES = (
    "olmoe",
    "qwen2_moe",
    "mixtral",
    "deepseek_v3",
    "gpt_oss",
    "granitemoe",
    "llama4_text",
    "olmoe-top1",
)
families = pytest.mark.parametrize("family", FAMILIES)
EVERY = [(layer, expert) for layer in (1, 2) for expert in range(8)]


def metric(logits):
    return logits[:, 7] - logits[:, 30]


# A sum of four has more than one order.
@pytest.mark.parametrize("family", [*FAMILIES, "olmoe-top4"])
def test_what_changes_nothing_changes_no_bit(family, tiny_model, texts):
    model = tiny_model(family)
    untouched = run(model, texts).logits
    outputs = outputs_of(model, texts, EVERY)
    nothing = {
        "no expert": [Renormalise(()), Scale((), 2.0), Force(()), Steer({})],
        "scale 1": [Scale(EVERY, 1.0)],
        "shift 0": [Steer({(1, 3): 0.0})],
        "own routing": [Transplant(routing_of(model, texts))],
        "own experts": [Transplant(routing_of(model, texts), part="index")],
        "own contributions": [PatchOutput(EVERY, outputs)],
        "own blocks": [PatchBlock([1, 2], outputs)],
        "vector 0": [AddVector(1, [0.0] * 32)],
    }
    for what, interventions in nothing.items():
        assert torch.equal(run(model, texts, interventions).logits, untouched), what


@families
def test_an_expert_that_no_token_chose_changes_no_bit(family, tiny_model):
    model, text = tiny_model(family), ["help me"]
    index = routing_of(model, text).values[1]["expert_index"][0]
    unused = [(1, expert) for expert in range(8) if expert not in index.tolist()[0]]
    unused = [(1, e) for _, e in unused if not bool((index == e).any())]
    assert len(unused) > 2
    quantity = "expert_contributions" if family == "llama4_text" else "expert_outputs"
    others = ["tell me a story about two people and one computer", "where is the engine"]
    reference = mean_outputs(model, others, [1], quantity=quantity)
    known = [(1, e) for _, e in unused if int(reference.counts[1][e])]
    untouched = run(model, text).logits
    changes = [Renormalise(unused), Scale(unused, 3.0), Mean(known, reference)]
    outputs = outputs_of(model, others, [1], quantities=[quantity])
    changes.append(Resample(known, outputs, rng=np.random.default_rng(0)))
    for change in changes:
        assert torch.equal(run(model, text, change).logits, untouched), change


def test_routing_from_a_record_is_that_of_the_run(tiny_model, texts):
    model = tiny_model("deepseek_v3")
    record = record_routing(model, texts)
    logits = run(model, texts, Transplant(record)).logits
    torch.testing.assert_close(logits, run(model, texts).logits, rtol=0, atol=1e-5)
    other = record_routing(model, [" ".join(reversed(text.split())) for text in texts])
    moved = run(model, texts, Transplant(other)).logits
    expected = run(model, texts, Transplant(routing_of(model, other.prompts))).logits
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    assert (moved - logits).abs().max() > 0.01


# Under the other two the sizes of the experts' matrix products change with the other rows.
@pytest.mark.parametrize(
    ("implementation", "tolerance"), [("batched_mm", 0), ("grouped_mm", 1e-6), ("eager", 1e-6)]
)
@pytest.mark.parametrize("kind", ["renormalise", "force", "steer", "vector", "mean"])
def test_untouched_rows_keep_their_bits_beside_changed_ones(
    kind, implementation, tolerance, tiny_model, monkeypatch
):
    model, text = tiny_model("olmoe"), ["how do i kill the process"]
    monkeypatch.setattr(model.nnsight._module.config, "_experts_implementation", implementation)
    reference = mean_outputs(model, text, [1])
    known = [(1, e) for e in range(8) if int(reference.counts[1][e])]
    make = {
        "renormalise": lambda experts: Renormalise(known[:2]),
        "force": lambda experts: Force(experts),
        "steer": lambda experts: Steer({(1, 3): 5.0}),
        "vector": lambda experts: AddVector(1, [1.0] * 32),
        "mean": lambda experts: Mean(known, reference),
    }[kind]
    alone, kept = run(model, text * 2).logits, []

    def keep(logits):
        kept.append(logits)
        return logits[:, 0]

    sets = [ExpertSet(), ExpertSet([(1, 3), (1, 4)])]
    measure_many(model, text, sets, metric=keep, mode=make)
    assert (kept[0][0] - alone[0]).abs().max() <= tolerance * alone[0].abs().max()
    assert (kept[0][1] - alone[0]).abs().max() > 1e-4


def test_rows_with_different_interventions_equal_runs_of_each(tiny_model, texts):
    model = tiny_model("qwen2_moe")
    others = [" ".join(reversed(text.split())) for text in texts]
    reference = mean_outputs(model, others, [1, 2])
    others_outputs = outputs_of(model, others, [1], quantities=["expert_outputs", "output"])
    # As many values as those of the others, so that one could pass for the other.
    outputs = outputs_of(model, others[::-1], [1], quantities=["expert_outputs"])
    contributions = outputs_of(model, others, [1, 2])
    known = [(1, e) for e in range(8) if int(reference.counts[1][e])]
    recipes = {
        "L0E0": Mean(known[:2], {expert: [0.7] * 32 for expert in known}),
        "L0E1": Resample(known, outputs, rng=np.random.default_rng(4)),
        "L0E2": Mean(known, {expert: [-0.7] * 32 for expert in known}),
        "L1E0": Scale("L1E0,L2E1", 2.0),
        "L1E1": Mean(known, reference),
        "L1E2": Steer({(2, 5): 1.0}, tokens="last"),
        "L1E3": Resample(known, others_outputs, rng=np.random.default_rng(3)),
        "L1E4": PatchOutput("L1E2,L1E5,L2E6,L2E0", contributions),
        "L1E5": AddVector(2, [0.3] * 32),
        "L1E6": AddVector(2, [-0.3] * 32, tokens="last"),
        "L1E7": Transplant(routing_of(model, others)),
    }
    together = measure_many(
        model, texts, list(recipes), metric=metric, mode=lambda experts: recipes[str(experts)]
    )
    plain = metric(run(model, texts).logits)
    for row, change in zip(together, recipes.values(), strict=True):
        alone = metric(run(model, texts, change).logits)
        assert row == pytest.approx(alone.numpy(), abs=2e-5)
        assert (alone - plain).abs().max() > 1e-3


def test_forced_experts_take_the_places_of_the_weakest_others(tiny_model, texts):
    model, forced = tiny_model("olmoe-top4"), (3, 6)
    changed = edited(model, Force([(1, expert) for expert in forced]))
    for text in texts:
        with torch.no_grad(), model.trace(text):
            found = model.moe[1].read("router_logits", "expert_index")
            logits, own = found["router_logits"][0].save(), found["expert_index"][0].save()
        with torch.no_grad(), changed.trace(text):
            index = changed.moe[1].expert_index[0].save()
        for token, row in enumerate(own.tolist()):
            others = sorted(set(row) - set(forced), key=lambda e: -float(logits[token, e]))
            assert set(index[token].tolist()) == {*forced, *others[:2]}


def test_stages_run_in_the_order_of_the_layer_whatever_the_list(tiny_model, texts):
    model = tiny_model("olmoe")
    changes = [Steer({(1, 3): 4.0}), Force("L1E6"), Scale("L1E3,L1E6", 2.0), AddVector(1, VECTOR)]
    forwards, backwards = run(model, texts, changes), run(model, texts, changes[::-1])
    assert torch.equal(forwards.logits, backwards.logits)
    for left_out in range(4):
        fewer = [change for place, change in enumerate(changes) if place != left_out]
        assert (run(model, texts, fewer).logits - forwards.logits).abs().max() > 1e-4


VECTOR = torch.linspace(-1, 1, 32)


def test_changes_of_one_stage_run_in_list_order(tiny_model, texts):
    model = tiny_model("olmoe")
    reference = mean_outputs(model, texts, [1])
    known = [(1, e) for e in range(8) if int(reference.counts[1][e])]
    outputs = outputs_of(model, texts, [1])
    contributions = mean_outputs(model, texts, [1], quantity="expert_contributions")
    mean, own = Mean(known, contributions), PatchOutput(known, outputs)
    undone = run(model, texts, [mean, own]).logits
    torch.testing.assert_close(undone, run(model, texts).logits, rtol=0, atol=1e-5)
    kept = run(model, texts, [own, mean]).logits
    torch.testing.assert_close(kept, run(model, texts, mean).logits, rtol=0, atol=1e-5)
    assert (kept - undone).abs().max() > 1e-3


def test_resampled_outputs_are_those_of_the_reference(tiny_model):
    model, text, others = tiny_model("olmoe"), ["help"], ["tell me a story", "find the old car"]
    expert = int(routing_of(model, text).values[1]["expert_index"][0][0, 0])
    outputs = outputs_of(model, others, [1], quantities=["expert_outputs"])
    index = torch.cat(outputs.values[1]["expert_index"])
    written = torch.cat(outputs.values[1]["expert_outputs"])[index == expert]
    assert len(written) > 1
    possible = [run(model, text, Mean([(1, expert)], {(1, expert): row})).logits for row in written]
    found = set()
    for seed in range(12):
        change = Resample([(1, expert)], outputs, rng=np.random.default_rng(seed))
        logits = run(model, text, change).logits
        assert torch.equal(logits, run(model, text, change).logits)
        near = [place for place, row in enumerate(possible) if torch.allclose(row, logits, 0, 1e-5)]
        assert len(near) == 1
        found.update(near)
    assert found == set(range(len(written)))


def test_resampling_draws_alike_in_batches_of_any_size(tiny_model, texts):
    model = tiny_model("olmoe")
    outputs = outputs_of(model, texts, [1], quantities=["expert_outputs"])
    index = torch.cat(outputs.values[1]["expert_index"])
    known = [(1, e) for e in index.unique().tolist()]
    change = Resample(known, outputs, rng=np.random.default_rng(5))
    together = run(model, texts, change).logits
    torch.testing.assert_close(
        together, run(model, texts, change, batch_size=1).logits, rtol=0, atol=1e-5
    )
    other = Resample(known, outputs, rng=np.random.default_rng(6))
    assert (run(model, texts, other).logits - together).abs().max() > 1e-3
    pair = run(model, texts, change, max_new_tokens=3, batch_size=2).tokens
    assert pair == run(model, texts, change, max_new_tokens=3, batch_size=1).tokens


@families
def test_the_patch_of_all_experts_is_the_patch_of_the_block(family, tiny_model, texts):
    model = tiny_model(family)
    # An edited model has its prompts in their order; runs go from the longest on.
    texts = sorted(texts, key=lambda text: -len(text.split()))
    others = [" ".join(reversed(text.split())) for text in texts]
    source = outputs_of(model, others, [1])
    union = PatchOutput([(1, expert) for expert in range(8)], source)
    with_experts, block = run(model, texts, union).logits, PatchBlock([1], source)
    if model.moe[1].has_shared:
        # The shared expert sees another input in the other run; its share is no routed expert's.
        patched, prompts = edited(model, union, prompts=texts), outputs_of(model, texts, [1])
        within = outputs_of(patched, texts, [1], batch_size=len(texts)).values[1]["output"]
        del patched
        for own, new, row in zip(prompts.values[1]["output"], within, range(4), strict=True):
            moved = _sum(source, row) - _sum(prompts, row)
            torch.testing.assert_close(new - own, moved, rtol=1e-4, atol=1e-5)
    else:
        expected = run(model, texts, block).logits
        torch.testing.assert_close(with_experts, expected, rtol=0, atol=2e-5)
    assert (with_experts - run(model, texts).logits).abs().max() > 0.01


def _sum(captured, prompt):
    return captured.values[1]["expert_contributions"][prompt].sum(1)


def test_single_patches_add_up_to_the_coalition_where_nothing_comes_after(tiny_model, texts):
    texts = sorted(texts, key=lambda text: -len(text.split()))
    model, others = tiny_model("olmoe"), [" ".join(reversed(text.split())) for text in texts]
    source = outputs_of(model, others, [2])
    captured = {}
    for name, experts in {"both": (1, 4), "one": (1,), "other": (4,), "none": ()}.items():
        change = PatchOutput([(2, e) for e in experts], source)
        changed = edited(model, change, prompts=texts)
        captured[name] = outputs_of(changed, texts, [2], batch_size=4).values[2]["output"]
    for row in range(len(texts)):
        single = captured["one"][row] + captured["other"][row] - captured["none"][row]
        torch.testing.assert_close(captured["both"][row], single, rtol=1e-4, atol=1e-5)


def test_a_patch_at_named_tokens_leaves_the_others_as_they_are(tiny_model, texts):
    model, others = tiny_model("mixtral"), [" ".join(reversed(text.split())) for text in texts]
    source = outputs_of(model, others, [1])
    everything = [(1, expert) for expert in range(8)]
    earlier = [[True] * (len(text.split()) - 1) + [False] for text in texts]
    halves = [PatchOutput(everything, source, tokens=place) for place in ("last", earlier)]
    whole = run(model, texts, PatchOutput(everything, source)).logits
    torch.testing.assert_close(run(model, texts, halves).logits, whole, rtol=0, atol=1e-5)
    assert (run(model, texts, halves[0]).logits - whole).abs().max() > 1e-3


def test_frozen_routing_is_that_of_the_untouched_run(tiny_model, texts):
    model = tiny_model("olmoe")
    change = AddVector(0, [2.0] * 32)
    untouched = routing_of(model, texts)
    by_hand = run(model, texts, [Transplant(untouched, [1, 2]), change]).logits
    frozen = run(model, texts, change, freeze_downstream_routing=True).logits
    assert torch.equal(frozen, by_hand)
    free = run(model, texts, change).logits
    assert (frozen - free).abs().max() > 1e-3
    effect = measure_effect(model, texts, change, metric=metric, freeze_downstream_routing=True)
    np.testing.assert_allclose(effect.intervened, metric(frozen).numpy(), atol=1e-5)
    np.testing.assert_allclose(effect.baseline, metric(run(model, texts).logits), atol=1e-5)
    # What comes later in the list acts on the frozen routing.
    silent = [change, Zero([(2, expert) for expert in range(8)])]
    both = run(model, texts, silent, freeze_downstream_routing=True).logits
    by_hand = run(model, texts, [Transplant(untouched, [1, 2]), *silent]).logits
    assert torch.equal(both, by_hand)
    assert (both - frozen).abs().max() > 1e-3
    # Nothing comes after the last layer.
    last = Zero("L2E0,L2E1")
    assert torch.equal(
        run(model, texts, last, freeze_downstream_routing=True).logits,
        run(model, texts, last).logits,
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_patching_goes_from_clean_to_corrupted_and_back(frozen, tiny_model, texts):
    model, corrupted = tiny_model("olmoe"), [" ".join(reversed(text.split())) for text in texts]
    experts = [(1, 0), (1, 2), (1, 5)]
    options = {"metric": metric, "experts": experts, "freeze_downstream_routing": frozen}
    there = patch(model, texts, corrupted, **options)
    back = patch(model, texts, corrupted, direction="noise", **options)
    clean, dirty = (metric(run(model, prompts).logits).numpy() for prompts in (texts, corrupted))
    for result in (there, back):
        np.testing.assert_allclose(result.clean, clean, atol=1e-5)
        np.testing.assert_allclose(result.corrupted, dirty, atol=1e-5)
    for result, target, source in ((there, corrupted, texts), (back, texts, corrupted)):
        change = PatchOutput(experts, outputs_of(model, source, [1]))
        logits = run(model, target, change, freeze_downstream_routing=frozen).logits
        np.testing.assert_allclose(result.patched, metric(logits).numpy(), atol=1e-5)
    np.testing.assert_allclose(there.effect, there.patched - dirty, atol=1e-5)
    np.testing.assert_allclose(back.effect, back.patched - clean, atol=1e-5)
    np.testing.assert_allclose(there.share, there.effect / (clean - dirty), rtol=1e-3)
    np.testing.assert_allclose(back.share, back.effect / (dirty - clean), rtol=1e-3)
    assert np.abs(there.effect).max() > 1e-3
    assert there.to_frame()["patched"].tolist() == there.patched.tolist()
    assert there.to_dict()["direction"] == "denoise"
    assert "clean" in there.summary()


def test_patching_all_blocks_and_one_block_at_one_token_differ_as_their_edits_do(tiny_model, texts):
    model, corrupted = tiny_model("olmoe"), [" ".join(reversed(text.split())) for text in texts]
    source = outputs_of(model, texts, [0, 1, 2])
    for layers, tokens in (([0, 1, 2], None), ([2], "last")):
        result = patch(model, texts, corrupted, layers=layers, metric=metric, tokens=tokens)
        logits = run(model, corrupted, PatchBlock(layers, source, tokens=tokens)).logits
        np.testing.assert_allclose(result.patched, metric(logits).numpy(), atol=1e-5)
        assert np.abs(result.effect).max() > 1e-3


def test_an_intervention_may_name_what_the_members_of_a_pair_share(tiny_model):
    model = tiny_model("olmoe")
    pair = PromptSet(
        [
            Prompt("how do i kill the process today", pair="a", harm=True),
            Prompt("how do i help the process today", pair="a", harm=False),
        ],
        source="pair",
    )
    mask = [[False] * 4 + [True] * 3] * 2
    vector = [1.0] * 32
    expected = run(model, pair, AddVector(1, vector, tokens=mask)).logits
    shared = AddVector(1, vector, tokens="after_divergence")
    assert torch.equal(run(model, pair, shared).logits, expected)
    changed = edited(model, shared, prompts=pair)
    inputs = encode(model.tokenizer, pair).inputs
    with torch.no_grad(), changed.trace(inputs):
        logits = changed.nnsight.output.logits[:, -1].save()
    torch.testing.assert_close(logits, expected)
    assert (run(model, pair, AddVector(1, vector)).logits - expected).abs().max() > 1e-3
    with pytest.raises(SpanError, match=r"No prompt has a token in the span 'after_divergence'"):
        run(model, ["help me"], AddVector(1, vector, tokens="after_divergence"))
