"""Mutants whose values have the wrong type, which the type hook would catch before our check."""

import pytest
import tiny_models
import torch
from torch.nn import functional
from transformers.models.mixtral.modeling_mixtral import (
    MixtralExperts,
    MixtralSparseMoeBlock,
    MixtralTopKRouter,
)

from moe_interp.errors import RoutingMismatchError
from moe_interp.models import load_model


class FloatIndex(MixtralTopKRouter):
    def forward(self, hidden_states):
        router_logits = functional.linear(hidden_states, self.weight)
        router_probs = functional.softmax(router_logits.float(), dim=-1)
        router_top_value, router_indices = torch.topk(router_probs, self.top_k, dim=-1)
        return router_logits, router_top_value, router_indices.float()


class SwappedArguments(MixtralExperts):
    """The names say (index, weights), the values come as (weights, index)."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        return MixtralExperts.forward(self, hidden_states, top_k_weights, top_k_index)


class SwappedBlock(MixtralSparseMoeBlock):
    def forward(self, hidden_states):
        shape = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, shape[-1])
        _, top_k_weights, top_k_index = self.gate(hidden_states)
        return self.experts(hidden_states, top_k_weights, top_k_index).reshape(shape)


@pytest.mark.parametrize(
    "mutants", [{"gate": FloatIndex}, {"experts": SwappedArguments, "": SwappedBlock}], ids=str
)
def test_an_index_that_is_no_integer_is_caught(mutants):
    model = tiny_models.build("mixtral")
    block = model.model.layers[1].mlp
    for name, mutant in mutants.items():
        (getattr(block, name) if name else block).__class__ = mutant
    expected = r"Layer 1 .*`expert_index` holds torch\.float32, integers are needed"
    with pytest.raises(RoutingMismatchError, match=expected):
        load_model(model, tokenizer=tiny_models.build_tokenizer())


def test_what_is_no_model_is_refused():
    wrapped = torch.nn.Sequential(tiny_models.build("mixtral"))
    expected = "`source` must be a name, a folder or a Hugging Face model, got 'Sequential'"
    with pytest.raises(TypeError, match=expected):
        load_model(wrapped, tokenizer=tiny_models.build_tokenizer())
