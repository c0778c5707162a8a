"""Every family × experts implementation × phase × quantity against a plain Hugging Face run.

What a layer reads must be what the modules of the same model received and returned in a run of
transformers alone (`zoo_oracle`): in a left-padded batch of two prompts of different length, and at
every step of a generation of which one row ends early.
"""

import pytest
import torch
import zoo_runs
from zoo_runs import FAMILIES, QUANTITIES

pytestmark = pytest.mark.conformance

# Experts are called anew, one slot a row, and a matrix of another size may round otherwise; so may
# a score function on logits that are a part of a wider tensor. All else is bit-equal.
COMPUTED_ANEW = ("router_probs", "expert_outputs", "expert_contributions")
ROUNDING = 1e-6

CASES = [
    pytest.param(family, implementation, quantity, id=f"{family}-{shown}-{quantity}")
    for family in FAMILIES
    for implementation in zoo_runs.implementations(family)
    for shown in (zoo_runs.case_id(implementation),)
    for quantity in QUANTITIES
    if quantity not in zoo_runs.not_offered(family)
]


def assert_same(quantity, found, expected):
    """What was read is what the oracle saw."""
    assert found.shape == expected.shape
    if quantity in COMPUTED_ANEW:
        assert zoo_runs.distance(found, expected) <= ROUNDING
    else:
        assert torch.equal(found, expected)


def assert_one_row_ended(tokens, end):
    """One row has nothing but padding after its end, the other none at all."""
    ended = [row for row in tokens.tolist() if end in row[:-1]]
    assert len(ended) == 1
    assert set(ended[0][ended[0].index(end) + 1 :]) == {0}


class TestPrefill:
    @pytest.mark.parametrize(("family", "implementation", "quantity"), CASES)
    def test_a_forward_shows_what_the_modules_had(self, family, implementation, quantity):
        expected = zoo_runs.plain_prefill(family, implementation)
        found, logits = zoo_runs.traced_prefill(family, implementation)
        assert torch.equal(logits, expected.result.logits)
        assert list(found) == list(expected.all_calls())
        for layer, (call,) in expected.all_calls().items():
            assert_same(quantity, found[layer][quantity], call.values[quantity])


class TestDecode:
    @pytest.mark.parametrize(("family", "implementation", "quantity"), CASES)
    def test_every_step_shows_what_the_modules_had(self, family, implementation, quantity):
        expected = zoo_runs.plain_decode(family, implementation)
        steps, tokens = zoo_runs.traced_decode(family, implementation)
        assert torch.equal(tokens, expected.result)
        assert len(steps) == zoo_runs.N_NEW
        assert_one_row_ended(tokens[:, -zoo_runs.N_NEW :], zoo_runs.early_end(family))
        for layer, calls in expected.calls.items():
            for step, call in zip(steps, calls, strict=True):
                assert_same(quantity, step[layer][quantity], call.values[quantity])
