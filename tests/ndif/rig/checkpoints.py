"""The models that the server runs: a tiny one of each way of routing, and a trained organism."""

import shutil
from pathlib import Path

import tiny_models

import moe_interp

SERVED = ("mixtral", "olmoe", "deepseek_v3", "gpt_oss")
ORGANISM = "organism/topic"


def write(folder):
    for model_type in SERVED:
        tiny_models.save(model_type, folder / "tiny" / model_type)
    kept = Path(moe_interp.__file__).parent / "organism" / "weights" / "topic"
    shutil.copytree(kept, folder / ORGANISM)
    return folder
