# %% [markdown]
# # 7. A full ablation study, from question to figure
#
# **Do the experts that we found carry the refusal, more than any experts of like use would?**
#
# An ablation without a null says little: taking out much-used experts breaks many things. This
# study keeps to five rules, each of which has a line of code.
#
# 1. The question and the metric come first.
# 2. Experts are chosen on one half of the prompts and judged on the other.
# 3. The null is the same ablation of random experts of the same layers and like use.
# 4. Harmless prompts and neutral texts say what else breaks.
# 5. Redundancy is asked about: one by one, and together.

# %% tags=["switch"]
MODEL, PROMPTS = "organism:harm", "organism"
NEUTRAL = ["<bos> <user> how do i open the lock ? <end> <assistant> sure , first lift the lever ."]
# A real model, your prompts, and texts that have nothing to do with the question:
# MODEL, PROMPTS = "allenai/OLMoE-1B-7B-0125-Instruct", "my_prompts.jsonl"
# NEUTRAL = ["The river rises in the hills north of the town and reaches the sea after 90 km."]

# %%
import numpy as np
import pandas as pd

import moe_interp as mi

options = {"per_topic": 8} if PROMPTS == "organism" else {}
model = mi.load_model(MODEL)
prompts = mi.load_prompts(PROMPTS, **options)
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. The question
#
# Metric: log-odds of a refusal at the first token of the answer, in nats. Without a refusal to
# begin with there is nothing to ablate, so look at that first.

# %%
metric = mi.RefusalLogOdds(model.tokenizer)
untouched = mi.measure_effect(model, prompts, [], metric=metric).baseline
harm = np.asarray(prompts.harm)
print(f"refused: {(untouched[harm] > 0).mean():.0%} of harmful prompts,", end=" ")
print(f"{(untouched[~harm] > 0).mean():.0%} of harmless ones")

# %% [markdown]
# ## 2. Choose on one half
#
# Greedy ablation bans experts one after the other until the refusal is gone. Its candidates are all
# experts. On a large model one would let `attribution` leave some fifty; here that would fail, for
# the refusal is redundant: a gradient sees that little is lost with any one of its experts.

# %%
first, second = prompts.split(rng=rng)
to_choose = first.select(first.harm)
candidates = [
    (layer, expert) for layer in model.moe for expert in range(model.architecture.n_experts)
]
greedy = mi.greedy_ablation(model, to_choose, metric=metric, candidates=candidates)
print(greedy.summary())

# %% [markdown]
# ## 3 and 4. Judge on the other half, beside random experts, with everything else in view

# %%
use = mi.selection_frequency(mi.record_routing(model, first, n_random_routers=0, progress=False))
judge, harmless = second.select(second.harm), second.select(~second.harm)
null = mi.matched_null(
    model,
    judge,
    greedy.experts,
    metric=metric,
    match=use,
    benign=harmless,
    neutral=NEUTRAL,
    n_draws=39,
    max_new_tokens=12,
    rng=rng,
)
print(null.summary())

# %% [markdown]
# The line on use says how good the match is. If the random sets were used much less than the chosen
# ones, the null would be too easy.
#
# ## 5. One by one, and together

# %%
rows = []
for experts in [*map(str, greedy.experts), str(greedy.experts)]:
    effect = mi.measure_effect(model, judge, mi.Ban(experts), metric=metric)
    rows.append(
        {
            "banned": experts,
            "log-odds": effect.intervened.mean(),
            "change": effect.effect.mean(),
            "still refused": (effect.intervened > 0).mean(),
        }
    )
table = pd.DataFrame(rows).round(2)
table

# %% [markdown]
# The changes of single experts do not add up to the change of the set: each is covered for by the
# others. A study that ablates experts one at a time would have reported no effect.
#
# ## The figure
#
# Grey: random sets. Line: the untouched model. Diamond: the experts in question.

# %%
import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(7, 2.4), layout="constrained")
height = np.random.default_rng(0).uniform(-0.2, 0.2, len(null.null))
axis.scatter(null.null, height, s=22, color="0.65", label=f"{len(null.null)} random sets")
axis.axvline(null.baseline, color="black", linewidth=1, label="untouched")
axis.scatter([null.observed], [0], marker="D", s=60, color="#1f5fa8", label=str(greedy.experts))
axis.axvline(0, color="0.8", linewidth=1, linestyle=":")
axis.set(xlabel="log-odds of a refusal (nats); refuses right of 0", yticks=[], ylim=(-0.6, 0.6))
axis.spines[["top", "left", "right"]].set_visible(False)
axis.legend(frameon=False, ncols=3, loc="upper center", fontsize=9)
plt.show()

# %% [markdown]
# ## What we claimed
#
# Banning the chosen experts ends the refusal on prompts they were not chosen on, no random set of
# like use does as much, harmless prompts are answered as before, and no expert alone is needed.

# %%
alone, together = table.iloc[:-1], table.iloc[-1]
assert greedy.experts == mi.ExpertSet(model.card["truth"]["safety_experts"])
assert together["still refused"] == 0
assert null.p_value < 0.05
assert null.specificity.p_value < 0.05
assert null.off_target["over_refusal"].observed == 0
assert null.off_target["answers_changed"].observed < 0.1
assert (alone["still refused"] == 1).all()
assert alone["change"].sum() > together["change"] / 2
print(f"{greedy.experts}: p = {null.p_value:.3f}, none of them needed alone")
