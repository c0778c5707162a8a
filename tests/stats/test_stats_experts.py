import json
from itertools import product

import numpy as np
import pytest
from scipy import stats

from moe_interp.errors import DesignError
from moe_interp.stats import RoutingProfile, expert_tests
from moe_interp.stats._design import make_design
from moe_interp.stats._relabel import draw_labels


def profile_under(simulate, scheme, rng, *, n_wordings=8, **effects):
    labels = simulate.labels(scheme, n_wordings=n_wordings)
    return simulate.profile(labels, simulate.shares(labels, rng, **effects))


def pair_differences(profile):
    rows = [np.flatnonzero(profile.pair == pair) for pair in dict.fromkeys(profile.pair)]
    return np.stack(
        [
            profile.shares[own[profile.harm[own]][0]] - profile.shares[own[~profile.harm[own]][0]]
            for own in rows
        ]
    )


def test_effect_is_the_mean_difference_of_matched_prompts(simulate, rng):
    profile = profile_under(simulate, "pair", rng, harm=0.5)
    found = expert_tests(profile, n_resamples=99, rng=rng)
    assert np.allclose(found.effect, pair_differences(profile).mean(axis=0))


def test_effect_of_confounded_labels_is_that_of_regression_on_topic_and_harm(simulate, rng):
    labels = simulate.unbalanced(rng)
    profile = simulate.profile(labels, simulate.shares(labels, rng, harm=0.5))
    topics = profile.topic[:, None] == np.unique(profile.topic.astype(str))
    model = np.hstack([topics, profile.harm[:, None]]).astype(float)
    shares = profile.shares.reshape(profile.n_prompts, -1)
    expected = np.linalg.lstsq(model, shares, rcond=None)[0][-1]
    found = expert_tests(profile, n_resamples=99, rng=rng)
    assert np.allclose(found.effect.reshape(-1), expected)


def test_interval_leaves_out_one_unit_at_a_time(simulate, rng):
    profile = profile_under(simulate, "wording_pair", rng, harm=0.5)
    found = expert_tests(profile, n_resamples=127, rng=rng)
    left_out = np.stack(
        [
            pair_differences(profile.select(profile.wording != wording)).mean(axis=0)
            for wording in np.unique(profile.wording.astype(str))
        ]
    )
    error = np.sqrt(7 / 8 * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    assert np.allclose(found.high - found.effect, 2.364624 * error)
    assert np.allclose(found.effect - found.low, 2.364624 * error)


def test_p_of_matched_pairs_is_that_of_the_paired_t_test(simulate, rng):
    profile = profile_under(simulate, "pair", rng, harm=0.3)
    found = expert_tests(profile, n_resamples=99, rng=rng)
    expected = stats.ttest_1samp(pair_differences(profile), 0)
    assert np.allclose(found.p, expected.pvalue)
    assert (np.sign(found.statistic) == np.sign(expected.statistic)).all()


def test_p_within_one_topic_is_that_of_the_correlation(simulate, rng):
    labels = simulate.labels("within_topic", n_topics=1, n_wordings=12)
    profile = simulate.profile(labels, simulate.shares(labels, rng, harm=0.3))
    found = expert_tests(profile, n_resamples=99, rng=rng)
    expected = stats.pearsonr(profile.harm.astype(float), profile.shares[:, 1, 2])
    assert found.p[1, 2] == pytest.approx(expected.pvalue)


def test_q_is_benjamini_hochberg_over_all_experts(simulate, rng):
    found = expert_tests(profile_under(simulate, "pair", rng, harm=0.2), n_resamples=99, rng=rng)
    p = found.p.reshape(-1)
    rank = stats.rankdata(p, method="max")
    expected = [
        min(min(1.0, p[j] * len(p) / rank[j]) for j in np.flatnonzero(p >= own)) for own in p
    ]
    assert np.allclose(found.q.reshape(-1), expected)


def test_adjusted_p_is_that_of_every_sign_pattern_and_the_largest_expert(simulate, rng):
    profile = profile_under(simulate, "wording_pair", rng, harm=0.2)
    found = expert_tests(profile, n_resamples=9999, rng=rng)
    names = list(dict.fromkeys(profile.wording))
    units = np.stack(
        [pair_differences(profile.select(profile.wording == name)).sum(axis=0) for name in names]
    )
    spread = np.sqrt((units**2).sum(axis=0))
    observed = np.abs(units.sum(axis=0) / spread)
    reached = np.zeros_like(observed)
    for signs in product((-1, 1), repeat=len(names)):
        drawn = np.abs(np.einsum("u,ule->le", np.array(signs), units) / spread).max()
        reached += drawn >= observed - 1e-9
    assert found.n_resamples == 2**7
    assert np.allclose(found.p_adjusted, reached / 2**8)


def test_adjusted_p_of_permuted_labels_is_that_of_a_loop(simulate, rng):
    # Without its last prompt one wording is used in one topic only, a stratum of its own.
    labels = simulate.labels("wording", n_topics=2, n_wordings=4)
    labels = type(labels)(labels.topic[:-1], labels.harm[:-1], None, labels.wording[:-1])
    profile = simulate.profile(labels, simulate.shares(labels, rng, harm=0.3))
    found = expert_tests(profile, n_resamples=60, rng=np.random.default_rng(1))
    exchange = make_design(profile, "auto", need_topics=True).exchange
    topics = (profile.topic[:, None] == ["topic0", "topic1"]).astype(float)
    adjusted = np.eye(labels.n) - topics @ np.linalg.pinv(topics)
    residual = np.einsum("pq,qle->ple", adjusted, profile.shares)
    units = np.stack([residual[exchange.unit == u].sum(axis=0) for u in range(exchange.n_units)])

    def score(label):
        """Weighted sums of the wordings of one stratum over the root of their squares."""
        contrast, variance = 0.0, 0.0
        for own in (exchange.stratum == s for s in np.unique(exchange.stratum)):
            if own.sum() > 1:
                weight = 2.0 * (label[own] - label[own].mean())
                apart = units[own] - units[own].mean(axis=0)
                contrast += np.einsum("u,ule->le", weight, apart)
                square = np.einsum("u,ule->le", weight**2, apart**2)
                variance += square * own.sum() / (own.sum() - 1)
        return contrast / np.sqrt(variance)

    assert sorted(np.bincount(exchange.stratum)) == [1, 7]
    drawn = next(draw_labels(exchange, 60, np.random.default_rng(1), width=12))
    largest = np.array([np.abs(score(label)).max() for label in drawn])
    expected = score(exchange.label)
    reached = (largest[:, None, None] >= np.abs(expected) - 1e-9).sum(axis=0)
    assert np.allclose(found.statistic, expected)
    assert np.allclose(found.p_adjusted, (1 + reached) / 61)


def profile_of_lengths(simulate, scheme, rng, *, top_k=2, spread=1.0):
    """Counts of rare and of frequent experts, harmful prompts a third as long."""
    labels = simulate.labels(scheme, n_topics=2, n_wordings=4)
    tokens = np.where(labels.harm, 8, 24) + rng.integers(0, 3, size=labels.n)
    odds = np.array([0.35, 0.3, 0.2, 0.1, 0.04, 0.01]) / spread
    counts = rng.binomial(tokens[:, None, None], odds * top_k, size=(labels.n, 1, 6))
    counts[..., 0] += tokens[:, None] * top_k - counts.sum(axis=-1)
    counts = np.clip(counts, 0, tokens[:, None, None])
    counts[..., 1] += tokens[:, None] * top_k - counts.sum(axis=-1)
    slots = top_k * tokens
    return RoutingProfile(
        shares=counts / slots[:, None, None],
        layers=(0,),
        span="user",
        topic=labels.topic,
        harm=labels.harm,
        pair=labels.pair,
        wording=labels.wording,
        n_slots=slots,
        top_k=top_k,
    )


def drawing_variances(profile):
    """Variance of each share if tokens were drawn at their topic's rates."""
    found, n_rows = np.zeros(profile.shares[:, 0].shape), profile.n_prompts
    seen = drawn = 0.0
    for row in range(n_rows):
        alike = profile.topic == profile.topic[row]
        slots = profile.n_slots[alike, None]
        rates = (slots * profile.shares[alike, 0]).sum(axis=0) / slots.sum()
        tokens = profile.n_slots[row] / profile.top_k
        chosen = profile.top_k * rates
        found[row] = np.maximum(chosen * (1 - chosen), 0) / tokens / profile.top_k**2
        seen += ((profile.shares[row, 0] - rates) ** 2).sum()
        drawn += found[row].sum()
    return found * min(seen / drawn, 1)


def test_spread_of_pairs_of_different_lengths_is_at_least_that_of_drawing_tokens(simulate, rng):
    profile = profile_of_lengths(simulate, "pair", rng)
    found = expert_tests(profile, n_resamples=9999, rng=rng)
    apart = pair_differences(profile)[:, 0]
    variance = drawing_variances(profile)
    least = sum(variance[profile.pair == pair].sum(axis=0) for pair in set(profile.pair))
    square = np.maximum((apart**2).sum(axis=0), least)
    assert (least > (apart**2).sum(axis=0)).any()
    assert np.allclose(found.statistic[0], apart.sum(axis=0) / np.sqrt(square))
    signs = np.array(list(product((-1, 1), repeat=len(apart))))
    largest = np.abs(signs @ apart / np.sqrt(square)).max(axis=1)
    reached = (largest[:, None] >= np.abs(found.statistic[0]) - 1e-9).mean(axis=0)
    assert np.allclose(found.p_adjusted[0], reached)


def test_spread_of_permuted_prompts_is_at_least_that_of_drawing_tokens(simulate, rng):
    profile = profile_of_lengths(simulate, "within_topic", rng)
    found = expert_tests(profile, n_resamples=40, rng=np.random.default_rng(1))
    exchange = make_design(profile, "auto", need_topics=True).exchange
    variance = drawing_variances(profile)

    def score(label):
        contrast, square, least = np.zeros(6), np.zeros(6), np.zeros(6)
        for topic in ("topic0", "topic1"):
            own = profile.topic == topic
            weight = 2.0 * (label[own] - label[own].mean())[:, None]
            apart = profile.shares[own, 0] - profile.shares[own, 0].mean(axis=0)
            contrast += (weight * apart).sum(axis=0)
            square += (weight**2 * apart**2).sum(axis=0) * own.sum() / (own.sum() - 1)
            least += (weight**2 * variance[own]).sum(axis=0)
        return contrast / np.sqrt(np.maximum(square, least))

    drawn = next(draw_labels(exchange, 40, np.random.default_rng(1), width=18))
    largest = np.array([np.abs(score(label[exchange.unit])).max() for label in drawn])
    expected = score(profile.harm.astype(int))
    assert np.allclose(found.statistic[0], expected)
    reached = (largest[:, None] >= np.abs(expected) - 1e-9).sum(axis=0)
    assert np.allclose(found.p_adjusted[0], (1 + reached) / 41)


def test_a_rare_expert_that_short_prompts_happen_to_miss_is_no_discovery(rng):
    slots = np.where(np.arange(120) % 4 == 0, 10, 40)
    rare = np.where(slots == 40, np.arange(120) % 3 == 0, 0)
    others = rng.multinomial(slots - rare, [0.5, 0.3, 0.2])
    profile = RoutingProfile(
        shares=np.column_stack([rare, others])[:, None] / slots[:, None, None],
        layers=(0,),
        span="user",
        topic=["a"] * 60 + ["b"] * 60,
        harm=slots == 10,
        n_slots=slots,
    )
    found = expert_tests(profile, n_resamples=999, rng=rng)
    alike = expert_tests(
        RoutingProfile(**{**vars(profile), "n_slots": None}), n_resamples=999, rng=rng
    )
    # None of 300 slots where 2.5 are expected: as good as one in 12 by chance.
    assert found.p[0, 0] > 0.05
    assert alike.p[0, 0] < 1e-3


def test_lengths_do_not_matter_where_they_are_equal(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, harm=0.3)
    same = RoutingProfile(**{**vars(profile), "n_slots": np.full(profile.n_prompts, 40)})
    ours, theirs = (
        expert_tests(own, n_resamples=19, rng=np.random.default_rng(0), alpha=0.1)
        for own in (profile, same)
    )
    assert np.array_equal(ours.statistic, theirs.statistic)


def test_statistic_has_unit_spread_under_relabelling(simulate, scheme, rng):
    # The same shares under labels drawn anew by the scheme itself; topics are kept.
    labels = simulate.labels(scheme, n_wordings=6)
    drawn = []
    for _ in range(60):
        profile = simulate.profile(
            labels, simulate.shares(labels, rng, n_layers=1, n_experts=4, wording=0.3)
        )
        drawn.append(expert_tests(profile, n_resamples=19, rng=rng).statistic)
    # The mean square of 240 dependent values, three standard errors either way.
    assert 0.65 < np.mean(np.square(drawn)) < 1.4
    assert abs(np.mean(drawn)) < 0.35


def test_finds_nothing_more_often_than_the_level_allows(simulate, scheme, rng):
    found = [
        expert_tests(
            profile_under(simulate, scheme, rng, n_wordings=6, n_layers=1, wording=0.7),
            n_resamples=99,
            rng=rng,
        )
        for _ in range(80)
    ]
    # 12 or more of 80 happen about once in 1,000 runs at a level of 5 %.
    assert np.mean([own.p_adjusted.min() <= 0.05 for own in found]) < 0.15
    # Each expert alone: 480 dependent tests, clustered by run.
    assert np.mean([own.p <= 0.05 for own in found]) <= 0.09


def test_finds_the_planted_expert(simulate, scheme, rng):
    labels = simulate.labels(scheme, n_wordings=8)
    shares = simulate.shares(labels, rng)
    moved = np.array(labels.harm)
    shares[moved, 1, 3] += 0.5
    shares /= shares.sum(axis=2, keepdims=True)
    found = expert_tests(simulate.profile(labels, shares), n_resamples=999, rng=rng)
    assert found.effect.argmax() == 1 * 6 + 3
    assert found.low[1, 3] > 0
    assert found.p_adjusted[1, 3] <= 0.02
    assert "the strongest is L1E3" in found.summary()


def test_an_expert_that_never_changes_has_p_one(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, n_wordings=7, harm=0.5)
    # Fourteen times 0.3 over fourteen is not 0.3 to the last bit.
    profile.shares[:, 0] = [0.3, 0.3, 0.15, 0.15, 0.05, 0.05]
    found = expert_tests(profile, n_resamples=63, rng=rng)
    assert (found.p[0] == 1).all()
    assert (found.p_adjusted[0] == 1).all()
    assert (np.abs(found.effect[0]) < 1e-12).all()


def test_results_follow_the_experts_when_they_are_renamed(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, harm=0.3)
    order = rng.permutation(profile.n_experts)
    renamed = RoutingProfile(**{**vars(profile), "shares": profile.shares[:, :, order]})
    ours, theirs = (
        expert_tests(own, n_resamples=99, rng=np.random.default_rng(0))
        for own in (profile, renamed)
    )
    assert np.allclose(ours.p_adjusted[:, order], theirs.p_adjusted)
    assert np.allclose(ours.low[:, order], theirs.low)


def test_swapping_harmful_and_harmless_turns_the_effect_around(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, harm=0.3)
    swapped = RoutingProfile(**{**vars(profile), "harm": ~profile.harm})
    ours, theirs = (
        expert_tests(own, n_resamples=19, rng=np.random.default_rng(0), alpha=0.1)
        for own in (profile, swapped)
    )
    assert np.allclose(ours.effect, -theirs.effect)
    assert np.allclose(ours.statistic, -theirs.statistic)


def test_table_names_absolute_layers(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    later = RoutingProfile(**{**vars(profile), "layers": (4, 9)})
    found = expert_tests(later, n_resamples=19, rng=rng)
    frame = found.to_frame()
    assert frame["layer"].tolist() == [4] * 6 + [9] * 6
    assert frame["effect"].iloc[7] == found.effect[1, 1]
    json.dumps(found.to_dict(), allow_nan=False)


def test_refuses_too_few_units(simulate, rng):
    profile = profile_under(simulate, "wording_pair", rng, n_wordings=5)
    with pytest.raises(DesignError, match=r"5 such units allow no p-value below 0.0625"):
        expert_tests(profile, rng=rng)
