"""Several invokes in one trace, for every family: each sees and edits its own tokens only."""

import nnsight
import pytest
import torch
import zoo_runs
from tiny_models import TEXTS
from zoo_runs import FAMILIES

from moe_interp.models import read_layers

pytestmark = pytest.mark.conformance

CASES = [
    pytest.param(family, implementation, id=f"{family}-{zoo_runs.case_id(implementation)}")
    for family in FAMILIES
    for implementation in zoo_runs.implementations(family)
]
# `batched_mm` multiplies each token by itself. The others run expert after expert on a CPU: an edit
# changes how many tokens an expert is given, and a matrix of another size rounds otherwise. At
# worst that was 2.3e-6 of the logits in float32 (qwen3_next), and in float64 it was nothing.
FLOAT32 = 5e-6
FLOAT64 = 1e-12
# Families that do not run in float64, or have a step in float32 there.
NOT_IN_FLOAT64 = {
    *zoo_runs.NOT_IN_FLOAT64,
    *zoo_runs.FLOAT32_INSIDE,
    "beam",  # Its experts, though their slots add up exactly.
    "granitemoe_swa",  # NaN in padded rows, in transformers too.
}
READING = 1e-6


def ban(layer):
    """Take experts out, half of each group where there are groups."""
    layer.ban([1, 2, 5, 6])


def zero(layer):
    """Silence half of the experts."""
    layer.zero(range(layer.n_experts // 2))


def scale_slots(layer):
    """Scale what each expert adds, each by a factor of its own, or a norm would undo it."""
    contributions = layer.expert_contributions
    factors = torch.arange(2, 2 + layer.top_k).to(contributions.dtype)
    layer.expert_contributions = contributions * factors[:, None]


def empty(layer):
    """Let the block write nothing."""
    layer.output = 0 * layer.output


EDITS = (ban, zero, scale_slots, empty)


def prompts(family):
    """Each prompt of its own; a decoder's first tokens beside it where there is one."""
    batches = [zoo_runs.prompts(family, (text,)) for text in TEXTS]
    return [{k: v for k, v in batch.items() if k != "position_ids"} for batch in batches]


def logits_of_both(model, family, edit=None):
    """The logits of two invokes, of which the second edits all layers."""
    layers = tuple(model.moe.values())
    first, second = prompts(family)
    with torch.no_grad(), model.nnsight.trace() as tracer:
        with tracer.invoke(first):
            own = nnsight.save(model.nnsight.output.logits)
        with tracer.invoke(second):
            if edit is not None:
                for layer in layers:
                    edit(layer)
            other = nnsight.save(model.nnsight.output.logits)
    return own, other


def leaks(family, implementation, dtype, edits=EDITS):
    """How far edits of one invoke move the other's logits, at worst; each moves its own."""
    model = zoo_runs.wrapped(family, implementation, dtype)
    own, other = logits_of_both(model, family)
    worst = 0.0
    for edit in edits:
        found, edited = logits_of_both(model, family, edit)
        assert zoo_runs.distance(edited, other) > 1e-4, edit.__name__
        worst = max(worst, zoo_runs.distance(found, own))
    return worst


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_an_edit_stays_in_its_invoke(family, implementation):
    bound = 0.0 if implementation == "batched_mm" else FLOAT32
    assert leaks(family, implementation, torch.float32) <= bound


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NOT_IN_FLOAT64])
def test_what_reaches_the_other_invoke_is_rounding(family):
    implementation = zoo_runs.implementations(family)[0]
    assert leaks(family, implementation, torch.float64, (ban,)) <= FLOAT64


@pytest.mark.parametrize("family", FAMILIES)
def test_an_invoke_reads_its_own_tokens(family):
    model = zoo_runs.wrapped(family, zoo_runs.implementations(family)[-1])
    layers, names = tuple(model.moe.values()), zoo_runs.offered(model)
    first, second = prompts(family)
    whole, _ = zoo_runs.read_all(model, zoo_runs.invoked_together(family), names)
    with torch.no_grad(), model.nnsight.trace() as tracer:
        with tracer.invoke(first):
            found = nnsight.save(read_layers(layers, names))
        with tracer.invoke(second):
            others = nnsight.save(read_layers(layers, names))
    for row, reads in enumerate((found, others)):
        for layer, read in reads.items():
            for name, value in read.items():
                expected = whole[layer][name][row : row + 1]
                assert value.shape == expected.shape
                assert zoo_runs.distance(value, expected) <= READING, (layer, name)
            assert torch.equal(read["expert_index"], whole[layer]["expert_index"][row : row + 1])
