# %% [markdown]
# # 4. Topic or harm? Doing it wrong, then right
#
# **Does routing separate harmful from harmless prompts?**
#
# The obvious test counts: how many tokens of harmful prompts chose each expert, how many of
# harmless ones, chi-square. On the model of this tutorial, whose routing carries no harm at all, it
# gives p = 0. Then we do it right.

# %% tags=["switch"]
MODEL, PROMPTS = "organism:topic", "organism"
# A real model and prompts with topic and harm (pairs make it stronger):
# MODEL, PROMPTS = "allenai/OLMoE-1B-7B-0125-Instruct", "xstest_prompts.csv"

# %%
import warnings

import numpy as np
import pandas as pd

import moe_interp as mi

options = {"per_topic": 16} if PROMPTS == "organism" else {}
model = mi.load_model(MODEL)
prompts = mi.load_prompts(PROMPTS, **options)
record = mi.record_routing(model, prompts, rng=np.random.default_rng(0), progress=False)

# %% [markdown]
# ## A set of prompts as one finds them
#
# Harmful prompts in the wild are about other things than harmless ones. We draw such a set: most
# prompts of the first four topics are harmful, most of the last four harmless.

# %%
rng = np.random.default_rng(1)
topics, harm = np.array(prompts.topics), np.asarray(prompts.harm)
names = list(dict.fromkeys(prompts.topics))
expected = np.isin(topics, names[: len(names) // 2]) == harm
kept = np.flatnonzero(rng.random(len(prompts)) < np.where(expected, 0.85, 0.15))
as_found = record.select(kept).profile("user")
pd.DataFrame({"topic": topics[kept], "harmful": harm[kept]}).groupby("topic").harmful.agg(
    ["size", "mean"]
)

# %% [markdown]
# ## Wrong: tokens as samples
#
# `naive_token_test` exists to show this, and warns every time it is called.

# %%
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    naive = mi.naive_token_test(as_found)
print("It warns:", told[0].message)
print()
print(naive.summary())

# %% [markdown]
# p = 0 for a model in which harm moves nothing. Two mistakes add up:
#
# 1. **Harm is confounded with topic.** Other topics, other experts; harm was only along for the
#    ride.
# 2. **Tokens are not independent.** Prompts are. Here the prompts are not either: many share a
#    wording, and the wording carries the harm.
#
# ## Right: exchange what could have been exchanged
#
# `harm_test` swaps the labels of harm only where, under the null hypothesis, it would make no
# difference: within a topic, and for all prompts of a wording at once. It names the unit it took.

# %%
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    fair = mi.harm_test(as_found, n_resamples=1999, rng=np.random.default_rng(0))
print("It warns:", told[0].message)
print()
print(fair.summary())

# %% [markdown]
# ## Better: a design that separates the two
#
# The whole set is balanced: each topic has as many harmful prompts as harmless ones, in pairs. Then
# shares of variation can be told apart, and compared with routers drawn at random on the same
# hidden states. Without those, even a random router looks topic- or harm-driven: hidden states
# differ, and any router inherits that.

# %%
profile = record.profile("user")
found = mi.verdict(
    profile, record.random_profiles("user"), n_resamples=1999, rng=np.random.default_rng(0)
)
print(found.summary())

# %%
shares = mi.routing_shares(profile, random_profiles=record.random_profiles("user"))
mi.plot_decomposition(shares, factors=("topic", "harm"))

# %% [markdown]
# "Not significant" would not be "not there". The verdict also tests whether harm is *negligible*
# beside topic: its share is below a tenth of topic's, with an error of 5 %.

# %%
small = mi.negligible(profile)
print(small.summary())

# %% [markdown]
# ## The other way round
#
# Would the right method ever say "harm"? `organism:harm` routes by harm, on the same prompts.

# %%
other = mi.record_routing(
    mi.load_model("organism:harm"),
    mi.load_prompts("organism", per_topic=16),
    rng=np.random.default_rng(0),
    progress=False,
)
contrary = mi.verdict(
    other.profile("user"),
    other.random_profiles("user"),
    n_resamples=1999,
    rng=np.random.default_rng(0),
)
print(contrary.summary())

# %% [markdown]
# ## What we claimed
#
# Counting tokens of confounded prompts finds harm with p = 0 where there is none. The test that
# exchanges prompts finds nothing, the balanced design says topic-driven and harm negligible, and
# the same method does find harm where it was planted.

# %%
assert naive.p_value[-1] < 1e-6
assert fair.p_harm > 0.05
assert (found.label, contrary.label) == ("topic_driven", "harm_driven")
assert small.negligible
print(f"naive p = {naive.p_value[-1]:.0e}, fair p = {fair.p_harm:.2f}: {found.label}")
