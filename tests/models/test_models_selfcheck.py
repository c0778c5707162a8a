"""The self-check turns a changed release of transformers into an error that names what is wrong.

Each mutant changes one layer of a Mixtral in a way that a release might; none is seen without
the check.
"""

import pytest
import tiny_models
import torch
import zoo
from torch.nn import functional
from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextMoe
from transformers.models.mixtral.modeling_mixtral import (
    MixtralExperts,
    MixtralSparseMoeBlock,
    MixtralTopKRouter,
)
from transformers.models.phimoe.modeling_phimoe import (
    PhimoeSparseMoeBlock,
    PhimoeTopKRouter,
    sparsemixer,
)

from moe_interp.errors import RoutingMismatchError
from moe_interp.models import load_model


class OtherLogits(MixtralTopKRouter):
    """What is called logits is not what the choice is made from."""

    def forward(self, hidden_states):
        router_logits = functional.linear(hidden_states, self.weight)
        scores = functional.softmax(functional.linear(hidden_states, self.weight).float(), dim=-1)
        router_top_value, router_indices = torch.topk(scores, self.top_k, dim=-1)
        return router_logits, router_top_value, router_indices


class OtherChoice(MixtralTopKRouter):
    """The operation that looks like the choice is not the one that counts."""

    def forward(self, hidden_states):
        router_logits = functional.linear(hidden_states, self.weight)
        router_probs = functional.softmax(router_logits.float(), dim=-1)
        router_indices = router_probs.argsort(-1, descending=True)[:, : self.top_k]
        router_top_value, _ = torch.topk(router_probs, self.top_k, dim=-1)
        return router_logits, router_top_value, router_indices


class DoubledExpert(MixtralTopKRouter):
    def forward(self, hidden_states):
        router_logits = functional.linear(hidden_states, self.weight)
        router_probs = functional.softmax(router_logits.float(), dim=-1)
        router_top_value, router_indices = torch.topk(router_probs, self.top_k, dim=-1)
        router_indices = router_indices[:, :1].expand(-1, self.top_k)
        return router_logits, router_top_value, router_indices


class WideLogits(MixtralTopKRouter):
    def forward(self, hidden_states):
        router_logits = functional.linear(hidden_states, torch.cat([self.weight, self.weight[:1]]))
        router_probs = functional.softmax(router_logits.float(), dim=-1)
        router_top_value, router_indices = torch.topk(router_probs[:, :8], self.top_k, dim=-1)
        return router_logits, router_top_value, router_indices


class OneMore(MixtralTopKRouter):
    def forward(self, hidden_states):
        router_logits = functional.linear(hidden_states, self.weight)
        router_probs = functional.softmax(router_logits.float(), dim=-1)
        router_top_value, router_indices = torch.topk(router_probs, self.top_k + 1, dim=-1)
        return router_logits, router_top_value, router_indices


class OwnWeights(MixtralExperts):
    """The experts do not use the weights that they receive."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        top_k_weights = top_k_weights.pow(2)
        return MixtralExperts.forward(self, hidden_states, top_k_index, top_k_weights)


class RenormalisingExperts(MixtralExperts):
    """One slot alone is weighted otherwise than among the others."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        top_k_weights = top_k_weights / top_k_weights.max(-1, keepdim=True).values
        return MixtralExperts.forward(self, hidden_states, top_k_index, top_k_weights)


class RowDependent(MixtralExperts):
    """What an expert returns for a token depends on the other tokens."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        hidden_states = hidden_states.cumsum(0)
        return MixtralExperts.forward(self, hidden_states, top_k_index, top_k_weights)


class RecomputingBlock(MixtralSparseMoeBlock):
    """The block makes a choice of its own and leaves the router's unused."""

    def forward(self, hidden_states):
        shape = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, shape[-1])
        router_logits, _, _ = self.gate(hidden_states)
        top_k_weights, top_k_index = torch.topk(functional.softmax(router_logits.float(), -1), 2)
        return self.experts(hidden_states, top_k_index, top_k_weights).reshape(shape)


class BlockWithOwnWeights(MixtralSparseMoeBlock):
    """What the experts are given is not what their outputs count with."""

    def forward(self, hidden_states):
        shape = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, shape[-1])
        _, top_k_weights, top_k_index = self.gate(hidden_states)
        out = self.experts(hidden_states, top_k_index, top_k_weights)
        return (out * top_k_weights[:, :1]).reshape(shape)


class ScaledBlock(MixtralSparseMoeBlock):
    def forward(self, hidden_states):
        shape = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, shape[-1])
        _, top_k_weights, top_k_index = self.gate(hidden_states)
        return 2 * self.experts(hidden_states, top_k_index, top_k_weights).reshape(shape)


MUTANTS = [
    (("gate", OtherLogits), r"an edit of `router_logits` does not move the choice of experts"),
    (("gate", OtherChoice), r"an edit of the choice does not reach the experts"),
    (("gate", DoubledExpert), r"`expert_index` names an expert twice for one token"),
    (("gate", WideLogits), r"`router_logits` has 9 entries for 8 experts"),
    (("gate", OneMore), r"have shapes \(2, 5, 3\) and \(2, 5, 3\), 2 experts per token"),
    (("experts", OwnWeights), r"`routing_weights` times `expert_outputs` are not what .* allowed"),
    (("experts", RenormalisingExperts), r"`routing_weights` times `expert_outputs` are not what"),
    (("experts", RowDependent), r"`expert_outputs` are not what .*\(relative error .*1e-05\)"),
    (("", BlockWithOwnWeights), r"`expert_contributions` and `shared_output` together are not"),
    (("", RecomputingBlock), r"an edit of the choice does not reach the experts"),
    (("", ScaledBlock), r"`expert_contributions` and `shared_output` together are not what"),
]


def mutate(model, name, mutant):
    block = model.model.layers[1].mlp
    (getattr(block, name) if name else block).__class__ = mutant
    return model


def tiny():
    return tiny_models.build("mixtral"), tiny_models.build_tokenizer()


@pytest.mark.parametrize(("mutant", "message"), MUTANTS, ids=lambda item: str(item)[:40])
def test_a_changed_layer_is_caught_and_named(mutant, message):
    model, tokenizer = tiny()
    expected = f"Layer 1 of 'MixtralForCausalLM': .*{message}"
    with pytest.raises(RoutingMismatchError, match=expected):
        load_model(mutate(model, *mutant), tokenizer=tokenizer)


class TurnedLlama4Router(Llama4Router):
    """A changed tuple order where the router's own output is read."""

    def forward(self, hidden_states):
        router_logits = functional.linear(hidden_states, self.weight)
        router_top_value, router_indices = torch.topk(router_logits, self.top_k, dim=1)
        router_scores = torch.full_like(router_logits, float("-inf"))
        router_scores = router_scores.scatter_(1, router_indices, router_top_value).sigmoid()
        return router_logits, router_scores


class TurnedLlama4Block(Llama4TextMoe):
    def forward(self, hidden_states):
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_logits, router_scores = self.router(hidden_states)
        routed_in = hidden_states.repeat(router_scores.shape[1], 1)
        routed_in = routed_in * router_scores.transpose(0, 1).reshape(-1, 1)
        routed_out = self.experts(routed_in)
        out = self.shared_expert(hidden_states)
        out.add_(routed_out.reshape(router_scores.shape[1], -1, routed_out.shape[-1]).sum(dim=0))
        return out, router_logits


def released_as(known, changed):
    """A class as a release would have it: under the name that is known."""
    changed.__name__ = known.__name__
    return changed


def test_a_turned_tuple_of_a_router_that_scales_inputs_is_caught():
    model = zoo.build("llama4_text")
    block = model.model.layers[1].feed_forward
    block.__class__ = released_as(Llama4TextMoe, TurnedLlama4Block)
    block.router.__class__ = released_as(Llama4Router, TurnedLlama4Router)
    expected = "Layer 1 of 'Llama4ForCausalLM': `routing_weights` are not what the model computes"
    with pytest.raises(RoutingMismatchError, match=expected):
        load_model(model, tokenizer=tiny_models.build_tokenizer())


class TurnedPhimoeRouter(PhimoeTopKRouter):
    def forward(self, hidden_states):
        router_logits = functional.linear(hidden_states, self.weight)
        weights, index = sparsemixer(
            router_logits, jitter_eps=self.router_jitter_noise, training=False
        )
        return weights, router_logits, index


class TurnedPhimoeBlock(PhimoeSparseMoeBlock):
    def forward(self, hidden_states):
        shape = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, shape[-1])
        weights, _, index = self.router(hidden_states)
        return self.experts(hidden_states, index, weights).reshape(shape)


def test_a_step_that_breaks_is_named():
    model = tiny_models.build("phimoe")
    block = model.model.layers[1].mlp
    block.__class__ = released_as(PhimoeSparseMoeBlock, TurnedPhimoeBlock)
    block.router.__class__ = released_as(PhimoeTopKRouter, TurnedPhimoeRouter)
    expected = r"'PhimoeForCausalLM': editing the choice broke \(\w+: .*\)\. This release"
    with pytest.raises(RoutingMismatchError, match=expected):
        load_model(model, tokenizer=tiny_models.build_tokenizer())


def test_the_check_can_be_left_out():
    model, tokenizer = tiny()
    loaded = load_model(mutate(model, "", ScaledBlock), tokenizer=tokenizer, check=False)
    assert list(loaded.moe) == [0, 1, 2]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_family_passes(family, dtype):
    model = tiny_models.build(family, dtype=dtype)
    if dtype == torch.float16:
        model.set_experts_implementation("eager")
    load_model(model, tokenizer=tiny_models.build_tokenizer())
