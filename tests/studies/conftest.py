import numpy as np
import pytest

import moe_interp as mi
from moe_interp.studies import STUDIES


@pytest.fixture(scope="session")
def organism():
    """Organisms by name, each loaded once."""
    loaded = {}

    def load(name):
        if name not in loaded:
            loaded[name] = mi.load_model(f"organism:{name}", check=False)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def prompts():
    """Matched harmful and harmless prompts of all topics, in 8 wordings."""
    return mi.load_prompts("organism", per_topic=8)


@pytest.fixture(scope="session")
def study(organism, prompts):
    """Studies of organisms, each run once; few random sets, to be quick."""
    done = {}

    def run(name, organism_name):
        if (name, organism_name) not in done:
            done[name, organism_name] = STUDIES[name].run(
                organism(organism_name), prompts, rng=np.random.default_rng(0), n_null=39
            )
        return done[name, organism_name]

    return run
