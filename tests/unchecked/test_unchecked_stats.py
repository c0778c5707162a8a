import numpy as np
import pytest

from moe_interp.stats import (
    RoutingProfile,
    TokenRouting,
    confound_sensitivity,
    paired_permutation_test,
    random_router_baseline,
    verdict,
)

LABELS = {"span": "user", "topic": ["a", "b"], "harm": [True, False]}


def test_paired_scores_must_have_one_shape():
    message = r"`harmful` and `harmless` must have the same shape \(pair, expert\), got \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        paired_permutation_test(np.ones((4, 3)), np.ones((1, 3)), rng=np.random.default_rng(0))


def test_shares_need_three_axes():
    with pytest.raises(ValueError, match=r"array \(prompt, layer, expert\), got \(2, 4\)"):
        RoutingProfile(shares=np.full((2, 4), 0.25), layers=(0,), **LABELS)


def test_slot_counts_must_fit_the_prompts():
    with pytest.raises(ValueError, match=r"`n_slots` has 1 values for 2 prompts"):
        RoutingProfile(shares=np.ones((2, 1, 1)), layers=(0,), n_slots=np.array([3]), **LABELS)


def test_random_profiles_must_be_of_the_same_prompts():
    profile = RoutingProfile(shares=np.ones((2, 1, 1)), layers=(0,), **LABELS)
    message = r"\(draw, prompt, layer, expert\) = \(n, 2, 1, 1\), got \(99, 3, 1, 1\)"
    with pytest.raises(ValueError, match=message):
        verdict(profile, np.ones((99, 3, 1, 1)), rng=np.random.default_rng(0))


def test_router_input_must_be_a_matrix():
    with pytest.raises(ValueError, match=r"finite matrix \(token, d_model\), got shape \(4,\)"):
        random_router_baseline(
            np.ones(4), n_experts=4, top_k=2, n_draws=1, rng=np.random.default_rng(0)
        )


def test_token_arrays_must_be_of_one_length():
    index, three = np.zeros((3, 1, 1), dtype=int), np.arange(3)
    with pytest.raises(ValueError, match="`token_id` has 2 values for 3 tokens"):
        TokenRouting(index, 4, three, np.arange(2), three)


def test_random_choices_must_be_of_the_same_tokens():
    labels = {**LABELS, "topic": ["a", "a"], "harm": [True, False]}
    tokens = TokenRouting(np.zeros((2, 1, 1), dtype=int), 1, *[np.arange(2)] * 3)
    profile = RoutingProfile(shares=np.ones((2, 1, 1)), layers=(0,), **labels)
    message = r"\(draw, token, layer, top_k\) = \(n, 2, 1, 1\), got \(9, 5, 1, 1\)"
    with pytest.raises(ValueError, match=message):
        confound_sensitivity(
            profile,
            tokens,
            random_index=np.zeros((9, 5, 1, 1), dtype=int),
            rng=np.random.default_rng(0),
        )
