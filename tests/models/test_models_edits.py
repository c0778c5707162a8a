"""Writing: edits do what they say, where they say it, and nothing else."""

import nnsight
import pytest
import tiny_models
import torch
from tiny_models import TEXTS, encode
from tiny_models import wrapped as wrap

from moe_interp.models import ban_experts, read_layers, scale_weights

ROUTING = ("router_logits", "expert_index", "routing_weights")
RENORMALISING = ("mixtral", "qwen3_moe", "gpt_oss", "granitemoe")
families = pytest.mark.parametrize("family", tiny_models.FAMILIES)
implementations = pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])


def run(model, batch, edit=None, names=None):
    """What each layer routes and the logits, with ``edit(layer)`` applied to each layer.

    After an edit of the choice the router's logits have passed.
    """
    names = names or (ROUTING if edit is None else ROUTING[1:])
    layers = tuple(model.moe.values())
    with torch.no_grad(), model.nnsight.trace(batch):
        found = nnsight.save({})
        for layer in layers:
            if edit is not None:
                edit(layer)
            found.update(read_layers((layer,), names))
        logits = nnsight.save(model.nnsight.output.logits)
    return found, logits


def mask(*experts, rows=None):
    banned = torch.zeros(8, dtype=torch.bool)
    banned[list(experts)] = True
    if rows is None:
        return banned
    return torch.stack([banned if row in rows else torch.zeros_like(banned) for row in range(2)])


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@families
def test_writing_back_what_was_read_changes_no_bit(family):
    model = wrap(family)
    _, expected = run(model, encode())

    def write_back(layer):
        layer.router_logits = layer.router_logits.clone()
        layer.routing_weights = layer.routing_weights.clone()

    _, logits = run(model, encode(), write_back)
    assert torch.equal(logits, expected)


@families
@implementations
def test_banning_an_expert_never_chosen_changes_no_bit(family, implementation):
    model = wrap(family, implementation)
    batch = encode(["the cake"])
    before, expected = run(model, batch)
    used = {layer: set(found["expert_index"].flatten().tolist()) for layer, found in before.items()}
    unused = {layer: min(set(range(8)) - experts) for layer, experts in used.items()}
    after, logits = run(model, batch, lambda layer: layer.ban([unused[layer.layer]]))
    assert torch.equal(logits, expected)
    for layer, found in after.items():
        assert torch.equal(found["routing_weights"], before[layer]["routing_weights"])


@families
def test_a_ban_takes_the_next_best_and_leaves_every_other_choice(family):
    # One group, so that the best of the rest is the best of all the rest.
    changes = {"n_group": 1} if "n_group" in tiny_models.FAMILIES[family] else {}
    model = wrap(family, **changes)
    layer = next(iter(model.moe))
    before, _ = run(model, encode())
    expert = int(before[layer]["expert_index"][0, -1, 0])
    after, _ = run(model, encode(), lambda one: one.ban([expert]) if one.layer == layer else None)
    old, new = before[layer], after[layer]
    hit = (old["expert_index"] == expert).any(-1)
    assert bool(hit.any())
    assert not bool(hit.all())
    assert torch.equal(old["expert_index"][~hit], new["expert_index"][~hit])
    assert torch.equal(old["routing_weights"][~hit], new["routing_weights"][~hit])

    logits = old["router_logits"].float()
    choice = logits
    if family in ("deepseek_v3", "glm4_moe"):
        router = model.nnsight._module.model.layers[layer].mlp.gate
        choice = logits.sigmoid() + router.e_score_correction_bias
    choice = choice.masked_fill(mask(expert), float("-inf"))
    expected = choice.topk(2, -1).indices[hit].sort(-1).values
    assert torch.equal(new["expert_index"][hit].sort(-1).values, expected)

    if family == "phimoe":
        return
    scores = logits.sigmoid() if family in ("deepseek_v3", "glm4_moe") else logits.softmax(-1)
    weights = scores.gather(-1, new["expert_index"])
    if family in (*RENORMALISING, "deepseek_v3", "glm4_moe"):
        weights = weights / weights.sum(-1, keepdim=True)
    if "routed_scaling_factor" in tiny_models.FAMILIES[family]:
        weights = weights * 2.5
    assert relative(new["routing_weights"], weights) <= 1e-6


@families
def test_two_chosen_experts_banned_at_once_make_room_for_two(family):
    changes = {"n_group": 1} if "n_group" in tiny_models.FAMILIES[family] else {}
    model = wrap(family, **changes)
    layer = next(iter(model.moe))
    before, _ = run(model, encode())
    both = before[layer]["expert_index"][0, -1].tolist()
    after, _ = run(model, encode(), lambda one: one.ban(both) if one.layer == layer else None)
    index = after[layer]["expert_index"]
    assert not bool(torch.isin(index, torch.tensor(both)).any())
    assert bool((index[..., 0] != index[..., 1]).all())


def test_a_banned_sparsemixer_weighs_as_if_the_expert_were_not_there():
    model = wrap("phimoe", router_jitter_noise=0.5)
    before, _ = run(model, encode())
    expert = int(before[0]["expert_index"][0, -1, 0])
    after, _ = run(model, encode(), lambda one: one.ban([expert]) if one.layer == 0 else None)
    from transformers.models.phimoe.modeling_phimoe import sparsemixer

    logits = before[0]["router_logits"].flatten(0, 1)
    first = before[0]["expert_index"].flatten(0, 1)[:, 0] == expert
    weights, index = sparsemixer(
        logits.masked_fill(mask(expert), float("-inf")), jitter_eps=0.5, training=False
    )
    assert bool(first.any())
    assert torch.equal(after[0]["expert_index"].flatten(0, 1)[first], index[first])
    found = after[0]["routing_weights"].flatten(0, 1)[first]
    assert bool((found < 0.99).any())
    assert relative(found, weights[first]) <= 1e-6


@families
def test_group_limits_hold_under_a_ban_or_it_is_refused(family):
    if "n_group" not in tiny_models.FAMILIES[family]:
        return
    model = wrap(family)
    layer = model.moe[1]
    before, _ = run(model, encode())
    expert = int(before[1]["expert_index"][0, -1, 0])
    after, _ = run(model, encode(), lambda one: one.ban([expert]) if one is layer else None)
    group = before[1]["expert_index"] // 4
    assert torch.equal(after[1]["expert_index"] // 4, group)
    all_but_one_of_each = [0, 1, 2, 4, 5, 6]
    with pytest.raises(ValueError, match="Layer 1: the ban leaves a token with fewer than 2 exp"):
        run(model, encode(), lambda one: one.ban(all_but_one_of_each) if one is layer else None)


@families
def test_a_row_has_its_own_ban(family):
    model = wrap(family, "batched_mm")
    before, expected = run(model, encode())
    experts = {layer: int(found["expert_index"][0, -1, 0]) for layer, found in before.items()}
    after, logits = run(
        model, encode(), lambda one: ban_experts(one, mask(experts[one.layer], rows=[0]))
    )
    assert torch.equal(logits[1], expected[1])
    assert not torch.equal(logits[0], expected[0])
    for layer, found in after.items():
        assert not bool((found["expert_index"][0] == experts[layer]).any())


@families
def test_a_ban_holds_at_the_tokens_named_only(family):
    model = wrap(family)
    layer = model.moe[1]
    before, _ = run(model, encode())
    expert = int(before[1]["expert_index"][0, -1, 0])
    tokens = torch.zeros(before[1]["expert_index"].shape[:2], dtype=torch.bool)
    tokens[0, -1] = True
    after, _ = run(model, encode(), lambda one: one.ban([expert], tokens) if one is layer else None)
    assert not bool((after[1]["expert_index"][0, -1] == expert).any())
    assert torch.equal(after[1]["expert_index"][~tokens], before[1]["expert_index"][~tokens])


@families
@pytest.mark.parametrize(("implementation", "allowed"), [("batched_mm", 0.0), ("grouped_mm", 1e-6)])
def test_a_ban_in_one_invoke_leaves_the_other_alone(family, implementation, allowed):
    model = wrap(family, implementation)
    layers = tuple(model.moe.values())
    before, expected = run(model, encode())
    long, short = encode(TEXTS[:1]), encode(TEXTS[1:])
    with torch.no_grad(), model.nnsight.trace() as tracer:
        with tracer.invoke(long):
            edited = nnsight.save(model.nnsight.output.logits)
        with tracer.invoke(short):
            for layer in layers:
                layer.ban([int(before[layer.layer]["expert_index"][1, -1, 0])])
            banned = nnsight.save(model.nnsight.output.logits)
    assert relative(edited[0], expected[0]) <= allowed
    assert relative(banned[0], expected[1]) > 1e-3


@families
def test_zero_removes_the_contribution_and_nothing_else(family):
    model = wrap(family)
    names = (*ROUTING[1:], "expert_contributions", "routed_output")
    before, _ = run(model, encode(), names=names)
    layer = model.moe[1]
    expert = int(before[1]["expert_index"][0, -1, 0])
    after, _ = run(model, encode(), lambda one: one.zero([expert]) if one is layer else None, names)
    hit = before[1]["expert_index"] == expert
    weights = before[1]["routing_weights"].masked_fill(hit, 0.0)
    assert torch.equal(after[1]["routing_weights"], weights)
    assert torch.equal(after[1]["expert_index"], before[1]["expert_index"])
    removed = (before[1]["expert_contributions"] * hit[..., None]).sum(2)
    change = before[1]["routed_output"] - after[1]["routed_output"]
    assert relative(change, removed) <= 1e-5
    untouched = ~hit.any(-1)
    assert torch.equal(after[1]["routed_output"][untouched], before[1]["routed_output"][untouched])


def test_factors_scale_by_row_and_by_token():
    model = wrap("mixtral")
    before, _ = run(model, encode())
    factor = torch.ones(2, 8)
    factor[0] = 3.0
    tokens = torch.zeros(2, 8, dtype=torch.bool)
    tokens[:, -1] = True
    layer = model.moe[0]
    after, _ = run(
        model, encode(), lambda one: scale_weights(one, factor, tokens) if one is layer else None
    )
    expected = before[0]["routing_weights"].clone()
    expected[0, -1] *= 3.0
    assert torch.equal(after[0]["routing_weights"], expected)


@families
def test_an_edit_of_the_logits_re_runs_the_models_own_choice(family):
    model = wrap(family)
    names = (*ROUTING, "expert_contributions", "routed_output")

    def prefer(layer):
        bonus = torch.zeros(layer.n_experts)
        bonus[5] = 50.0
        layer.router_logits = layer.router_logits + bonus

    before, expected = run(model, encode(), names=names)
    after, logits = run(model, encode(), prefer, names)
    layer = next(iter(model.moe))
    old, new = before[layer], after[layer]
    assert relative(new["router_logits"][..., 5], old["router_logits"][..., 5] + 50.0) <= 1e-6
    gained = (new["expert_index"] == 5).any(-1).float().mean()
    assert float(gained) > float((old["expert_index"] == 5).any(-1).float().mean())
    if "n_group" not in tiny_models.FAMILIES[family]:
        assert float(gained) == 1.0
    assert relative(new["expert_contributions"].sum(2), new["routed_output"]) <= 1e-6
    assert not torch.equal(logits, expected)


@families
def test_written_weights_are_what_the_experts_receive(family):
    model = wrap(family)
    layer = model.moe[1]
    with torch.no_grad(), model.trace(encode()):
        layer.routing_weights = layer.routing_weights * 0 + 0.25
        outputs = layer.expert_outputs.save()
        routed = layer.routed_output.save()
    assert relative(routed, 0.25 * outputs.sum(2)) <= 1e-6


def test_a_whole_routing_can_be_set():
    model = wrap("mixtral")
    layer = model.moe[1]
    before, _ = run(model, encode())
    index = before[1]["expert_index"].flip(-1)
    weights = before[1]["routing_weights"].flip(-1)
    with torch.no_grad(), model.trace(encode()):
        layer.set_routing(index, weights)
        found = layer.read("expert_index", "routing_weights").save()
        logits = model.nnsight.output.logits.save()
    assert torch.equal(found["expert_index"], index)
    assert torch.equal(found["routing_weights"], weights)
    assert relative(logits, run(model, encode())[1]) <= 1e-5


def test_a_user_rule_corrects_the_choice():
    model = wrap("olmoe")
    layer = model.moe[1]
    with torch.no_grad(), model.trace(encode()):
        probs = layer.router_probs.save()
        layer.choose(lambda scores, index: torch.stack([scores.argmin(-1), index[..., 0]], -1))
        found = layer.read("expert_index", "routing_weights").save()
    assert torch.equal(found["expert_index"][..., 0], probs.argmin(-1))
    expected = probs.gather(-1, found["expert_index"])
    assert torch.equal(found["routing_weights"], expected)


@families
def test_a_ban_holds_at_every_step_of_a_generation(family):
    model = wrap(family, "batched_mm")
    layers = tuple(model.moe.values())
    expert = {layer.layer: 3 for layer in layers}
    plain = model.nnsight._module.generate(**encode(), max_new_tokens=4, min_new_tokens=4)
    with model.generate(max_new_tokens=4, min_new_tokens=4, do_sample=False) as tracer:
        with tracer.invoke(encode()):
            steps = nnsight.save([])
            for _ in tracer.iter[:4]:
                for layer in layers:
                    ban_experts(layer, mask(expert[layer.layer], rows=[0]))
                    steps.append(layer.expert_index)
        with tracer.invoke():
            tokens = nnsight.save(tracer.result)
    assert [index.shape[1] for index in steps] == [8] * len(layers) + [1] * 3 * len(layers)
    assert not any(bool((index[0] == 3).any()) for index in steps)
    assert any(bool((index[1] == 3).any()) for index in steps)
    assert torch.equal(tokens[1], plain[1])


def test_shapes_that_do_not_fit_are_refused_in_words():
    model = wrap("mixtral")
    layer = model.moe[1]
    with (
        pytest.raises(
            ValueError,
            match=r"`router_logits` of layer 1 has shape \(2, 8, 8\) here .* got \(2, 7, 8\)",
        ),
        model.trace(encode()),
    ):
        layer.router_logits = layer.router_logits[:, 1:]
    with (
        pytest.raises(ValueError, match=r"`routing_weights` of layer 1 has shape \(2, 8, 2\)"),
        model.trace(encode()),
    ):
        layer.routing_weights = layer.routing_weights[..., :1]
    with (
        pytest.raises(ValueError, match="Layer 1 has 8 experts, the mask has 7"),
        model.trace(encode()),
    ):
        ban_experts(layer, torch.zeros(7, dtype=torch.bool))


def test_an_expert_out_of_range_is_refused():
    layer = wrap("mixtral").moe[1]
    with pytest.raises(ValueError, match=r"Layer 1 has experts 0–7, got \[8\]"):
        layer.mask([2, 8])
    with pytest.raises(ValueError, match=r"got \[-1\]"):
        layer.mask([-1])


def test_a_model_is_as_it_was_after_a_trace_that_failed():
    model = wrap("deepseek_v3")
    _, expected = run(model, encode())
    with pytest.raises(ValueError, match="Layer 1"), model.trace(encode()):
        model.moe[1].ban([9])
    assert torch.equal(run(model, encode())[1], expected)
    with torch.no_grad():
        again = model.nnsight._module(**encode(TEXTS[:1])).logits
    plain = tiny_models.build("deepseek_v3")
    plain.set_experts_implementation("grouped_mm")
    with torch.no_grad():
        assert torch.equal(again, plain(**encode(TEXTS[:1])).logits)
