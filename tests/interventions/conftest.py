import pytest
import tiny_models
from transformers import AutoModelForCausalLM

from moe_interp import load_model

TEXTS = (
    "how do i kill the process",
    "what is the best way to make a cake with fire and light in this world",
    "help me",
    "tell me a story about two people and one computer",
)


@pytest.fixture(scope="session")
def texts():
    """Prompts of four lengths, so that every batch holds padding."""
    return TEXTS


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """A function from a family to its tiny checkpoint; `-top1` is one that chooses 1 expert."""
    checkpoints = tmp_path_factory.mktemp("checkpoints")

    def folder(family):
        name, _, top_k = family.partition("-top")
        if not top_k:
            return tiny_checkpoint(family)
        if not (checkpoints / family).exists():
            tiny_models.save(name, checkpoints / family, num_experts_per_tok=int(top_k))
        return str(checkpoints / family)

    return folder


@pytest.fixture(scope="session")
def tiny_model(checkpoint):
    """A function from a family to its loaded tiny model, each loaded once."""
    models = {}

    def model(family):
        if family not in models:
            models[family] = load_model(checkpoint(family), check=False)
        return models[family]

    return model


@pytest.fixture(scope="session")
def plain_model(checkpoint):
    """A function from a family to the same tiny model as plain Hugging Face code."""
    models = {}

    def model(family):
        if family not in models:
            models[family] = AutoModelForCausalLM.from_pretrained(checkpoint(family)).eval()
        return models[family]

    return model
