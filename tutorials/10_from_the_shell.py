# %% [markdown]
# # 10. From the shell
#
# **Can I do all of this without writing Python, and get the same numbers?**
#
# Every step has a command. This notebook runs them as you would type them.

# %% tags=["switch"]
MODEL, PROMPTS = "organism:topic", "organism"
# A real model and a file of prompts (text, topic, harm, pair):
# MODEL, PROMPTS = "allenai/OLMoE-1B-7B-0125-Instruct", "my_prompts.jsonl"

# %%
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import moe_interp as mi

folder = Path(tempfile.mkdtemp())
beside = Path(sys.executable).parent


def shell(line):
    """Run one line in the folder, show it and what it prints, and stop if it fails."""
    print("$", line)
    environment = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(
        shlex.split(line), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    print(ran.stdout)


# %% [markdown]
# ## What is this model?

# %%
shell(f"moe-interp models {MODEL}")

# %% [markdown]
# ## Which prompts?
#
# `prompts` reads a set, says what is in it, and writes it in our own layout, one prompt a line. It
# is a file of text: here we keep half of each topic.

# %%
shell(f"moe-interp prompts {PROMPTS} --show 2 --out all.jsonl")
lines = (folder / "all.jsonl").read_text(encoding="utf-8").splitlines()
kept = [line for number, line in enumerate(lines) if number % 64 < 32]
(folder / "prompts.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
print(len(kept), "of", len(lines), "prompts, such as", kept[0])

# %% [markdown]
# ## Record, once
#
# This is the only step that needs the model. The folder can be copied to another machine.

# %%
shell(f"moe-interp record --model {MODEL} --prompts prompts.jsonl --out routing.zarr")

# %% [markdown]
# ## Test it
#
# Verdict, controls, decoding, distances and power, from the record alone.

# %%
shell("moe-interp test routing.zarr --resamples 499 --out tests.json")

# %% [markdown]
# ## Use of every expert, as a table

# %%
shell("moe-interp score routing.zarr --show 3 --out use.csv")

# %% [markdown]
# ## Everything at once
#
# `moe-interp audit --model M --prompts P --out DIR` does all of it, selects experts, ablates them
# beside random ones, and writes `report.html`, one file that opens anywhere. `moe-interp study
# NAME` runs the analysis of a paper. Both take some tens of seconds here and are left to you:
#
# ```
# moe-interp audit --model organism:topic --prompts organism --out out/demo moe-interp study --list
# ```
#
# A mistake ends with one line that says what to do, and exit code 2; `moe-interp --traceback ...`
# shows where it came from.
#
# ## What we claimed
#
# The shell and Python say the same of one record: use of every expert, number by number, and the
# verdict.

# %%
record = mi.open_record(folder / "routing.zarr")
table = pd.read_csv(folder / "use.csv")
use = mi.selection_frequency(record, span="user").mean
assert np.allclose(table.sort_values(["layer", "expert"]).selection_frequency, use.ravel())
found = mi.verdict(
    record.profile("user"),
    record.random_profiles("user"),
    n_resamples=499,
    rng=np.random.default_rng(0),
)
assert found.label == "topic_driven"
assert found.label in (folder / "tests.json").read_text(encoding="utf-8")
print("The same, number by number:", found.label)
