"""The tiny models that the server runs: one of each way of routing that NDIF is tested with."""

import tiny_models

SERVED = ("mixtral", "olmoe", "deepseek_v3", "gpt_oss")


def write(folder):
    for model_type in SERVED:
        tiny_models.save(model_type, folder / "tiny" / model_type)
    return folder
