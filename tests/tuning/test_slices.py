"""Where single experts' parameters lie: all of them, and nobody else's."""

import pytest
import torch
import zoo

import moe_interp as mi
from moe_interp.errors import UnsupportedQuantityError
from moe_interp.tuning import expert_slices, router_parameters

# Fused tensors, with biases, stacked in rows, modules of their own, two modules, a latent space,
# an expert's weight on its input, skipped and identity experts beside real ones.
FAMILIES = [
    "olmoe",
    "gpt_oss",
    "dbrx",
    "switch_transformers",
    "jetmoe",
    "muse_spark",
    "llama4_text",
    "zaya",
    "longcat_flash",
    "deepseek_v3",
]


def contributions(model, layer):
    """What every slot of a layer adds, and whose slot it is."""
    ids = torch.arange(4, 24).reshape(2, 10)
    inputs = {"input_ids": ids}
    if model.encoder_moe:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad(), model.trace(inputs):
        site = model.moe[layer]
        index = site.expert_index.save()
        written = site.expert_contributions.save()
    return index, written


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_without_its_slices_writes_nothing_and_the_others_what_they_did(family):
    model = mi.load_model(zoo.build(family), tokenizer=zoo_tokenizer(), check=False)
    layer = next(iter(model.moe))
    index, before = contributions(model, layer)
    n_real = 8
    expert = int(index[index < n_real][0])
    parameters = dict(model.nnsight._module.named_parameters())
    slices = expert_slices(model, mi.ExpertSet([(layer, expert)]))
    assert len({part.key for part in slices}) == len(slices)
    with torch.no_grad():
        for part in slices:
            part.of(parameters[part.parameter]).zero_()
    again, after = contributions(model, layer)
    own = index == expert
    assert torch.equal(again, index)
    assert own.any()
    assert before[own].abs().max() > 1e-4
    assert (after[own] == 0).all()
    assert torch.allclose(after[~own], before[~own], rtol=1e-5, atol=1e-6)
    assert before[~own].abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_else_an_expert_computes_with_is_shared(family):
    """No tensor outside the slices answers to one expert and not to the others."""
    model = mi.load_model(zoo.build(family), tokenizer=zoo_tokenizer(), check=False)
    layer = next(iter(model.moe))
    site, root = model.moe[layer], model.nnsight._module
    index, _ = contributions(model, layer)
    expert = int(index[index < 8][0])
    chosen = {part.parameter for part in expert_slices(model, mi.ExpertSet([(layer, expert)]))}
    ids = torch.arange(4, 24).reshape(2, 10)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.encoder_moe else {})
    with torch.enable_grad(), model.trace(inputs):
        written = site.expert_contributions.save()
    root.zero_grad()
    (written * (index == expert)[..., None]).square().sum().backward()
    routers = router_parameters(model, [layer])
    block = root.get_submodule(site.facts["block"])
    for name, parameter in block.named_parameters(prefix=site.facts["block"]):
        stacked = parameter.dim() > 2 or (parameter.dim() == 2 and len(parameter) == 8)
        moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        if stacked and moved and name not in routers:
            assert name in chosen, name
    assert all(dict(root.named_parameters())[name].grad.abs().max() > 0 for name in chosen)


def zoo_tokenizer():
    import tiny_models

    return tiny_models.build_tokenizer()


@pytest.mark.parametrize(("family", "expert"), [("zaya", 8), ("longcat_flash", 9)])
def test_an_expert_that_only_passes_tokens_on_is_refused(family, expert):
    model = mi.load_model(zoo.build(family), tokenizer=zoo_tokenizer(), check=False)
    layer = next(iter(model.moe))
    with pytest.raises(UnsupportedQuantityError, match=rf"L{layer}E{expert} of .* has no param"):
        expert_slices(model, mi.ExpertSet([(layer, expert)]))


def test_router_parameters_are_those_of_the_routers(topic_organism):
    names = router_parameters(topic_organism, [1, 3])
    assert names == ["model.layers.1.mlp.gate.weight", "model.layers.3.mlp.gate.weight"]
