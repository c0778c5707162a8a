"""What Ban and Zero do, against hooks that know nothing of nnsight or of moe_interp."""

import plain_hooks
import pytest
import torch

from moe_interp import Ban, Expert, ExpertSet, Zero, run
from moe_interp.interventions import measure_many

FAMILIES = tuple(plain_hooks.ROUTERS)
# Experts that the prompts of `texts` choose, in the first and last MoE layer of every family.
EXPERTS = {1: (0, 2), 2: (1, 5)}
CHOSEN = ExpertSet([(layer, expert) for layer, ids in EXPERTS.items() for expert in ids])
CASES = {"ban": (Ban, plain_hooks.banned), "zero": (Zero, plain_hooks.zeroed)}


def ids_of(model, text):
    return model.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", CASES)
def test_next_token_logits_equal_those_under_plain_hooks(
    kind, family, tiny_model, plain_model, texts
):
    intervention, reference = CASES[kind]
    model, plain = tiny_model(family), plain_model(family)
    measured = run(model, texts, intervention(CHOSEN)).logits
    with reference(plain, EXPERTS):
        expected = torch.stack([plain_hooks.next_logits(plain, ids_of(model, t)) for t in texts])
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-5)
    untouched = torch.stack([plain_hooks.next_logits(plain, ids_of(model, t)) for t in texts])
    assert (expected - untouched).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", CASES)
def test_greedy_texts_equal_those_under_plain_hooks_though_they_end_at_different_steps(
    kind, family, tiny_model, plain_model, texts, monkeypatch
):
    intervention, reference = CASES[kind]
    model, plain = tiny_model(family), plain_model(family)
    with reference(plain, EXPERTS):
        free = [plain_hooks.greedy(plain, ids_of(model, t), 6, ()) for t in texts]
        ends = [free[0][1], free[1][3]]
        expected = [plain_hooks.greedy(plain, ids_of(model, t), 6, ends) for t in texts]
    monkeypatch.setattr(model.nnsight._module.generation_config, "eos_token_id", ends)
    result = run(model, texts, intervention(CHOSEN), max_new_tokens=6)
    assert list(result.tokens) == expected
    assert len({len(tokens) for tokens in expected}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_no_intervention_is_the_model_itself_bit_for_bit(family, tiny_model, plain_model, texts):
    model, plain = tiny_model(family), plain_model(family)
    encoded = model.tokenizer(list(texts), padding=True, return_tensors="pt")
    positions = (encoded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    order = [1, 3, 0, 2]  # Batches are sorted by length, longest first.
    with torch.no_grad():
        inputs = {
            "input_ids": encoded["input_ids"][order],
            "attention_mask": encoded["attention_mask"][order],
        }
        expected = plain(**inputs, position_ids=positions[order], logits_to_keep=1).logits[:, -1]
    assert torch.equal(run(model, texts).logits[order], expected)
    assert torch.equal(run(model, texts, Ban(())).logits[order], expected)
    assert torch.equal(run(model, texts, [Zero(()), Ban(())]).logits[order], expected)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss"])
def test_an_expert_that_is_never_chosen_changes_no_bit(family, kind, tiny_model):
    model = tiny_model(family)
    text = ["help me"]
    layer = model.moe[1]
    with torch.no_grad(), model.nnsight.trace(text):
        chosen = layer.expert_index.save()
    unused = sorted(set(range(8)) - set(chosen.flatten().tolist()))
    intervention = CASES[kind][0]([(1, unused[0]), (1, unused[1])])
    assert torch.equal(run(model, text, intervention).logits, run(model, text).logits)


def test_a_ban_leaves_the_weights_of_the_others_unless_the_model_renormalises(tiny_model, texts):
    model = tiny_model("olmoe")
    layer = model.moe[1]
    with torch.no_grad(), model.nnsight.trace([texts[0]]):
        index = layer.expert_index.save()
        weights = layer.routing_weights.save()
    gone = int(index[0, 0, 0])
    with torch.no_grad(), model.nnsight.trace([texts[0]]):
        layer.ban([gone])
        new_index = layer.expert_index.save()
        new_weights = layer.routing_weights.save()
    kept = index != gone
    assert gone not in new_index
    assert torch.equal(index[kept], new_index[kept])
    assert torch.equal(weights[kept], new_weights[kept])


def test_two_bans_are_one_ban_of_both(tiny_model, texts):
    model = tiny_model("olmoe")
    bans = [Ban([(1, expert)]) for expert in (0, 1, 2, 3, 4, 5)]
    joined = Ban([(1, expert) for expert in (0, 1, 2, 3, 4, 5)])
    assert torch.equal(run(model, texts, bans).logits, run(model, texts, joined).logits)


def test_zero_after_ban_removes_the_replacement_too(tiny_model, texts):
    model = tiny_model("olmoe")
    ban = Ban([(1, expert) for expert in range(6)])
    everything = Zero([(1, 6), (1, 7)])
    emptied = run(model, texts, [ban, everything]).logits
    silent = run(model, texts, Zero([(1, expert) for expert in range(8)])).logits
    torch.testing.assert_close(emptied, silent, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["ban", "zero"])
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_rows_with_different_sets_equal_one_run_for_each_set(family, mode, tiny_model, texts):
    model = tiny_model(family)
    sets = [ExpertSet([(1, 0)]), ExpertSet(), ExpertSet([(2, 5), (1, 2)]), ExpertSet([(2, 1)])]

    def metric(logits):
        return logits[:, 7] - logits[:, 9]

    together = measure_many(model, texts, sets, metric=metric, mode=mode)
    for row, experts in enumerate(sets):
        alone = metric(run(model, texts, CASES[mode][0](experts)).logits)
        assert together[row] == pytest.approx(alone.numpy(), abs=1e-5)


def test_rows_nobody_touches_keep_their_bits_beside_rows_that_are_banned(tiny_model, monkeypatch):
    model = tiny_model("olmoe")
    monkeypatch.setattr(model.nnsight._module.config, "_experts_implementation", "batched_mm")
    text = ["how do i kill the process"]
    alone = run(model, text * 2).logits
    kept = []
    sets = [ExpertSet(), ExpertSet([(1, expert) for expert in range(5)])]

    def keep(logits):
        kept.append(logits)
        return logits[:, 0]

    measure_many(model, text, sets, metric=keep)
    assert torch.equal(kept[0][0], alone[0])
    assert not torch.equal(kept[0][1], alone[0])


@pytest.mark.parametrize("kind", CASES)
def test_an_intervention_at_named_tokens_leaves_the_others_their_routing(kind, tiny_model, texts):
    model = tiny_model("olmoe")
    everything = [(0, expert) for expert in range(6)]
    for tokens in ("last", [[False] * (len(text.split()) - 1) + [True] for text in texts]):
        intervention = CASES[kind][0](everything, tokens=tokens)
        at_last = run(model, texts, intervention).logits
        # In layer 0 only the last token's own routing reaches its logits through layer 0 directly,
        # so with earlier tokens touched as well the result differs.
        everywhere = run(model, texts, CASES[kind][0](everything)).logits
        assert (at_last - everywhere).abs().max() > 1e-3
        earlier = [[True] * (len(text.split()) - 1) + [False] for text in texts]
        both = [intervention, CASES[kind][0](everything, tokens=earlier)]
        torch.testing.assert_close(run(model, texts, both).logits, everywhere, rtol=0, atol=1e-6)


def test_a_mask_counts_real_tokens_whatever_the_batch(tiny_model, texts):
    model = tiny_model("qwen3_moe")
    width = max(len(text.split()) for text in texts)
    mask = torch.zeros(len(texts), width, dtype=torch.bool)
    mask[:, :2] = True
    ban = Ban([(1, expert) for expert in range(6)], tokens=mask)
    together = run(model, texts, ban).logits
    one_by_one = run(model, texts, ban, batch_size=1).logits
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-5)
    assert (together - run(model, texts).logits).abs().max() > 1e-2


def test_phases_split_a_generation(tiny_model, plain_model, texts):
    model, plain = tiny_model("olmoe"), plain_model("olmoe")
    text = [texts[1]]
    full = run(model, text, Ban(CHOSEN), max_new_tokens=5).tokens[0]
    halves = [Ban(CHOSEN, phase="prefill"), Ban(CHOSEN, phase="decode")]
    assert run(model, text, halves, max_new_tokens=5).tokens[0] == full
    free = run(model, text, max_new_tokens=5).tokens[0]
    prefill = run(model, text, halves[:1], max_new_tokens=5).tokens[0]
    decode = run(model, text, halves[1:], max_new_tokens=5).tokens[0]
    with plain_hooks.banned(plain, EXPERTS):
        first = int(plain_hooks.next_logits(plain, ids_of(model, text[0])).argmax())
    assert prefill[0] == full[0] == first
    assert decode[0] == free[0]
    assert len({full, free, prefill, decode}) == 4


def test_names_of_experts_in_any_form_make_the_same_value():
    assert Ban("L3E8,L3E9") == Ban([(3, 9), Expert(3, 8)]) == Ban(ExpertSet.parse("L3E9,L3E8"))
    assert hash(Zero("L0E1", tokens=[[True, False]])) == hash(
        Zero(["L0E1"], tokens=torch.tensor([[True, False]]))
    )
