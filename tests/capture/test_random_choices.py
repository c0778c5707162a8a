"""The choice of a random router: top-k, but near ties share the last slot."""

import numpy as np
import pytest
import torch

from moe_interp.models._traced_record import NEAR_TIE, count_random_choices, shared_top_k


def slots(logits, top_k=2, spread=1.0):
    wide = torch.tensor(logits, dtype=torch.float64)[None, None]
    return shared_top_k(wide, torch.tensor([[spread]]), top_k)[0, 0].tolist()


def test_clear_choices_are_the_top_k():
    assert slots([0.3, 5.0, -1.0, 2.0]) == [0, 1, 0, 1]


def test_equal_logits_share_the_last_slot_by_half():
    assert slots([1.0, 5.0, 1.0, 0.0]) == [0.5, 1, 0.5, 0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_near_tie_is_near_in_units_of_the_spread(scale):
    half = 1.0 + NEAR_TIE / 2
    found = slots([scale * half, 5 * scale, scale * 1.0], spread=scale)
    # Half way: 0.5 - 0.5/2 = 1/4, and 3/4² - 2/4³ = 5/32.
    np.testing.assert_allclose(found, [27 / 32, 1, 5 / 32], atol=1e-6)


def test_a_gap_of_the_whole_width_shares_nothing():
    assert slots([1.0 + 1.01 * NEAR_TIE, 5.0, 1.0]) == [1, 1, 0]


def test_slots_move_smoothly_as_two_logits_cross():
    gaps = np.linspace(-2 * NEAR_TIE, 2 * NEAR_TIE, 401)
    first = np.array([slots([1.0 + gap, 5.0, 1.0])[0] for gap in gaps])
    assert first[0] == 0
    assert first[-1] == 1
    steps = np.diff(first)
    assert (steps >= -1e-12).all()
    assert steps.max() < 0.01


def test_a_third_logit_near_the_edge_moves_nothing_suddenly():
    # The third and the second of a near tie change places: with two sharers, one would lose all.
    before = slots([1.0, 5.0, 0.9999 + 1e-6, 0.9999 - 1e-6])
    after = slots([1.0, 5.0, 0.9999 - 1e-6, 0.9999 + 1e-6])
    assert min(before) > 0.1
    np.testing.assert_allclose(before, after, atol=1e-3)
    np.testing.assert_allclose([sum(before), sum(after)], 2)


def test_all_experts_chosen_needs_no_next_one():
    assert slots([1.0, 1.0], top_k=2) == [1, 1]


def test_hidden_states_of_zero_share_without_nan():
    total = shared_top_k(torch.zeros(1, 1, 4), torch.zeros(1, 1), 2)
    assert total.sum().item() == 2


def test_draws_counted_in_parts_are_those_counted_at_once(monkeypatch):
    torch.manual_seed(0)
    real = torch.ones(2, 5, dtype=torch.bool)
    real[1, 3:] = False
    spans = torch.stack([real, real & (torch.arange(5) == 2)])
    hidden, routers = torch.randn(8, 6), torch.randn(6, 7, 4)
    at_once = count_random_choices(hidden, routers, real, spans, 2)
    monkeypatch.setattr("moe_interp.models._traced_record.MAX_RANDOM_LOGITS", 2 * 8 * 4)
    in_parts = count_random_choices(hidden, routers, real, spans, 2)
    assert at_once.shape == (2, 7, 2, 4)
    np.testing.assert_allclose(at_once, in_parts, atol=1e-5)
    np.testing.assert_allclose(at_once.sum(-1)[0], [[10, 6]] * 7, atol=1e-5)
    np.testing.assert_allclose(at_once.sum(-1)[1], [[2, 2]] * 7, atol=1e-5)
