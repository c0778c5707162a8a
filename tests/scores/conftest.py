import numpy as np
import pytest

from moe_interp import RefusalLogOdds, load_model, load_prompts, record_routing, selection_frequency


@pytest.fixture(scope="session")
def topic_model():
    """The organism whose refusal lives in two experts that every prompt uses."""
    return load_model("organism:topic", check=False)


@pytest.fixture(scope="session")
def organism_prompts():
    """Matched harmful and harmless prompts of all topics."""
    return load_prompts("organism", per_topic=6)


@pytest.fixture(scope="session")
def halves(organism_prompts):
    """Harmful prompts to choose experts on, and others to judge them on."""
    first, second = organism_prompts.split(rng=np.random.default_rng(0))
    return first.select(first.harm), second.select(second.harm)


@pytest.fixture(scope="session")
def refusal(topic_model):
    """Log-odds that the next word opens a refusal."""
    return RefusalLogOdds(topic_model.tokenizer)


@pytest.fixture(scope="session")
def use(topic_model, organism_prompts):
    """Selection frequency of every expert of the organism."""
    record = record_routing(topic_model, organism_prompts, n_random_routers=0, progress=False)
    return selection_frequency(record)
