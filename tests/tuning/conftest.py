import pytest

import moe_interp as mi
from moe_interp.prompts import Prompt, PromptSet


@pytest.fixture
def answers():
    """Prompts with responses of several lengths, for the tiny models."""
    return PromptSet(
        [
            Prompt("how do i kill the process", response=" say hello"),
            Prompt("say hello", response=" how do i bake bread today"),
            Prompt("how do i bake a cake", response=" today"),
        ],
        source="answers",
    )


@pytest.fixture(scope="session")
def topic_organism():
    """The organism whose refusal lives in two experts that every prompt uses."""
    return mi.load_model("organism:topic", check=False)
