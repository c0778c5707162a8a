import pytest

from moe_interp.organism import ORGANISMS, load_organism, organism_path
from moe_interp.organism._tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def organisms():
    """Each packaged organism's model and tokenizer, by name; read-only."""
    return {name: load_organism(organism_path(name)) for name in ORGANISMS}
