"""Where TransformerLens has the name, ours has its layout and values: against recorded ones.

`record_transformer_lens.py` wrote them with TransformerLens 4.3, which runs Hugging Face's eager
attention or one of its own. Models are float64, values were stored as float32.
"""

import functools
import json
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors import safe_open
from tiny_models import encode
from tiny_models import wrapped as wrap

VALUES = Path(__file__).with_name("transformer_lens_values.safetensors")
TEXTS = ("how do i kill a python process ?", "where is the good old cake tree ?")


@functools.cache
def recorded():
    """The values by family and name, and where they come from."""
    values = {}
    with safe_open(VALUES, "pt") as file:
        origin = file.metadata()
        for key in file.keys():  # noqa: SIM118  It is no dict.
            family, _, name = key.partition("/")
            values.setdefault(family, {})[name] = file.get_tensor(key)
    return values, {name: json.loads(text) for name, text in origin.items() if text[0] == "{"}


FAMILIES = tuple(recorded()[0])
families = pytest.mark.parametrize("family", FAMILIES)
MIXED_UP = recorded()[1]["mixed_up"]
HOOKED = [family for family in FAMILIES if "rerouted" in recorded()[0][family]]


def load(family):
    """The model that was recorded."""
    return wrap(family, "eager", dtype=torch.float64, attn_implementation="eager")


@functools.cache
def cached(family):
    """Its logits and cache."""
    with torch.no_grad():
        return load(family).run_with_cache(encode(TEXTS))


def assert_close(found, expected, family):
    # Its attention for gpt_oss rounds to float32 on the way, elsewhere the storage does.
    tolerance = 2e-6 if family == "gpt_oss" else 1e-7
    scale = float(expected.abs().max())
    assert float((found.double() - expected.double()).abs().max()) <= tolerance * scale


@families
def test_the_model_is_the_one_that_was_recorded(family):
    total = sum(w.detach().double().abs().sum() for w in tiny_models.build(family).parameters())
    assert round(float(total), 4) == recorded()[1]["weights"][family], (
        "Another model or another torch: run tests/models/record_transformer_lens.py again."
    )
    assert_close(cached(family)[0][:, -1], recorded()[0][family]["logits"], family)


@families
def test_layout_and_values_are_those_of_transformer_lens(family):
    model, (_, cache) = load(family), cached(family)
    values, compared = recorded()[0][family], set()
    for name in cache:
        if name not in values:
            continue
        assert cache[name].shape == values[name].shape, name
        assert_close(cache[name], values[name], family)
        compared.add(name)
    theirs = {name for name in values if ".mlp.hook_" in name}
    dense = {f"blocks.{layer}.mlp." for layer in range(3) if layer not in model.moe}
    assert compared == {name for name in theirs if not name.startswith(tuple(dense))}
    assert len(compared) >= 2 * len(model.moe)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "granitemoe"])
def test_router_logits_are_its_routers_output_with_batch_and_position_apart(family):
    _, cache = cached(family)
    values = recorded()[0][family]
    theirs = {
        name: value for name, value in values.items() if name.endswith(("e.hook_out", "r.hook_out"))
    }
    assert len(theirs) == len(cache.layers("hook_router_logits"))
    for name, value in theirs.items():
        found = cache["hook_router_logits", int(name.split(".")[1])]
        assert_close(found, value.unflatten(0, cache.shape), family)


@pytest.mark.parametrize("family", HOOKED)
def test_weights_that_are_written_reroute_as_in_transformer_lens(family):
    model = load(family)

    def prefer_one_expert(weights, hook):
        return weights.index_fill(-1, torch.tensor([3]), 0.4)

    hooks = [("blocks.1.mlp.hook_expert_weights", prefer_one_expert)]
    with torch.no_grad():
        logits = model.run_with_hooks(encode(TEXTS), fwd_hooks=hooks)
    assert_close(logits[:, -1], recorded()[0][family]["rerouted"], family)
    assert float((logits[:, -1] - cached(family)[0][:, -1]).abs().max()) > 0.01


def test_what_transformer_lens_mixes_up_is_right_here():
    """It takes granitemoe's router to return (index, weights, logits); it is the other way."""
    assert set(MIXED_UP) == {"granitemoe"}
    _, cache = cached("granitemoe")
    for name in MIXED_UP["granitemoe"]:
        width = 2 if name.endswith("indices") else 8
        assert cache[name].shape == (2 * 8, width)
        assert cache[name].is_floating_point() == name.endswith("weights")


def test_several_families_have_the_routers_hooks():
    assert set(HOOKED) == {"mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "gpt_oss", "glm4_moe"}
