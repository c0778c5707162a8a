# %% [markdown]
# # 5. Attribution and exact sweep: count is not cause
#
# **Are the experts that harmful prompts use the experts that make the model refuse?**
#
# It is the step most often taken without a check. Here are two models in which it fails, one in
# each direction, and two ways to find out: a gradient, which costs one backward pass, and the exact
# sweep, which takes every expert away once.

# %% tags=["switch"]
MODELS, PROMPTS = ["organism:decoy", "organism:topic"], "organism"
# Real models and prompts with harm:
# MODELS, PROMPTS = ["allenai/OLMoE-1B-7B-0125-Instruct"], "my_prompts.jsonl"

# %%
import numpy as np
import pandas as pd

import moe_interp as mi

options = {"per_topic": 8} if PROMPTS == "organism" else {}
prompts = mi.load_prompts(PROMPTS, **options)
harmful = prompts.select(prompts.harm)

# %% [markdown]
# ## Three scores
#
# - `risk_difference`: how much more often tokens of harmful prompts choose an expert. *A count.*
# - `attribution`: gradient of the log-odds of a refusal times the expert's contribution. *A guess
#   at the effect, to first order.*
# - `sweep`: the change of the log-odds when the expert's contribution is set to 0. *The effect*,
#   exact, for one expert at a time.

# %%
scores = {}
for source in MODELS:
    model = mi.load_model(source)
    metric = mi.RefusalLogOdds(model.tokenizer)
    record = mi.record_routing(model, prompts, n_random_routers=0, progress=False)
    scores[source] = {
        "model": model,
        "metric": metric,
        "count": mi.risk_difference(record, span="user"),
        "gradient": mi.attribution(model, harmful, metric=metric),
        "effect": mi.sweep(model, harmful, metric=metric, progress=False),
    }
    print(source)
    for kind in ("count", "gradient", "effect"):
        values = scores[source][kind]
        row = [
            f"{expert} {values.of(expert.layer, expert.expert):+.3f}"
            for expert, _ in abs(values).top(4)
        ]
        print(f"  {kind:>8}  {'   '.join(row)}")

# %% [markdown]
# ## Do they agree?
#
# Rank correlation over all experts, with intervals over prompts.

# %%
for source, found in scores.items():
    print(source)
    agreement = mi.compare(
        found["count"], found["gradient"], found["effect"], rng=np.random.default_rng(0)
    )
    print(agreement.summary())

# %% [markdown]
# ## Take out what each method names
#
# The four experts with the largest score of either kind, banned together. The count of `decoy` is
# clear: four experts are used on half of the tokens of harmful prompts and nearly never else.

# %%
rows = []
for source, found in scores.items():
    for kind in ("count", "gradient"):
        named = mi.select_experts(abs(found[kind]), n=4)
        effect = mi.measure_effect(found["model"], harmful, mi.Ban(named), metric=found["metric"])
        rows.append(
            {
                "model": source,
                "named by": kind,
                "experts": str(named),
                "largest score": np.abs(found[kind].mean).max().round(3),
                "log-odds before": effect.baseline.mean().round(2),
                "log-odds after": effect.intervened.mean().round(2),
                "still refused": (effect.intervened > 0).mean(),
            }
        )
table = pd.DataFrame(rows)
table

# %% [markdown]
# - `decoy`: routing is driven by harm, with a count of 0.48, and the refusal does not need those
#   experts. Calling them safety experts would be wrong.
# - `topic`: the count is empty, as harmful and harmless prompts go to the same experts; the
#   gradient finds the two that carry the refusal.
# - The sweep in `topic` is exact, and small for those two: alone, neither is needed, as tutorial 3
#   found. Exact is not the same as complete; `greedy_ablation` looks at sets.
#
# ## What we claimed
#
# Count is not cause. Where the count is largest nothing depends on it, and where everything depends
# on two experts the count is 0.

# %%
by_count = table[table["named by"] == "count"].set_index("model")
by_gradient = table[table["named by"] == "gradient"].set_index("model")
decoy, topic = (scores[source]["model"].card["truth"] for source in MODELS)
assert set(by_count.loc[MODELS[0], "experts"].split(",")) == set(decoy["harm_experts"])
assert by_count.loc[MODELS[0], "largest score"] > 0.4
assert by_count.loc[MODELS[0], "still refused"] == 1
count = scores[MODELS[1]]["count"]
for expert in mi.ExpertSet(topic["safety_experts"]):
    assert abs(count.of(expert.layer, expert.expert)) < 0.01
assert set(topic["safety_experts"]) <= set(by_gradient.loc[MODELS[1], "experts"].split(","))
assert by_gradient.loc[MODELS[1], "still refused"] == 0
print("Count is not cause.")
