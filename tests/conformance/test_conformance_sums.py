"""Contributions add up to the experts' output, and `output_from` makes the block's output of them.

What they are compared with is what the modules of a plain Hugging Face run returned.
"""

import nnsight
import pytest
import torch
import zoo_runs
from tiny_models import TEXTS
from zoo_runs import FAMILIES, FLOAT32_INSIDE, NOT_IN_FLOAT16, NOT_IN_FLOAT64

pytestmark = pytest.mark.conformance

CASES = [
    pytest.param(family, implementation, id=f"{family}-{zoo_runs.case_id(implementation)}")
    for family in FAMILIES
    for implementation in zoo_runs.implementations(family)
]
FLOAT32 = 1e-6
FLOAT64 = 1e-12
# The second number is for the block's output, which is some roundings further.
BFLOAT16 = (1e-2, 2e-2)
FLOAT16 = (1e-3, 2e-3)


def add_up(layer):
    """In a trace: the contributions' sum, and what the block would output for them."""
    names = ("expert_contributions", "shared_output")
    found = layer.read(*(name for name in names if name in layer.offered))
    contributions, shared = found["expert_contributions"], found.get("shared_output")
    return contributions.sum(2), layer.output_from(contributions, shared)


def distances(family, implementation, dtype=torch.float32, texts=TEXTS):
    """How far both are from what the modules returned, at worst over the layers."""
    batch = zoo_runs.prompts(family, texts)
    expected = zoo_runs.see(family, implementation, batch, dtype).calls
    model = zoo_runs.wrapped(family, implementation, dtype)
    layers = tuple(model.moe.values())
    with torch.no_grad(), model.nnsight.trace(batch):
        found = nnsight.save({layer.layer: add_up(layer) for layer in layers})
    pairs = [(found[layer], expected[layer][0].values) for layer in expected]
    return (
        max(zoo_runs.distance(total, seen["routed_output"]) for (total, _), seen in pairs),
        max(zoo_runs.distance(output, seen["output"]) for (_, output), seen in pairs),
    )


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_in_float32_they_rebuild_the_block(family, implementation):
    assert max(distances(family, implementation)) <= FLOAT32


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NOT_IN_FLOAT64])
def test_in_float64_they_rebuild_the_block(family):
    # Some families give NaN for a padded row in float64, in transformers too.
    found = distances(family, zoo_runs.implementations(family)[0], torch.float64, TEXTS[:1])
    assert max(found) <= FLOAT32_INSIDE.get(family, FLOAT64)


@pytest.mark.parametrize("family", FLOAT32_INSIDE)
def test_a_family_listed_for_float32_inside_has_it(family):
    found = distances(family, zoo_runs.implementations(family)[0], torch.float64, TEXTS[:1])
    assert max(found) > FLOAT64


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float64) for family in NOT_IN_FLOAT64),
        *((family, torch.float16) for family in NOT_IN_FLOAT16),
    ],
)
def test_a_family_listed_as_not_running_in_a_dtype_does_not(family, dtype):
    model = zoo_runs.plain(family, zoo_runs.implementations(family)[-1], dtype)
    with pytest.raises(RuntimeError, match="same dtype"):
        model(**zoo_runs.prompts(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_they_rebuild_the_block(family):
    assert_half(family, torch.bfloat16, BFLOAT16)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NOT_IN_FLOAT16])
def test_in_float16_they_rebuild_the_block(family):
    assert_half(family, torch.float16, FLOAT16)


def assert_half(family, dtype, bounds):
    """The sums are within the bounds for the experts' and for the block's output."""
    total, output = distances(family, zoo_runs.implementations(family)[-1], dtype)
    assert total <= bounds[0]
    assert output <= bounds[1]
