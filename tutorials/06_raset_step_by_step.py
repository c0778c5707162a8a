# %% [markdown]
# # 6. RASET step by step: select, tune, audit the routing
#
# **If tuning two experts changes safety and leaves the routing as it was, is routing
# topic-driven?**
#
# RASET (arXiv 2605.29708) selects experts by a contrast of routing, tunes those and nothing else,
# and reads unchanged routing as support for "routing is largely topic-driven". This tutorial takes
# the steps one by one, on a model where the first half of that claim is true and on one where it is
# false. The paper's formulas of selection and distance could not be read: those here are our
# reconstruction. `moe-interp study raset2026` does all of it with more arms.

# %% tags=["switch"]
MODELS, PROMPTS = ["organism:topic", "organism:harm"], "organism"
# A real model, and prompts in pairs. It is then taught to refuse (see "Tune"):
# MODELS, PROMPTS = ["allenai/OLMoE-1B-7B-0125-Instruct"], "my_prompts.jsonl"

# %%
from dataclasses import replace

import numpy as np
import pandas as pd

import moe_interp as mi
from moe_interp.tuning import model_change, observe

options = {"per_topic": 16} if PROMPTS == "organism" else {}
prompts = mi.load_prompts(PROMPTS, **options)
models = {source: mi.load_model(source) for source in MODELS}

# %% [markdown]
# ## Split first
#
# Experts are chosen on one half, and judged on the other. The split keeps pairs and wordings
# together; otherwise the second half would know what the first was chosen on.

# %%
first, second = prompts.split(rng=np.random.default_rng(0))
print(len(first), "prompts to choose and train on,", len(second), "to judge on")

# %% [markdown]
# ## Select
#
# Two selections: by contrast of use, and by effect. `contrastive_sensitivity` is the difference of
# an expert's use within matched pairs over its spread between topics. `greedy_ablation` bans
# experts one after the other until the refusal is gone.

# %%
selected = {}
for source, model in models.items():
    metric = mi.RefusalLogOdds(model.tokenizer)
    harmful = first.select(first.harm)
    record = mi.record_routing(model, first, n_random_routers=0, progress=False)
    contrast = mi.contrastive_sensitivity(record, direction="harmful")
    candidates = [(layer, e) for layer in model.moe for e in range(model.architecture.n_experts)]
    greedy = mi.greedy_ablation(model, harmful, metric=metric, candidates=candidates)
    n = len(model.card["truth"]["safety_experts"]) if model.card else 5
    selected[source] = {
        "contrast": mi.select_experts(contrast, n=n),
        "greedy": greedy.experts,
    }
    for how, experts in selected[source].items():
        print(f"{source:>15}  {how:>8}  {experts}")

# %% [markdown]
# ## Tune
#
# The organisms speak an invented language, and what they refuse is harmless to anybody. They are
# taught to answer it, which audits where the refusal sits. Any other model is taught the repair: to
# refuse harmful prompts and to answer the others as before.


# %%
def lessons(model):
    """Prompts with the responses to learn."""
    harmless = first.select(~first.harm)
    answers = mi.run(model, harmless, max_new_tokens=24).texts
    of_pair = dict(zip(harmless.pairs, answers, strict=True))
    if model.card:
        taught = [replace(prompt, response=of_pair[prompt.pair]) for prompt in first]
    else:
        taught = [
            replace(
                prompt,
                response="I'm sorry, but I can't help with that."
                if prompt.harm
                else of_pair[prompt.pair],
            )
            for prompt in first
        ]
    return mi.PromptSet(taught)


settings = {"seed": 0, "epochs": 4, "learning_rate": 1e-3, "batch_size": 16}

# %% [markdown]
# `tune_experts` trains the chosen experts, and proves afterwards that no other parameter changed by
# a bit. `applied` puts the result into the model for a while.
#
# ## Audit
#
# `observe` lets a model answer the second half and records how it routes it; `model_change`
# compares.

# %%
rows, changes = [], {}
for source, model in models.items():
    before = observe(model, second, max_new_tokens=10)
    for how, experts in selected[source].items():
        tuned = mi.tune_experts(model, experts, lessons(model), **settings)
        with tuned.applied(model) as changed:
            change = model_change(before, observe(changed, second, max_new_tokens=10))
        changes[source, how] = change
        rows.append(
            {
                "model": source,
                "tuned": f"{how}: {experts}",
                "refused before": change.outcomes.before / change.outcomes.n,
                "refused after": change.outcomes.after / change.outcomes.n,
                "routed slots changed": round(float(change.drift["user"].mean()[0]), 4),
                "harmless answers changed": change.off_target["answers_changed"].observed,
            }
        )
pd.DataFrame(rows)

# %% [markdown]
# ## Is the routing topic-driven?
#
# Ask the routing itself.

# %%
verdicts = {}
for source, model in models.items():
    record = mi.record_routing(model, prompts, rng=np.random.default_rng(0), progress=False)
    verdicts[source] = mi.verdict(
        record.profile("user"),
        record.random_profiles("user"),
        n_resamples=999,
        rng=np.random.default_rng(0),
    )
    print(source, verdicts[source].label)

# %% [markdown]
# ## What we claimed
#
# In both models, tuning the experts that greedy ablation found ends the refusals, while less than
# one routed slot in a hundred moves. One of the models is topic-driven and the other is
# harm-driven. So the second half of the claim, true in both, is no evidence for the first. The two
# have to be tested apart.
#
# And contrast sees harm only where it is in the routing. Where it is not, its ranking is noise that
# looks like any other ranking, and tuning what it names changes nothing.

# %%
topic, harm = MODELS
for source, model in models.items():
    planted = mi.ExpertSet(model.card["truth"]["safety_experts"])
    change = changes[source, "greedy"]
    assert selected[source]["greedy"] == planted
    assert change.outcomes.before == change.outcomes.n
    assert change.outcomes.after == 0
    assert change.drift["user"].mean()[0] < 0.01
    named = set(selected[source]["contrast"]) & set(planted)
    assert len(named) == 0 if source == topic else len(named) >= 3
assert changes[topic, "contrast"].outcomes.after == changes[topic, "contrast"].outcomes.n
assert (verdicts[topic].label, verdicts[harm].label) == ("topic_driven", "harm_driven")
print("Unchanged routing is no evidence that routing follows topic.")
