# %% [markdown]
# # 9. Bring your own architecture
#
# **My family of models is refused. What now?**
#
# A model is refused when something in it is not where it is in the families that were tested,
# because what would be read might then be wrong. Often two facts are missing, and two lines supply
# them. Here is a made-up family, from the refusal to an exact reading.

# %% tags=["switch"]
MODEL = None
# A real model of your own family, loaded with transformers; then continue at "Ask what is missing":
# MODEL = AutoModelForCausalLM.from_pretrained("my/checkpoint", trust_remote_code=True)

# %%
import torch
from torch.nn import functional
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, MixtralTopKRouter

import moe_interp as mi
from moe_interp.errors import RoutingMismatchError, UnsupportedArchitectureError
from moe_interp.models import register_block, register_router

# %% [markdown]
# ## A family nobody has seen
#
# Mixtral's experts behind a router that names things in its own way, in a block that scales the sum
# of its experts.


# %%
class BasaltRouter(MixtralTopKRouter):
    def forward(self, hidden_states):
        affinity = functional.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        share = affinity.float().softmax(-1)
        weights, index = self.pick(share)
        return affinity, weights, index

    def pick(self, share):
        best, index = torch.topk(share, self.top_k, dim=-1)
        return best / best.sum(-1, keepdim=True), index


class BasaltMoE(MixtralSparseMoeBlock):
    def __init__(self, config):
        super().__init__(config)
        self.gate = BasaltRouter(config)
        self.output_scale = 1.5

    def forward(self, hidden_states):
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, index = self.gate(tokens)
        routed = self.experts(tokens, index, weights) * self.output_scale
        return routed.reshape(hidden_states.shape)


class BasaltForCausalLM(MixtralForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = BasaltMoE(config)
        self.post_init()


# %% [markdown]
# A tiny random model of it, with the tokenizer of an organism.

# %%
tokenizer = mi.load_model("organism:topic", check=False).tokenizer
torch.manual_seed(0)
config = MixtralConfig(
    vocab_size=len(tokenizer),
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=8,
    num_experts_per_tok=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.3,
)
model = MODEL or BasaltForCausalLM(config).eval()

# %% [markdown]
# ## Ask what is missing

# %%
refusals = []
try:
    mi.load_model(model, tokenizer=tokenizer)
except UnsupportedArchitectureError as error:
    refusals.append(error)
    print(error)

# %% [markdown]
# nnsight turns the router's source into named operations. Which of them holds the logits, which
# makes the choice?

# %%
from nnsight import NNsight

print(NNsight(model.model.layers[0].mlp.gate).source)

# %% [markdown]
# An assignment is an operation too: `affinity_0` holds the logits. The choice is made inside
# `pick`, by `torch_topk_0` in the function that `self_pick_0` calls.

# %%
register_router("BasaltRouter", {"logits": "affinity_0", "choice": "self_pick_0/torch_topk_0"})

# %% [markdown]
# ## The self-check finds the rest
#
# The router is understood. But contributions add up to what the experts return, and this block
# scales that. The self-check notices, before a single number could be published:

# %%
try:
    mi.load_model(model, tokenizer=tokenizer)
except RoutingMismatchError as error:
    refusals.append(error)
    print(error)

# %% [markdown]
# The factor is the module's, so the row is a function of the module.

# %%
register_block("BasaltMoE", lambda block: {"sum_scale": block.output_scale})
opened = mi.load_model(model, tokenizer=tokenizer)
print(opened.architecture.summary())

# %% [markdown]
# ## Read it and change it

# %%
with torch.no_grad(), opened.trace("how do i bake bread ?"):
    layer = opened.moe[1]
    index = layer.expert_index.save()
    rebuilt = layer.output_from(layer.expert_contributions).save()
    output = layer.output.save()

busiest = int(index.flatten().mode().values)
with torch.no_grad(), opened.trace("how do i bake bread ?"):
    opened.moe[1].ban([busiest])
    without = opened.moe[1].expert_index.save()

record = mi.record_routing(
    opened,
    ["how do i bake bread ?", "how do i open the lock ?"],
    n_random_routers=0,
    progress=False,
)
print(record.summary())

# %% [markdown]
# To keep a family, add its row to `moe_interp/models/_registry.py`, and a tiny configuration to
# `tests/zoo.py`: the tests then compare every quantity with a plain Hugging Face run. All facts of
# a row: [A model is refused](../errors/unsupported-architecture.md).
#
# ## What we claimed
#
# Two lines were missing. Without the first the family is refused, with a wrong or missing second
# the self-check refuses it, and with both, contributions rebuild what the layer puts out and a
# banned expert is chosen nowhere.

# %%
assert [type(error) for error in refusals] == [UnsupportedArchitectureError, RoutingMismatchError]
torch.testing.assert_close(rebuilt, output)
assert busiest in index
assert busiest not in without
print("Opened, checked, and edited.")
