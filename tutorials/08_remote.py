# %% [markdown]
# # 8. Models on a server
#
# **Can I study a model that does not fit on my machine, and is what comes back what I would have
# computed myself?**
#
# An NDIF server runs the model. `load_model(..., remote=True)` builds it here without weights, and
# whatever is then run with it runs there: captures, interventions, sweeps, scores. To see whether
# it comes out the same, this tutorial uses a model that is small enough to be here as well.

# %% tags=["switch"]
import os

MODEL = "organism/topic"
SERVER = True if "NDIF_HOST" in os.environ else None
# A real model on the real server, with the key of `nnsight login` or of NDIF_API_KEY:
# MODEL, SERVER = "allenai/OLMoE-1B-7B-0125-Instruct", True
# Then leave out what compares with the model here: it is too large for that.

# %%
import contextlib
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

import moe_interp as mi
from moe_interp.errors import UnsupportedOnServerError
from moe_interp.remote import VersionDifferenceWarning

running = contextlib.ExitStack()
if SERVER is None:
    # No server is named, so a stand-in is started: it speaks NDIF's protocol, and runs what it is
    # sent in a process of its own, which cannot import this library.
    tests = next((path for path in (Path("tests"), Path("../tests")) if path.is_dir()), None)
    if tests is None:
        raise SystemExit("No server: set NDIF_HOST, or run this in the library's repository.")
    sys.path.insert(0, str(tests))
    from stand_in import stand_in

    weights = Path(mi.__file__).parent / "organism" / "weights" / "topic"
    SERVER = running.enter_context(stand_in({MODEL: weights})).url

# %% [markdown]
# ## Load
#
# Only the configuration and the tokenizer are read here. The self-check runs over there, in one
# job: what is read rebuilds what the server's model computes. If the server has other releases of
# what matters than this machine, a warning names them before anything is run.

# %%
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always", VersionDifferenceWarning)
    there = mi.load_model(MODEL, remote=SERVER)
here = mi.load_model("organism:topic")
print(there.architecture.summary())
for each in said:
    print(each.message)

# %% [markdown]
# ## Capture
#
# Nothing but token ids goes up. Experts come back as bytes and their weights at half precision,
# reduced and packed on the server; no logits over the vocabulary travel.

# %%
prompts = mi.load_prompts("organism", per_topic=16)
quantities = ("expert_index", "routing_weights")
traffic = there.connection.traffic
before = traffic.received_bytes
record = mi.record_routing(there, prompts, quantities=quantities, progress=False)
received = traffic.received_bytes - before

chosen = record.dataset.expert_index
print(record.summary())
print(f"{received / len(prompts):.0f} bytes a prompt came back")
print(f"{3 * chosen.size / len(prompts):.0f} would be a byte a choice and two for its weight")

# %%
expected = mi.record_routing(here, prompts, quantities=quantities, progress=False)
same = float((chosen.values == expected.dataset.expert_index.values).mean())
print(f"{same:.2%} of the choices are those that are made here")

# %% [markdown]
# ## Intervene
#
# The two experts that the organism's card names are banned on the server. The metric is made there,
# too: a number a prompt comes back.

# %%
harmful = prompts.select(prompts.harm)
openers = here.card["refusal"]["openers"]
refusal = mi.RefusalLogOdds(here.tokenizer, openers=openers)
banned = mi.Ban("L3E8,L3E9")
effects = [mi.measure_effect(m, harmful, banned, metric=refusal).effect for m in (there, here)]
difference = float(np.abs(effects[0] - effects[1]).max())
print(
    f"log-odds of a refusal change by {effects[0].mean():.1f}, there; {effects[1].mean():.1f}, here"
)

# %% [markdown]
# Text, under the same intervention:

# %%
one = [harmful.texts[0]]
for interventions in ((), banned):
    print(mi.run(there, one, interventions, max_new_tokens=8).texts[0])

# %% [markdown]
# ## Leave, and come back
#
# A long capture need not be waited for. It is submitted, and collected later, from any process:
# `moe-interp jobs` lists what is under way. What the server lost meanwhile is asked for again.

# %%
with tempfile.TemporaryDirectory() as folder:
    job = mi.submit_routing(there, prompts, folder=Path(folder) / "job")
    name = job.folder
    collected = mi.open_job(name).wait(there, timeout=600)
print(collected.summary())

# %% [markdown]
# ## What cannot be done there
#
# What needs the weights themselves is refused by name, before anything is sent. (So is what needs
# gradients, if the key is not trusted and runs in the server's sandbox.)

# %%
try:
    mi.tune_experts(there, "L3E8", prompts, seed=0)
except UnsupportedOnServerError as error:
    print(error)

# %% [markdown]
# ## The claim
#
# What comes back is what would have been computed here, it is small, and the ban of the two planted
# experts ends refusals as it does here.

# %%
running.close()
print(traffic)
assert same > 0.9999
assert difference < 1e-3
assert effects[0].mean() < -5
assert received <= 1.2 * 3 * chosen.size
again = collected.dataset.expert_index.values
assert (again == chosen.values).mean() > 0.9999
