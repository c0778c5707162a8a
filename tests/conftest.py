import beartype  # noqa: F401, I001  Before nnsight, which mounts `save` on `object` and breaks it.
import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models are slower on several threads than on one, and there are two workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny_models
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A function from a family to the folder of its tiny random checkpoint, each written once."""
    folders = {}

    def folder(model_type):
        if model_type not in folders:
            place = tmp_path_factory.mktemp("checkpoints") / model_type
            folders[model_type] = tiny_models.save(model_type, place)
        return folders[model_type]

    return folder
