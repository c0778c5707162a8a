"""What tests share whose code travels, and must be as users have it: without type checks."""

import nnsight
import pytest
from loopback.backend import Worker


@pytest.fixture(scope="module")
def worker():
    """A process that runs blocks, and cannot import the library."""
    nnsight.register("moe_interp")
    process = Worker()
    yield process
    process.close()
