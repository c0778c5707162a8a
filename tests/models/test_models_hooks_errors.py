"""What goes wrong with hooks is said in words: names, options, values, keys of a cache."""

import pytest
import torch
from tiny_models import encode
from tiny_models import wrapped as wrap

from moe_interp.errors import UnsupportedQuantityError
from moe_interp.models._hooks import RoutingCache


def name_of(hook, layer=1):
    return f"blocks.{layer}.mlp.{hook}"


def run(model, *hooks):
    with torch.no_grad():
        return model.run_with_hooks(encode(), fwd_hooks=hooks)


def cached(model, **options):
    with torch.no_grad():
        return model.run_with_cache(encode(), **options)


@pytest.mark.parametrize(
    ("names_filter", "message"),
    [
        (
            "blocks.1.mlp.hook_router_logit",
            r"No hook is named 'blocks.1.mlp.hook_router_logit'. Did you mean "
            r"'blocks.1.mlp.hook_router_logits' or .*\? `model.hook_dict` lists all of them",
        ),
        ("gate", r"No hook is named 'gate'\. `model\.hook_dict` lists all of them"),
        (["blocks.1.mlp.hook_out", "x"], "No hook is named 'x'"),
        ("blocks.9.mlp.hook_out", "'Qwen3MoeForCausalLM' has no layer 9. MoE layers: 1, 2"),
        ("blocks.0.mlp.hook_out", "Layer 0 of 'Qwen3MoeForCausalLM' is dense"),
        (lambda name: False, r"picks none of the 16 hooks .* like 'blocks.1.mlp.hook_in'"),
        ([], "picks none of the 16 hooks"),
    ],
)
@pytest.mark.parametrize("argument", ["names_filter", "fwd_hooks"])
def test_a_name_that_is_not_there_is_an_error_that_helps(argument, names_filter, message):
    model = wrap("qwen3_moe")
    if argument == "names_filter":
        with pytest.raises(KeyError, match=message):
            model.run_with_cache(encode(), names_filter=names_filter)
    elif not isinstance(names_filter, list):
        with pytest.raises(KeyError, match=message.replace("names_filter", argument)):
            model.run_with_hooks(encode(), fwd_hooks=[(names_filter, print)])


def test_a_quantity_that_is_not_offered_is_refused_with_the_layers_reason():
    model = wrap("mixtral")
    reason = model.moe[1].refused["shared_output"]
    with pytest.raises(UnsupportedQuantityError) as caught:
        model.run_with_cache(encode(), names_filter=name_of("hook_shared_output"))
    assert str(caught.value) == f"There is no 'blocks.1.mlp.hook_shared_output': {reason}"


@pytest.mark.parametrize(
    ("hook", "instead"),
    [
        ("hook_router_probs", "Write hook_router_logits, which the model makes them from; a func"),
        ("hook_in", "Write hook_router_logits to re-route, or hook_out to change what the block"),
        ("hook_shared_output", "Write hook_out, which holds it; a function that only looks"),
    ],
)
def test_what_cannot_be_written_says_what_to_write_instead(hook, instead):
    name = name_of(hook)
    message = rf"A function on '{name}' gave a new value, but `\w+` can only be read. {instead}"
    with pytest.raises(ValueError, match=message):
        run(wrap("qwen2_moe"), (name, lambda value, hook: value))


@pytest.mark.parametrize("hook", ["hook_router_probs", "hook_in", "hook_shared_output"])
def test_what_cannot_be_written_cannot_be_changed_in_place_either(hook):
    def double(value, hook):
        value.mul_(2)

    with pytest.raises(
        ValueError, match=rf"'{name_of(hook)}' gave a new value, but `\w+` can only"
    ):
        run(wrap("qwen2_moe"), (name_of(hook), double))


def test_a_function_must_return_a_tensor_of_the_same_shape():
    model, name = wrap("mixtral"), name_of("hook_expert_weights")
    with pytest.raises(TypeError, match=rf"'{name}' must return a tensor, or None .*, got 3\."):
        run(model, (name, lambda value, hook: 3))
    message = rf"'{name}' got a value of shape \(16, 8\) and must return .* got \(16, 4\)"
    with pytest.raises(ValueError, match=message):
        run(model, (name, lambda value, hook: value[:, :4]))
    with pytest.raises(ValueError, match=r"`expert_index` of layer 1 holds integers"):
        run(model, (name_of("hook_expert_indices"), lambda value, hook: value.float()))


def test_options_of_another_kind_are_refused():
    model = wrap("mixtral")
    with pytest.raises(ValueError, match=r"`return_type` must be .*, got 'loss'. A loss is made"):
        cached(model, return_type="loss")
    with pytest.raises(ValueError, match=r"`return_type` must be one of \('logits', None\)"):
        model.run_with_hooks(encode(), return_type="both")


def test_a_key_that_the_cache_does_not_hold_says_what_it_holds():
    model = wrap("mixtral")
    names = [name_of("hook_router_logits", 0), name_of("hook_out", 2)]
    cache = cached(model, names_filter=names)[1]
    holds = "It holds hook_router_logits of layers 0; hook_out of layers 2"
    with pytest.raises(
        KeyError, match=rf"The cache has no 'blocks.1.mlp.hook_out'\. Did .*{holds}"
    ):
        cache["hook_out", 1]
    with pytest.raises(KeyError, match=rf"The cache has no layer's 'hook_router_probs'. {holds}"):
        cache.stack("hook_router_probs")


def test_values_of_different_shapes_are_not_stacked():
    model = wrap("mixtral")
    held = {name_of("hook_out", 0): torch.zeros(1, 2, 3), name_of("hook_out"): torch.zeros(1, 2, 4)}
    cache = RoutingCache(held, model.hook_dict, (1, 2))
    message = r"'hook_out' differ in shape between layers .*\{0: \(1, 2, 3\), 1: \(1, 2, 4\)\}"
    with pytest.raises(ValueError, match=message):
        cache.stack("hook_out")
