"""Tiny models of random weights, some prompts of unlike lengths, and one record of them."""

import numpy as np
import pytest
import tiny_models

from moe_interp.capture import record_routing
from moe_interp.models import load_model
from moe_interp.prompts import Prompt, PromptSet

TEMPLATE = "{{ bos_token }} user {{ messages[0]['content'] }} {{ eos_token }}"


@pytest.fixture(scope="session")
def make_model():
    models = {}

    def make(model_type, **changes):
        key = (model_type, *sorted(changes.items()))
        if key not in models:
            tokenizer = tiny_models.build_tokenizer()
            tokenizer.chat_template = TEMPLATE
            built = tiny_models.build(model_type, **changes)
            models[key] = load_model(built, tokenizer=tokenizer, check=False)
        return models[key]

    return make


@pytest.fixture(scope="session")
def prompts():
    """Eight pairs in two topics; no two neighbours are of one length."""
    rng = np.random.default_rng(0)
    words = ("how", "do", "i", "kill", "a", "python", "process", "make", "cake", "steal", "car")
    return PromptSet(
        Prompt(
            " ".join(rng.choice(words, size=3 + (5 * row) % 11)),
            topic=("code", "home")[row // 2 % 2],
            harm=bool(row % 2),
            pair=f"pair {row // 2}",
        )
        for row in range(16)
    )


@pytest.fixture(scope="session")
def model(make_model):
    return make_model("olmoe")


@pytest.fixture(scope="session")
def record(model, prompts):
    rng = np.random.default_rng(0)
    return record_routing(model, prompts, rng=rng, n_random_routers=5, progress=False)
