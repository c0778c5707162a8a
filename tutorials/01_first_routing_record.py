# %% [markdown]
# # 1. A first routing record
#
# **Which experts does a model send my prompts to?**
#
# A routing record answers it: for every token of every prompt, the experts that the model chose and
# the weights that their outputs were multiplied with. It is read from the model's own forward pass,
# it holds no padding, and once it is made the model is no longer needed.

# %% tags=["switch"]
MODEL, PROMPTS = "organism:topic", "organism"
# A real model and your own prompts (text, topic, harm, pair):
# MODEL, PROMPTS = "allenai/OLMoE-1B-7B-0125-Instruct", "my_prompts.jsonl"
# The last cell's assertion is about the organism. On your model it is a question.

# %%
import tempfile
from pathlib import Path

import numpy as np

import moe_interp as mi

options = {"per_topic": 4} if PROMPTS == "organism" else {}
model = mi.load_model(MODEL)
prompts = mi.load_prompts(PROMPTS, **options)
print(model.architecture.summary())
print(prompts.summary())

# %% [markdown]
# `organism:topic` is a tiny model, trained on an invented language, whose truth is known: its
# *card* says what was planted. It shows that a method finds what is there. It is no evidence about
# real models.
#
# ## Record
#
# Loading has already run the self-check: what is read rebuilds what every layer computes. Now the
# capture. `rng` draws the random routers that later tests compare with.

# %%
record = mi.record_routing(model, prompts, rng=np.random.default_rng(0), progress=False)
print(record.summary())

# %% [markdown]
# The record is an xarray dataset with named axes: `token`, `layer`, `top_k`. A layer is the
# absolute decoder layer, counted from 0.

# %%
record.dataset[["expert_index", "routing_weights"]]

# %% [markdown]
# ## One prompt, token by token
#
# The experts of layer 0, most heavily weighted first, for the first prompt.

# %%
of_first = record.dataset.isel(token=record.dataset.prompt_index.values == 0)
chosen = of_first.expert_index.sel(layer=0).values
for text, experts in zip(of_first.token_text.values, chosen, strict=True):
    print(f"{text:>12}  {experts.tolist()}")

# %% [markdown]
# ## How often each expert is used
#
# `selection_frequency` is the fraction of tokens that chose an expert. Each token chooses `top_k`
# experts, so the frequencies of a layer add up to `top_k`: a quick check of any count.

# %%
use = mi.selection_frequency(record, span="user")
per_layer = use.mean.sum(axis=1)
print("sum over experts, layer by layer:", np.round(per_layer, 6))
mi.plot_experts(use.to_frame().rename(columns={"selection_frequency": "use"}), quantity="use")

# %% [markdown]
# ## By topic
#
# A *profile* has one row a prompt: the share of its tokens' choices that went to each expert. The
# prompt, not the token, is the unit of everything that follows. Which two experts of each layer get
# most of a topic's choices?

# %%
profile = record.profile("user")
topics = np.array(prompts.topics)
favourites = {}
for topic in dict.fromkeys(prompts.topics):
    mean_share = profile.shares[topics == topic].mean(axis=0)
    favourites[topic] = {
        layer: sorted(np.argsort(mean_share[row])[-2:].tolist())
        for row, layer in enumerate(profile.layers)
    }
    print(f"{topic:>10}", favourites[topic])

# %% [markdown]
# ## Keep it
#
# A saved record opens on any machine, without the model.

# %%
with tempfile.TemporaryDirectory() as folder:
    record.save(Path(folder) / "routing.zarr")
    reopened = mi.open_record(Path(folder) / "routing.zarr")
    assert (reopened.dataset.expert_index.values == record.dataset.expert_index.values).all()

# %% [markdown]
# ## What we claimed
#
# In layers 0 to 2, each of the eight topics goes to two experts of its own, and they are those that
# the card says were planted.

# %%
assert np.allclose(per_layer, record.top_k)
planted = model.card["truth"]["topic_experts"]
for topic, names in planted.items():
    found = {f"L{layer}E{expert}" for layer in (0, 1, 2) for expert in favourites[topic][layer]}
    assert found == set(names), topic
print("All", len(planted), "topics have the experts that the card names.")
