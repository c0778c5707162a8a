import numpy as np
import pytest

from moe_interp.stats import (
    domain_specialisation,
    standing_committee,
    vocabulary_specialisation,
)


def world(seed, *, effect=0.0, n=48):
    """Units of three domains; expert 0 is chosen more by the first."""
    rng = np.random.default_rng(seed)
    domain = np.array(["a", "b", "c"])[np.arange(n) % 3]
    tokens = rng.integers(5, 15, n).astype(float)
    rate = np.full((n, 1, 4), 0.25)
    rate[domain == "a", 0, 0] += effect
    count = rng.binomial(tokens[:, None, None].astype(int), rate).astype(float)
    return count, tokens, domain.tolist()


def test_shares_are_counts_over_tokens_of_the_domain():
    count, tokens, domain = world(0)
    found = domain_specialisation(
        count, tokens, domain, n_resamples=9, rng=np.random.default_rng(0)
    )
    for place, name in enumerate(found.domains):
        rows = [i for i, one in enumerate(domain) if one == name]
        expected = sum(count[i] for i in rows) / sum(tokens[i] for i in rows)
        np.testing.assert_allclose(found.share[place], expected)
    np.testing.assert_allclose(found.overall, count.sum(axis=0) / tokens.sum())
    assert (found.low <= found.share).all()
    assert (found.share <= found.high).all()


def test_the_p_value_against_every_relabelling_of_a_small_case():
    import itertools

    count = np.array([3.0, 4, 1, 0]).reshape(4, 1, 1)
    tokens, domain = np.full(4, 5.0), ["a", "a", "b", "b"]

    def statistic(labels):
        overall = count.sum() / 20
        return max(
            abs(sum(count[i, 0, 0] for i in range(4) if labels[i] == d) / 10 - overall)
            for d in "ab"
        )

    null = [statistic(labels) for labels in itertools.permutations(domain)]
    exact = np.mean([one >= statistic(domain) - 1e-12 for one in null])
    found = domain_specialisation(
        count, tokens, domain, n_resamples=4000, rng=np.random.default_rng(0)
    )
    assert found.p_value.item() == pytest.approx(exact, abs=0.03)
    assert found.p_adjusted.item() == pytest.approx(found.p_value.item())


def test_finds_the_expert_of_a_domain_and_no_other():
    count, tokens, domain = world(1, effect=0.4)
    found = domain_specialisation(
        count, tokens, domain, n_resamples=199, rng=np.random.default_rng(0)
    )
    assert found.p_adjusted[0, 0] <= 0.01
    assert (found.p_adjusted[0, 1:] > 0.05).all()
    assert found.low[0, 0, 0] > found.overall[0, 0]


def test_false_alarms_are_as_rare_as_promised():
    """At 5 % of 120 worlds, more than 14 come by chance with probability 0.001."""
    alarms = 0
    for seed in range(120):
        count, tokens, domain = world(seed, n=18)
        found = domain_specialisation(
            count, tokens, domain, n_resamples=39, n_bootstrap=1, rng=np.random.default_rng(seed)
        )
        alarms += found.p_adjusted.min() <= 0.05
    assert alarms <= 14


def test_strata_are_not_mixed():
    """With one unit a domain in each stratum that all agree, nothing can be exchanged away."""
    count = np.array([5.0, 0, 5, 0, 5, 0, 5, 0]).reshape(8, 1, 1)
    tokens, domain = np.full(8, 5.0), ["a", "b"] * 4
    options = {"n_resamples": 799, "rng": np.random.default_rng(0)}
    found = domain_specialisation(count, tokens, domain, strata=[0, 0, 1, 1, 2, 2, 3, 3], **options)
    # Of 16 patterns, all exchanged and none exchanged are as extreme.
    assert found.p_value.item() == pytest.approx(2 / 16, abs=0.04)
    blocked = domain_specialisation(count, tokens, domain, strata=list(range(8)), **options)
    assert blocked.p_value.item() == 1


@pytest.mark.parametrize("options", [{"n_resamples": 0}, {"n_bootstrap": 0}])
def test_numbers_of_draws_are_positive(options):
    count, tokens, domain = world(0)
    with pytest.raises(ValueError, match="must be positive"):
        domain_specialisation(count, tokens, domain, rng=np.random.default_rng(0), **options)


def test_one_domain_is_too_few():
    count, tokens, _ = world(0)
    with pytest.raises(ValueError, match="48 of 1 domains"):
        domain_specialisation(count, tokens, ["a"] * 48, rng=np.random.default_rng(0))


def test_vocabulary_against_loops():
    rng = np.random.default_rng(0)
    index = np.array([[rng.permutation(5)[:2] for _ in range(2)] for _ in range(60)])
    token_id, half = rng.integers(0, 6, 60), rng.random(60) < 0.5
    found = vocabulary_specialisation(index, token_id, half, 5, min_count=8)
    often = [v for v in range(6) if (token_id == v).sum() >= 8]
    assert found.n_ids == len(often) < 6
    for layer in range(2):
        best = []
        for v in often:
            rows = np.flatnonzero(token_id == v)
            best.append(max(sum(e in index[t, layer] for t in rows) for e in range(5)) / len(rows))
        assert found.in_sample[layer] == pytest.approx(np.mean(best))
        for token in range(60):
            there = [t for t in range(60) if half[t] != half[token]]
            same = [t for t in there if token_id[t] == token_id[token]]
            uses = [sum(e in index[t, layer] for t in same) for e in range(5)]
            if same:
                hit = int(np.argmax(uses)) in index[token, layer]
                assert found.held_out[token, layer] == hit
            else:
                assert np.isnan(found.held_out[token, layer])
            uses = [sum(e in index[t, layer] for t in there) for e in range(5)]
            assert found.baseline[token, layer] == (int(np.argmax(uses)) in index[token, layer])


def test_held_out_favourites_are_not_flattered_by_rare_ids():
    """Routing at random: the favourite of an id seen twice looks good in its own sample only."""
    rng = np.random.default_rng(0)
    index = np.array([[rng.permutation(16)[:2]] for _ in range(4000)])
    token_id = np.repeat(np.arange(400), 10)
    half = np.arange(4000) % 2 == 0
    found = vocabulary_specialisation(index, token_id, half, 16)
    assert found.in_sample.item() > 0.3
    assert np.nanmean(found.held_out) == pytest.approx(2 / 16, abs=0.02)


def test_an_id_must_occur_often_enough():
    with pytest.raises(ValueError, match="No token id occurs 10 times"):
        vocabulary_specialisation(
            np.zeros((4, 1, 1), dtype=int), np.arange(4), np.array([True, False] * 2), 2
        )


def test_the_committee_is_present_everywhere_and_beaten_by_nobody():
    use = np.array(
        [
            [0.50, 0.30, 0.15, 0.05, 0.00],
            [0.50, 0.10, 0.30, 0.06, 0.04],
            [0.50, 0.30, 0.00, 0.15, 0.05],
            [0.50, 0.30, 0.15, 0.05, 0.00],
            [0.50, 0.30, 0.15, 0.05, 0.00],
        ]
    )
    found = standing_committee(use, top_k=2)
    assert found.experts == (0,)
    np.testing.assert_allclose(found.present, [1, 0.8, 0.2, 0, 0])
    np.testing.assert_allclose(found.mean_rank, [1, 2.2, 2.8, 3, 3])
    np.testing.assert_allclose(found.rank_variance, [0, 0.16, 0.16, 0, 0])
    assert found.coverage == pytest.approx(2.5 / (2.5 + 5 * 0.3))
    assert standing_committee(use[1:4], top_k=2, presence=1.0).experts == (0,)


def test_nobody_may_be_on_the_committee():
    assert standing_committee(np.eye(4), top_k=1).experts == ()
    assert standing_committee(np.eye(4), top_k=1).coverage == 0


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": 5}, {"top_k": 1, "presence": 0.0}])
def test_what_is_out_of_range_is_said(options):
    with pytest.raises(ValueError, match="`top_k` must lie in 1 to 4 and `presence`"):
        standing_committee(np.eye(4), **options)
