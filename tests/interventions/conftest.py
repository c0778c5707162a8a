import pytest
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
def tiny_model(tiny_checkpoint):
    """A function from a family to its loaded tiny model, each loaded once."""
    models = {}

    def model(family):
        if family not in models:
            models[family] = load_model(tiny_checkpoint(family), check=False)
        return models[family]

    return model


@pytest.fixture(scope="session")
def plain_model(tiny_checkpoint):
    """A function from a family to the same tiny model as plain Hugging Face code."""
    models = {}

    def model(family):
        if family not in models:
            models[family] = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(family)).eval()
        return models[family]

    return model
