"""Discovery: plain facts from the module tree, on the meta device as well."""

import pytest
import tiny_models
import torch
import zoo
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_interp.errors import NotMoEError, UnsupportedArchitectureError
from moe_interp.models import SUPPORTED, find_sites

DENSE_FIRST = ("qwen3_moe", "deepseek_v2", "deepseek_v3", "glm4_moe")


def skeleton(model_type, **changes):
    settings = {**tiny_models.COMMON, **tiny_models.FAMILIES.get(model_type, {}), **changes}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**settings))


def test_the_supported_families_are_those_tested():
    assert (
        set(tiny_models.FAMILIES)
        <= set(SUPPORTED)
        < {family.model_type for family in zoo.FAMILIES.values()}
    )
    assert list(SUPPORTED) == sorted(SUPPORTED)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_layers_are_absolute_and_facts_those_of_the_config(family):
    sites = find_sites(skeleton(family))
    assert [site.layer for site in sites] == ([1, 2] if family in DENSE_FIRST else [0, 1, 2])
    for site in sites:
        assert (site.n_experts, site.top_k) == (8, 2)
        assert f".{site.layer}." in f"{site.block}."
    shared = {"qwen2_moe": "shared_expert"}.get(family, "shared_experts")
    expected = family in ("qwen2_moe", "deepseek_v2", "deepseek_v3", "glm4_moe")
    assert (sites[0].shared is not None) == expected
    if expected:
        assert sites[0].shared.endswith(shared)
    assert (sites[0].shared_gate is not None) == (family == "qwen2_moe")


def test_the_order_of_the_shared_expert_is_that_of_the_block():
    early = find_sites(skeleton("qwen2_moe"))[0].reading_order
    late = find_sites(skeleton("deepseek_v3"))[0].reading_order
    assert early.index("shared") < early.index("router_logits")
    assert late.index("shared") > late.index("routed_output")


def test_the_choice_of_deepseek_v2_depends_on_its_method():
    grouped = find_sites(skeleton("deepseek_v2"))[0]
    greedy = find_sites(skeleton("deepseek_v2", topk_method="greedy"))[0]
    assert (grouped.choice, greedy.choice) == ("torch_topk_2", "torch_topk_0")


def test_facts_are_plain_data():
    facts = find_sites(skeleton("mixtral"))[0].facts()
    for value in facts.values():
        parts = value if isinstance(value, tuple) else (value,)
        if isinstance(value, dict):
            parts = (*value, *value.values())
        assert all(part is None or isinstance(part, int | float | str) for part in parts)


def test_a_dense_model_is_named_dense():
    with pytest.raises(NotMoEError, match=r"'LlamaForCausalLM' is a dense model.*mixtral"):
        find_sites(skeleton("llama"))


def renamed_router(model):
    for layer in model.model.layers:
        layer.chooser = layer.mlp.gate
        del layer.mlp.gate
    return "no router stands beside the experts of 'model.layers.0.mlp'"


class HiddenChoice(nn.Module):
    top_k = 2
    num_experts = 8

    def forward(self, hidden_states):
        return self.decide(hidden_states)

    def decide(self, hidden_states):
        raise NotImplementedError


def hidden_choice(model):
    for layer in model.model.layers:
        layer.mlp.gate = HiddenChoice()
    return "HiddenChoice does not tell its choice, logits, score_function"


def replaced_forward(model):
    model.model.layers[1].mlp.forward = lambda hidden_states: hidden_states
    return "model.layers.1.mlp: the forward of MixtralSparseMoeBlock was replaced"


class ClosedBlock(nn.Module):
    def forward(self, hidden_states):
        return self.fused(hidden_states)


def closed_block(model):
    block = ClosedBlock()
    block.gate, block.experts = model.model.layers[0].mlp.gate, model.model.layers[0].mlp.experts
    model.model.layers[0].mlp = block
    return "ClosedBlock does not call its router and experts in the open"


@pytest.mark.parametrize("change", [renamed_router, hidden_choice, replaced_forward, closed_block])
def test_a_structure_that_is_not_understood_is_refused_with_the_reason(change):
    model = skeleton("mixtral")
    reason = change(model)
    with pytest.raises(UnsupportedArchitectureError, match=f"'MixtralForCausalLM'.*{reason}"):
        find_sites(model)


class SecretMoE(nn.Module):
    def forward(self, hidden_states):
        return hidden_states


def test_unknown_experts_are_no_dense_model():
    model = skeleton("llama")
    model.model.layers[0].mlp = SecretMoE()
    with pytest.raises(UnsupportedArchitectureError, match="the experts behind 'SecretMoE'"):
        find_sites(model)


class ChangedBlock(nn.Module):
    """A block whose router is known, but not how it calls its experts."""

    def __init__(self, block):
        super().__init__()
        self.router, self.specialists = block.gate, nn.ModuleList([nn.Linear(32, 32)])

    def forward(self, hidden_states):
        return self.specialists[0](hidden_states) + self.router(hidden_states)[0].sum()


def test_a_router_that_no_layer_accounts_for_is_refused():
    model = skeleton("mixtral")
    model.model.layers[1].mlp = ChangedBlock(model.model.layers[1].mlp)
    expected = (
        r"the router 'model\.layers\.1\.mlp\.router' of a ChangedBlock block is not understood"
    )
    with pytest.raises(UnsupportedArchitectureError, match=expected):
        find_sites(model)
