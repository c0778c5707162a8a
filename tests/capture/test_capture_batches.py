"""Batches hold every prompt once, and little padding."""

import numpy as np
import pytest

from moe_interp.capture import plan_batches

LENGTHS = np.random.default_rng(0).integers(1, 3000, size=200)


@pytest.mark.parametrize("batch_size", ["auto", 1, 7, 1000])
def test_every_prompt_is_in_one_batch(batch_size):
    batches = plan_batches(LENGTHS, batch_size=batch_size)
    assert sorted(prompt for batch in batches for prompt in batch) == list(range(200))


def test_no_batch_has_a_prompt_longer_than_one_before():
    in_turn = LENGTHS[[prompt for batch in plan_batches(LENGTHS) for prompt in batch]]
    assert (np.diff(in_turn) <= 0).all()


def test_automatic_batches_stay_within_their_tokens():
    for batch in plan_batches(LENGTHS):
        assert len(batch) == 1 or len(batch) * LENGTHS[batch].max() <= 4096


def test_a_prompt_longer_than_the_budget_has_its_own_batch():
    assert plan_batches(np.array([10, 9999])) == [[1], [0]]


def test_a_number_is_the_number_of_prompts():
    assert [len(batch) for batch in plan_batches(LENGTHS, batch_size=90)] == [90, 90, 20]


@pytest.mark.parametrize("batch_size", [0, -1, "all"])
def test_another_batch_size_is_refused(batch_size):
    with pytest.raises(ValueError, match="must be a positive integer or 'auto', got"):
        plan_batches(LENGTHS, batch_size=batch_size)
