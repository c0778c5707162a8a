import json
from itertools import product

import numpy as np
import pytest

from moe_interp.errors import DesignError
from moe_interp.stats import RoutingProfile, design_effect


def profile_of(shares, n_slots, *, cells=2, wording=None, top_k=1):
    n_prompts = len(shares)
    return RoutingProfile(
        shares=shares,
        layers=tuple(range(shares.shape[1])),
        span="user",
        topic=[f"topic{row % cells}" for row in range(n_prompts)],
        harm=np.arange(n_prompts) // cells % 2 == 0,
        wording=wording,
        n_slots=np.asarray(n_slots),
        top_k=top_k,
    )


def slots_of(chances, n_slots, rng):
    return rng.multinomial(n_slots, chances)[:, None] / np.asarray(n_slots)[:, None, None]


def test_independent_slots_have_a_design_effect_of_one(rng):
    n_slots = rng.integers(4, 60, size=4000)
    found = design_effect(profile_of(slots_of([0.5, 0.3, 0.15, 0.05], n_slots, rng), n_slots))
    # The standard error is about sqrt(2 / 4000) = 0.022.
    assert found.effect == pytest.approx(np.ones((1, 4)), abs=0.1)


def test_the_expectation_is_exact_for_two_prompts_of_unlike_length():
    """Over all outcomes of a small multinomial, numerator and denominator have one mean."""
    chances, lengths = np.array([0.6, 0.4]), (1, 3)
    observed = expected = 0.0
    for slots in product(range(2), repeat=sum(lengths)):
        counts = [slots[: lengths[0]].count(0), slots[lengths[0] :].count(0)]
        chance = np.prod(chances[list(slots)])
        shares = np.array([count / n for count, n in zip(counts, lengths, strict=True)])
        mean = sum(counts) / sum(lengths)
        squares = float(np.dot(lengths, (shares - mean) ** 2))
        observed += chance * squares
        spread = mean * (1 - mean) * sum(lengths) / (sum(lengths) - 1)
        expected += chance * spread
        if 0 < mean < 1:
            full = np.stack([shares, 1 - shares], axis=1)[:, None]
            profile = RoutingProfile(
                shares=full, layers=(0,), span="user", topic=["t", "t"], harm=[True, False],
                n_slots=np.array(lengths),
            )  # fmt: skip
            found = design_effect(profile, within="topic").effect[0]
            assert found == pytest.approx(squares / spread)
    assert observed == pytest.approx(expected)


@pytest.mark.parametrize("rho", [0.05, 0.3])
def test_tokens_that_go_along_with_each_other_are_over_dispersed(rng, rho):
    n_slots, n_prompts = 30, 4000
    chances = rng.dirichlet(np.array([0.5, 0.3, 0.2]) * (1 - rho) / rho, size=n_prompts)
    found = design_effect(
        profile_of(slots_of(chances, np.full(n_prompts, n_slots), rng), [n_slots] * n_prompts)
    )
    # The textbook design effect of clusters of 30 with this correlation inside.
    assert found.effect == pytest.approx(np.full((1, 3), 1 + (n_slots - 1) * rho), rel=0.12)
    assert "over-dispersed" in found.summary()
    assert found.over == 1.0


def test_prompts_of_one_frame_are_under_dispersed(rng):
    fixed = np.array([10, 6, 4])
    counts = fixed + rng.multinomial(4, [0.5, 0.3, 0.2], size=400)
    found = design_effect(profile_of(counts[:, None] / 24, [24] * 400))
    assert found.effect == pytest.approx(np.full((1, 3), 4 / 24), rel=0.2)
    assert "under-dispersed" in found.summary()


def test_prompts_of_one_slot_cannot_differ_more_or_less_than_it_does(rng):
    counts = rng.multinomial(1, [0.5, 0.3, 0.2], size=400)
    said = design_effect(profile_of(counts[:, None] / 1.0, [1] * 400)).summary()
    assert "differ as much as their tokens would make them (design effect 1.00" in said


def test_two_slots_of_a_token_to_unlike_experts_are_allowed_for(rng):
    n_tokens, n_prompts = 12, 3000
    logits = np.array([1.0, 0.5, 0.0, 0.0]) + rng.gumbel(size=(n_prompts, n_tokens, 4))
    chosen = np.argsort(-logits, axis=2)[:, :, :2].reshape(n_prompts, -1)
    shares = (chosen[:, :, None] == np.arange(4)).mean(axis=1)[:, None]
    n_slots = [2 * n_tokens] * n_prompts
    assert design_effect(profile_of(shares, n_slots, top_k=2)).effect == pytest.approx(
        np.ones((1, 4)), abs=0.12
    )
    assert (design_effect(profile_of(shares, n_slots)).effect < 0.85).all()


def test_effects_of_topic_and_harm_are_no_dispersion_within_cells(rng):
    n_prompts = 2000
    own = np.array([[0.8, 0.2], [0.2, 0.8]])[np.arange(n_prompts) % 2]
    profile = profile_of(slots_of(own, np.full(n_prompts, 20), rng), [20] * n_prompts)
    assert design_effect(profile).effect == pytest.approx(np.ones((1, 2)), abs=0.12)
    assert (design_effect(profile, within="all").effect > 5).all()


def test_shared_wordings_show_once_they_are_added_up(rng):
    n_prompts = 1600
    wording = rng.integers(40, size=n_prompts)
    own = rng.dirichlet([6, 4], size=40)[wording]
    profile = profile_of(
        slots_of(own, np.full(n_prompts, 4), rng), [4] * n_prompts, wording=wording, cells=1
    )
    by_prompt, by_wording = (design_effect(profile, unit=unit) for unit in ("prompt", "wording"))
    assert (by_wording.effect > 2.0 * by_prompt.effect).all()
    assert by_wording.n_units == 80
    assert by_wording.n_slots == by_prompt.n_slots == 4 * n_prompts


def test_experts_without_variance_have_none_and_json_says_so(rng):
    shares = np.zeros((8, 2, 3))
    shares[:, 0, 0] = 1.0
    shares[:, 1] = slots_of([0.5, 0.5, 0.0], [20] * 8, rng)[:, 0]
    found = design_effect(profile_of(shares, [20] * 8))
    assert np.isnan(found.effect[0]).all()
    assert np.isnan(found.effect[1, 2])
    assert np.isfinite(found.effect[1, :2]).all()
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["effect"][0] == [None] * 3
    assert found.to_frame()["design_effect"].notna().sum() == 2
    assert set(found.quantiles) == {0.1, 0.5, 0.9}


def test_refuses_what_it_cannot_answer(rng):
    shares = slots_of([0.5, 0.5], [4] * 4, rng)
    labels = {"layers": (0,), "span": "user", "topic": list("abcd"), "harm": [0, 1, 0, 1]}
    with pytest.raises(ValueError, match="give `n_slots` to RoutingProfile"):
        design_effect(RoutingProfile(shares=shares, **labels))
    profile = RoutingProfile(shares=shares, **labels, n_slots=np.full(4, 4))
    with pytest.raises(DesignError, match=r"No two prompts share a cell \('topic_and_harm'\)"):
        design_effect(profile)
    with pytest.raises(DesignError, match="4 of 4 prompts have no wording"):
        design_effect(profile, unit="wording")
    with pytest.raises(ValueError, match=r"`within` must be one of .*, got 'harm'"):
        design_effect(profile, within="harm")
    with pytest.raises(ValueError, match=r"`unit` must be one of .*, got 'pair'"):
        design_effect(profile, unit="pair")
