# %% [markdown]
# # 2. Inside an expert
#
# **Two prompts go to the same experts. Does the same happen in them?**
#
# Routing says who is asked, not what is answered. This tutorial reads, in one forward pass, a
# router's logits, each chosen expert's output, and its contribution (output times weight), and asks
# which experts write towards a refusal.

# %% tags=["switch"]
MODEL, PROMPTS = "organism:topic", "organism"
REFUSAL_WORD, ANSWER_WORD = "sorry", "sure"
# A real model: the first words of its refusals and of its answers, one token each.
# MODEL, PROMPTS = "allenai/OLMoE-1B-7B-0125-Instruct", "my_prompts.jsonl"
# REFUSAL_WORD, ANSWER_WORD = "Sorry", "Sure"

# %%
import torch

import moe_interp as mi

options = {"per_topic": 4} if PROMPTS == "organism" else {}
model = mi.load_model(MODEL)
prompts = mi.load_prompts(PROMPTS, **options).balanced()
harmful = prompts.select(prompts.harm)
harmless = prompts.select(~prompts.harm)
LAYER = list(model.moe)[-1]
twins = [harmless.texts[0], harmful.texts[0]]
print(*twins, sep="\n")

# %% [markdown]
# ## One trace
#
# Quantities are read in the order in which a layer computes them. `.save()` keeps a value after the
# trace. Positions are padded on the left, so the last position is the last token of each prompt.

# %%
with torch.no_grad(), model.trace(twins):
    layer = model.moe[LAYER]
    logits = layer.router_logits.save()  # [batch pos expert]
    index = layer.expert_index.save()  # [batch pos top_k]
    weights = layer.routing_weights.save()  # [batch pos top_k]
    outputs = layer.expert_outputs.save()  # [batch pos top_k d_model]
    contributions = layer.expert_contributions.save()  # the same, times its weight
    routed = layer.routed_output.save()  # [batch pos d_model]

for name, value in (("logits", logits), ("outputs", outputs), ("routed", routed)):
    print(f"{name:>8}", tuple(value.shape))

# %% [markdown]
# Contributions are outputs times weights, and their sum is what leaves the experts:

# %%
torch.testing.assert_close(outputs * weights[..., None], contributions)
torch.testing.assert_close(contributions.sum(2), routed)

# %% [markdown]
# ## The same experts, other answers
#
# At the last token, where the model decides how to open its answer:

# %%
same_experts = set(index[0, -1].tolist()) == set(index[1, -1].tolist())
between = torch.nn.functional.cosine_similarity(routed[0, -1], routed[1, -1], dim=0)
print("experts of the harmless twin:", sorted(index[0, -1].tolist()))
print("experts of the harmful twin: ", sorted(index[1, -1].tolist()))
print(f"cosine of what they write: {float(between):.2f}")

# %% [markdown]
# ## Who writes the refusal?
#
# `logit_direction` is the direction of the residual stream, prompt by prompt, that raises the logit
# of a refusal's first word over that of an answer's. `direction_attribution` projects every
# expert's contribution at the last token on it, for all experts of all layers at once.

# %%
vocabulary = model.tokenizer.get_vocab()
opening = mi.LogitDifference(vocabulary[REFUSAL_WORD], vocabulary[ANSWER_WORD])
written = {}
for name, group in (("harmful", harmful), ("harmless", harmless)):
    direction = mi.logit_direction(model, group, opening)
    written[name] = mi.direction_attribution(model, group, direction)
    print(f"{name}: writes most towards {REFUSAL_WORD!r} over {ANSWER_WORD!r}")
    for expert, amount in written[name].top(3):
        print(f"  {expert}  {amount:+.2f}")

# %%
mi.plot_experts(written["harmful"], quantity=written["harmful"].name)

# %% [markdown]
# This is a direct effect only: what the experts write straight into the logits. Whether the refusal
# needs them is the question of the next tutorial.
#
# ## What we claimed
#
# Harmful and harmless twins meet the same two experts at the last token. On harmful prompts these
# two write most towards the refusal; on harmless prompts they write against it. They are the two
# experts in which, says the card, the refusal lives.

# %%
safety = mi.ExpertSet(model.card["truth"]["safety_experts"])
assert same_experts
assert {expert for expert, _ in written["harmful"].top(2)} == set(safety)
for expert in safety:
    on_harmless, on_harmful = (
        written[name].of(expert.layer, expert.expert) for name in ("harmless", "harmful")
    )
    assert on_harmless < 0 < on_harmful
print("The same experts:", safety)
