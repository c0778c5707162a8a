"""Contributions add up to the experts' output, and `output_from` makes the block's output of them.

What they are compared with is what the modules of a plain Hugging Face run returned.
"""

import nnsight
import pytest
import torch
import zoo_runs
from zoo_runs import FAMILIES

pytestmark = pytest.mark.conformance

CASES = [
    pytest.param(family, implementation, id=f"{family}-{zoo_runs.case_id(implementation)}")
    for family in FAMILIES
    for implementation in zoo_runs.implementations(family)
]
DOUBLE = 1e-12
# Families that compute in float32 inside, whatever the dtype of their weights.
FLOAT32_INSIDE = {}
BRAIN = 1e-2
HALF = 1e-3


def rebuilt(family, implementation, dtype):
    """Of each layer the sum of contributions and the output made of them."""
    model = zoo_runs.wrapped(family, implementation, dtype)
    layers = tuple(model.moe.values())
    with torch.no_grad(), model.nnsight.trace(zoo_runs.prompts(family)):
        found = nnsight.save({layer.layer: sums(layer) for layer in layers})
    return found


def sums(layer):
    """In a trace: contributions added up, and what the block would output for them."""
    names = ("expert_contributions", "shared_output")
    read = layer.read(*(name for name in names if name in layer.offered))
    contributions, shared = read["expert_contributions"], read.get("shared_output")
    return contributions.sum(2), layer.output_from(contributions, shared)


def assert_rebuilt(family, implementation, dtype, tolerance):
    """Both sums are what the modules returned."""
    expected = zoo_runs.plain_prefill(family, implementation, dtype).calls
    for layer, (total, output) in rebuilt(family, implementation, dtype).items():
        seen = expected[layer][0].values
        assert zoo_runs.distance(total, seen["routed_output"]) <= tolerance
        assert output.shape == seen["output"].shape
        assert zoo_runs.distance(output, seen["output"]) <= tolerance


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_float32_sums_rebuild_the_block(family, implementation):
    assert_rebuilt(family, implementation, torch.float32, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_sums_rebuild_the_block(family):
    implementation = zoo_runs.implementations(family)[0]
    assert_rebuilt(family, implementation, torch.float64, FLOAT32_INSIDE.get(family, DOUBLE))


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_sums_rebuild_the_block(family):
    assert_rebuilt(family, zoo_runs.implementations(family)[-1], torch.bfloat16, BRAIN)


@pytest.mark.parametrize("family", FAMILIES)
def test_float16_sums_rebuild_the_block(family):
    assert_rebuilt(family, zoo_runs.implementations(family)[-1], torch.float16, HALF)
