"""Hooks by name: what a cache holds, what functions see, and what they change."""

import pytest
import tiny_models
import torch
from tiny_models import TEXTS, encode
from tiny_models import wrapped as wrap

from moe_interp.models._hooks import HOOKS

families = pytest.mark.parametrize("family", tiny_models.FAMILIES)
FLAT = {"hook_expert_indices", "hook_expert_weights"}


def name_of(hook, layer=1):
    return f"blocks.{layer}.mlp.{hook}"


def plain(model, *names, layer=1):
    with torch.no_grad(), model.trace(encode()):
        found = model.moe[layer].read(*names).save()
    return found  # noqa: RET504  Only a name bound in the block leaves it.


def run(model, *hooks):
    with torch.no_grad():
        return model.run_with_hooks(encode(), fwd_hooks=hooks)


def cached(model, **options):
    with torch.no_grad():
        return model.run_with_cache(encode(), **options)


@families
def test_the_cache_holds_what_the_layers_give(family):
    model = wrap(family)
    logits, cache = cached(model)
    with torch.no_grad(), model.trace(encode()):
        expected = model.nnsight.output.logits.save()
    assert torch.equal(logits, expected)
    assert list(cache) == list(model.hook_dict)
    for name, info in model.hook_dict.items():
        layer, hook = model.moe[info.layer], name.rpartition(".")[2]
        assert info.quantity == HOOKS[hook][0]
        found = plain(model, "expert_index", info.quantity, layer=info.layer)
        value = found[info.quantity]
        if hook == "hook_expert_weights":
            wide = torch.zeros(*value.shape[:2], layer.n_experts)
            value = wide.scatter(-1, found["expert_index"], value)
        if hook in FLAT:
            value = value.reshape(-1, value.shape[-1])
        assert torch.equal(cache[name], value), name
        assert cache[name].dim() == len(info.axes)


@families
def test_hook_dict_leaves_out_what_a_layer_does_not_offer(family):
    model = wrap(family)
    offered = {
        name_of(hook, number)
        for number, layer in model.moe.items()
        for hook, (quantity, _) in HOOKS.items()
        if quantity in layer.offered
    }
    assert set(model.hook_dict) == offered
    shared = {name for name in model.hook_dict if name.endswith("hook_shared_output")}
    assert bool(shared) == model.architecture.has_shared


def test_hook_dict_says_layer_quantity_axes_and_what_can_be_written():
    hooks = wrap("qwen3_moe").hook_dict
    info = hooks["blocks.2.mlp.hook_expert_weights"]
    assert (info.layer, info.quantity, info.axes) == (2, "routing_weights", ("token", "expert"))
    locked = {name.rpartition(".")[2] for name, info in hooks.items() if not info.writable}
    assert locked == {"hook_in", "hook_router_probs"}
    assert not any(name.startswith("blocks.0.") for name in hooks)


def test_a_filter_is_a_name_several_or_a_function_of_a_name():
    model = wrap("olmoe")
    one, two = name_of("hook_out", 2), name_of("hook_router_logits", 0)
    everything = cached(model)[1]
    for names_filter, expected in (
        (one, [one]),
        ([one, two], [two, one]),
        ((one,), [one]),
        (lambda name: name.endswith("hook_out"), [name_of("hook_out", n) for n in range(3)]),
        (name_of("hook_expert_weights"), [name_of("hook_expert_weights")]),
    ):
        cache = cached(model, names_filter=names_filter)[1]
        assert list(cache) == expected
        assert all(torch.equal(cache[name], everything[name]) for name in cache)


def test_a_cache_takes_a_name_with_its_layer_and_stacks_layers():
    model = wrap("deepseek_v3")
    cache = cached(model)[1]
    assert cache["hook_out", 2] is cache[name_of("hook_out", 2)]
    assert cache["out", 2] is cache["hook_out", 2]
    assert cache.layers("hook_out") == (1, 2)
    stacked = cache.stack("hook_router_logits")
    assert torch.equal(stacked[1], cache["hook_router_logits", 2])
    index = cache.stack("hook_expert_indices")
    assert tuple(index.shape) == (2, *cache.shape, 2)
    assert torch.equal(index[0], plain(model, "expert_index")["expert_index"])
    assert repr(cache).startswith("RoutingCache(2 prompts, 8 positions: hook_in of layers 1, 2; ")


def test_a_cache_without_logits_and_logits_without_hooks():
    model = wrap("mixtral")
    logits, cache = cached(model, return_type=None)
    assert logits is None
    assert len(cache) == len(model.hook_dict)
    with torch.no_grad():
        assert torch.equal(model.run_with_hooks(encode()), cached(model)[0])
        assert model.run_with_hooks(encode(), return_type=None) is None


def test_cached_values_carry_no_gradient_and_logits_do():
    logits, cache = wrap("mixtral").run_with_cache(encode())
    assert logits.requires_grad
    assert not any(value.requires_grad for value in cache.values())


@pytest.mark.parametrize("kind", ["text", "texts", "ids", "tensor", "encoding"])
def test_prompts_are_what_a_trace_takes(kind):
    model = wrap("olmoe")
    row = model.tokenizer(TEXTS[0])["input_ids"]
    prompts = {
        "text": TEXTS[0],
        "texts": list(TEXTS),
        "ids": row,
        "tensor": torch.tensor([row]),
        "encoding": encode(TEXTS[:1]),
    }[kind]
    batch = encode(TEXTS if kind == "texts" else TEXTS[:1])
    with torch.no_grad():
        logits, cache = model.run_with_cache(prompts)
        expected, other = model.run_with_cache(batch)
        hooked = model.run_with_hooks(prompts)
    assert torch.equal(logits, expected)
    assert torch.equal(hooked, expected)
    assert cache.shape == tuple(batch["input_ids"].shape)
    assert torch.equal(cache["hook_out", 1], other["hook_out", 1])


@families
def test_functions_see_what_is_cached_and_change_nothing(family):
    model = wrap(family)
    expected, cache = cached(model)
    seen, layers = {}, []

    def look(value, hook):
        seen[hook.name] = value.clone()
        layers.append(hook.layer())

    logits = run(model, (lambda name: True, look))
    assert torch.equal(logits, expected)
    assert seen.keys() == cache.keys()
    assert set(layers) == set(model.moe)
    for name, value in seen.items():
        torch.testing.assert_close(value, cache[name], rtol=1e-6, atol=1e-6)


@families
def test_what_is_returned_unchanged_changes_nothing(family):
    model = wrap(family)
    writable = {name for name, info in model.hook_dict.items() if info.writable}
    slots = ("outputs", "contributions")
    expected, _ = cached(model)
    for hook in {name.rpartition(".")[2] for name in writable}:
        names = [name for name in writable if name.endswith(hook)]
        logits = run(model, *((name, lambda value, hook: value) for name in names))
        assert torch.equal(logits, expected), hook
    assert any(name.endswith(slots) for name in writable)


@families
def test_written_logits_reroute_as_in_a_trace(family):
    model = wrap(family)
    before, _ = cached(model)
    logits = run(model, (name_of("hook_router_logits"), lambda value, hook: -value))
    with torch.no_grad(), model.trace(encode()):
        layer = model.moe[1]
        layer.router_logits = -layer.router_logits
        expected = model.nnsight.output.logits.save()
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, before)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss", "phimoe"])
def test_written_experts_get_the_models_own_weights(family):
    model = wrap(family)
    others = (plain(model, "expert_index")["expert_index"] // 2 * 2 + 1).sort(-1).values
    others[..., 0], others[..., 1] = 5, 7
    logits = run(
        model,
        (name_of("hook_expert_indices"), lambda value, hook: others.reshape(value.shape)),
    )
    with torch.no_grad(), model.trace(encode()):
        model.moe[1].expert_index = others
        expected = model.nnsight.output.logits.save()
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, cached(model)[0])


@families
def test_a_weight_that_is_set_to_zero_silences_its_expert_and_keeps_the_choice(family):
    model = wrap(family)
    expert = int(plain(model, "expert_index")["expert_index"][0, -1, 0])
    seen = {}

    def silence(value, hook):
        return value.index_fill(-1, torch.tensor([expert]), 0.0)

    def remember(value, hook):
        seen["contributions"] = value

    logits = run(
        model,
        (name_of("hook_expert_weights"), silence),
        (name_of("hook_expert_contributions"), remember),
    )
    with torch.no_grad(), model.trace(encode()):
        layer = model.moe[1]
        layer.zero([expert])
        index = layer.expert_index.save()
        expected = model.nnsight.output.logits.save()
    assert torch.equal(logits, expected)
    assert float(seen["contributions"][index == expert].abs().max()) == 0.0


def test_a_weight_above_the_chosen_ones_reroutes():
    model = wrap("olmoe")
    found = plain(model, "expert_index", "routing_weights")
    seen = {}

    def boost(value, hook):
        return value.index_fill(-1, torch.tensor([6]), 2.0)

    def remember(value, hook):
        seen["contributions"] = value

    logits = run(
        model,
        (name_of("hook_expert_weights"), boost),
        (name_of("hook_expert_contributions"), remember),
    )
    index, weights = found["expert_index"].clone(), found["routing_weights"].clone()
    for row in range(index.shape[0]):
        for pos in range(index.shape[1]):
            slots = (index[row, pos] == 6).nonzero()
            slot = int(slots[0]) if len(slots) else int(weights[row, pos].argmin())
            index[row, pos, slot], weights[row, pos, slot] = 6, 2.0
    with torch.no_grad(), model.trace(encode()):
        layer = model.moe[1]
        layer.set_routing(index, weights)
        expected = model.nnsight.output.logits.save()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not torch.equal(logits, model.run_with_hooks(encode()))


@pytest.mark.parametrize("hook", ["expert_outputs", "expert_contributions"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_written_slots_reach_the_model(family, hook):
    model = wrap(family)
    logits = run(model, (name_of(f"hook_{hook}"), lambda value, hook: value * 2))
    with torch.no_grad(), model.trace(encode()):
        layer = model.moe[1]
        layer.routing_weights = layer.routing_weights * 2
        expected = model.nnsight.output.logits.save()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(logits, cached(model)[0])


@pytest.mark.parametrize("hook", ["expert_outputs", "expert_contributions"])
def test_tokens_whose_slots_stay_keep_their_bits(hook):
    model = wrap("mixtral", "eager", num_experts_per_tok=4)

    def change_the_last_token(value, hook):
        return torch.cat([value[:, :-1], value[:, -1:] * 2], 1)

    seen = {}

    def remember(value, hook):
        seen["output"] = value.clone()

    run(model, (name_of(f"hook_{hook}"), change_the_last_token), (name_of("hook_out"), remember))
    expected = plain(model, "output")["output"]
    assert torch.equal(seen["output"][:, :-1], expected[:, :-1])
    assert not torch.equal(seen["output"][:, -1], expected[:, -1])


def test_contributions_are_made_of_the_outputs_as_changed():
    model = wrap("mixtral")
    before = plain(model, "expert_contributions")["expert_contributions"]
    seen = {}

    def remember(value, hook):
        seen["contributions"] = value.clone()

    logits = run(
        model,
        (name_of("hook_expert_contributions"), remember),
        (name_of("hook_expert_outputs"), lambda value, hook: value * 2),
        (name_of("hook_expert_contributions"), lambda value, hook: value / 2),
    )
    torch.testing.assert_close(seen["contributions"], before * 2)
    torch.testing.assert_close(logits, cached(model)[0], rtol=1e-4, atol=1e-4)


def test_a_written_output_is_what_the_model_goes_on_with():
    model = wrap("gpt_oss")
    logits = run(model, (name_of("hook_out"), lambda value, hook: value * 0))
    with torch.no_grad(), model.trace(encode()):
        layer = model.moe[1]
        layer.output = layer.output * 0
        expected = model.nnsight.output.logits.save()
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, cached(model)[0])


@families
def test_hooks_run_in_the_order_of_the_model_whatever_the_order_given(family):
    model = wrap(family)
    order = []

    def note(value, hook):
        order.append(hook.name)

    names = list(model.hook_dict)
    run(model, *((name, note) for name in reversed(names)))
    assert sorted(order) == sorted(names)
    assert [name.split(".")[1] for name in order] == sorted(name.split(".")[1] for name in names)
    chain = ("hook_router_logits", "hook_expert_indices", "hook_expert_weights", "hook_out")
    for layer in model.moe:
        places = [order.index(name_of(hook, layer)) for hook in chain]
        assert places == sorted(places)


def test_later_hooks_see_what_earlier_ones_wrote():
    model = wrap("mixtral")
    seen = {}

    def remember(value, hook):
        seen[hook.name] = value.clone()

    hooks = [
        (name_of("hook_expert_indices"), remember),
        (name_of("hook_expert_weights"), remember),
        (name_of("hook_router_logits"), lambda value, hook: -value),
    ]
    run(model, *hooks)
    with torch.no_grad(), model.trace(encode()):
        layer = model.moe[1]
        layer.router_logits = -layer.router_logits
        index = layer.expert_index.save()
    assert torch.equal(seen[name_of("hook_expert_indices")], index.flatten(0, 1))
    chosen = seen[name_of("hook_expert_weights")] > 0
    assert torch.equal(chosen, torch.zeros_like(chosen).scatter(-1, index.flatten(0, 1), True))


def test_functions_on_one_hook_run_in_list_order():
    model = wrap("mixtral")
    name = name_of("hook_out")
    one = run(model, (name, lambda v, hook: v + 1), (name, lambda v, hook: v * 0))
    two = run(model, (name, lambda v, hook: v * 0), (name, lambda v, hook: v + 1))
    assert torch.equal(one, run(model, (name, lambda v, hook: torch.zeros_like(v))))
    assert torch.equal(two, run(model, (name, lambda v, hook: torch.ones_like(v))))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("hook", ["hook_router_logits", "hook_expert_weights", "hook_out"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_change_in_place_counts_as_returned(hook, mode):
    model = wrap("mixtral")

    def in_place(value, hook):
        value[..., 3] = 0

    def returned(value, hook):
        return value.index_fill(-1, torch.tensor([3]), 0.0)

    with mode():
        changed = model.run_with_hooks(encode(), fwd_hooks=[(name_of(hook), in_place)])
        expected = model.run_with_hooks(encode(), fwd_hooks=[(name_of(hook), returned)])
        before = model.run_with_hooks(encode())
    assert torch.equal(changed, expected)
    assert not torch.equal(changed, before)


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "hook_shared_output"])
def test_hooks_work_with_gradients_on(hook):
    model = wrap("mixtral", "eager")
    writable = model.hook_dict[name_of(hook)].writable
    function = (lambda value, hook: value.clone()) if writable else (lambda value, hook: None)
    logits = model.run_with_hooks(encode(), fwd_hooks=[(name_of(hook), function)])
    torch.testing.assert_close(logits, cached(model)[0], rtol=1e-4, atol=1e-4)
    assert logits.requires_grad


def test_hooks_are_gone_afterwards():
    model = wrap("mixtral")
    before, _ = cached(model)
    run(model, (name_of("hook_out"), lambda value, hook: value * 0))
    assert torch.equal(cached(model)[0], before)
