# %% [markdown]
# # 3. Ablation and patching, and why the kind matters
#
# **Does the refusal sit in who is chosen, or in what the chosen write?**
#
# Two organisms refuse harmful prompts alike. In one, harm changes the routing; in the other it does
# not. From their behaviour nobody could tell. Interventions can, if one knows what each changes and
# what it leaves as it was.

# %% tags=["switch"]
MODELS, PROMPTS = {"topic": "organism:topic", "harm": "organism:harm"}, "organism"
# A real model: name it under both keys, or two models that you want to compare. Prompts need pairs
# of as many tokens.
# MODELS = {"topic": "allenai/OLMoE-1B-7B-0125-Instruct", "harm": "Qwen/Qwen1.5-MoE-A2.7B-Chat"}

# %%
import pandas as pd

import moe_interp as mi

options = {"per_topic": 4} if PROMPTS == "organism" else {}
prompts = mi.load_prompts(PROMPTS, **options)
harmful, harmless = prompts.select(prompts.harm), prompts.select(~prompts.harm)
models = {name: mi.load_model(source) for name, source in MODELS.items()}
metric = mi.RefusalLogOdds(models["topic"].tokenizer)
experts = {"topic": "L3E8,L3E9", "harm": "L2E14,L2E15,L3E14,L3E15"}


def refused(model, prompts, change):
    """Mean log-odds of a refusal before and after, and the fraction that is still refused."""
    effect = mi.measure_effect(model, prompts, change, metric=metric)
    return {
        "before": effect.baseline.mean(),
        "after": effect.intervened.mean(),
        "refused": (effect.intervened > 0).mean(),
    }


# %% [markdown]
# ## One expert at a time finds nothing
#
# Metric: log-odds of a refusal at the first token of the answer. Above 0 the model refuses.

# %%
rows = []
for name, together in experts.items():
    for chosen in [*together.split(","), together]:
        row = refused(models[name], harmful, mi.Zero(chosen))
        rows.append({"organism": name, "set to zero": chosen, **row})
one_by_one = pd.DataFrame(rows).round(2)
one_by_one

# %% [markdown]
# Every expert alone can go, and the model still refuses: the others do it. Together they carry the
# whole refusal. An effect of single experts misses what is redundant.
#
# ## Three ways to take an expert out
#
# - `Ban`: never chosen; **the next best expert is chosen instead**.
# - `Zero`: chosen as before, its contribution becomes 0; **nobody takes its place**.
# - `Mean`: chosen as before, its output becomes its mean over a reference; **what is typical
#   stays**. The reference matters, as it says what "typical" means.

# %%
model = models["topic"]
changes = {
    "Ban": mi.Ban("L3E8"),
    "Zero": mi.Zero("L3E8"),
    "Mean, over all prompts": mi.Mean("L3E8", mi.mean_outputs(model, prompts, "L3E8")),
    "Mean, over harmless prompts": mi.Mean("L3E8", mi.mean_outputs(model, harmless, "L3E8")),
}
kinds = pd.DataFrame(
    {name: refused(model, harmful, change) for name, change in changes.items()}
).T.round(2)
kinds

# %% [markdown]
# `Mean` over harmless prompts does several times as much as `Ban`: it puts in what the expert
# writes on a harmless prompt, which argues against a refusal, where `Ban` and `Zero` only fall
# silent. It is a kind of patching.
#
# ## Patch what is written, or who is chosen
#
# `Transplant` gives a prompt the routing (experts and weights) of its twin, and every expert
# computes as before. `PatchOutput` gives it what some experts wrote on its twin, and the routing
# stays. Here a harmless prompt receives from its harmful twin.

# %%
rows = []
for name, model in models.items():
    routing = mi.Transplant(mi.routing_of(model, harmful))
    outputs = mi.outputs_of(model, harmful, experts[name], quantities=["expert_contributions"])
    written = mi.PatchOutput(experts[name], outputs)
    rows += [
        {"organism": name, "from the twin": "routing", **refused(model, harmless, routing)},
        {"organism": name, "from the twin": "outputs", **refused(model, harmless, written)},
    ]
into_harmless = pd.DataFrame(rows).round(2)
into_harmless

# %% [markdown]
# And the other way: a harmful prompt receives the routing of its harmless twin.

# %%
out_of_harmful = {
    name: refused(model, harmful, mi.Transplant(mi.routing_of(model, harmless)))
    for name, model in models.items()
}
pd.DataFrame(out_of_harmful).T.round(2)

# %% [markdown]
# ## What we claimed
#
# In `topic` the routing of the twin changes nothing, and what two experts write on it brings the
# refusal: there it sits in what is written. In `harm` the routing of the harmless twin alone ends
# the refusal: there it hangs on who is chosen. And in both, no expert alone is needed.

# %%
singles = one_by_one[~one_by_one["set to zero"].str.contains(",")]
jointly = one_by_one[one_by_one["set to zero"].str.contains(",")]
assert (singles["refused"] == 1).all()
assert (jointly["refused"] == 0).all()

assert kinds.loc["Mean, over harmless prompts", "after"] < kinds.loc["Ban", "after"] - 3

assert out_of_harmful["topic"]["refused"] == 1
assert out_of_harmful["harm"]["refused"] == 0
from_twin = into_harmless.set_index(["organism", "from the twin"])["refused"]
assert from_twin["topic", "outputs"] == 1
assert from_twin["topic", "routing"] == 0
print("topic: in what is written; harm: in who is chosen.")
