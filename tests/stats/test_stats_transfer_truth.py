"""Decoding of planted truth: nothing, shared harm, a topic's own harm, and words that leak."""

import numpy as np
import pytest
from scipy.stats import kstest

from moe_interp.experts import ExpertSet
from moe_interp.stats import RoutingProfile, bag_of_tokens, random_expert_features, transfer_auc


def aucs(profile, rng, **options):
    found = transfer_auc(profile, n_resamples=19, rng=rng, **options)
    return {name: own.auc for name, own in found.splits.items()}


def mean_aucs(make, rng, n_runs):
    runs = [aucs(make(), rng) for _ in range(n_runs)]
    return {name: np.mean([own[name] for own in runs]) for name in runs[0]}


@pytest.mark.parametrize("scheme", ["wording_pair", "within_topic"])
def test_p_values_are_uniform_when_nothing_can_be_decoded(simulate, rng, scheme):
    labels = simulate.labels(scheme, n_topics=2, n_wordings=8)
    found = []
    for _ in range(60):
        shares = simulate.shares(labels, rng, n_layers=1, wording=0.7)
        run = transfer_auc(simulate.profile(labels, shares), n_resamples=39, rng=rng)
        found.append(
            [own.p_value for own in run.splits.values()]
            + [min(own.p_adjusted for own in run.splits.values())]
        )
    rejected = (np.array(found) <= 0.05).mean(axis=0)
    # 10 or more of 60 happen once in 2,000 runs at a level of 5 %.
    assert (rejected <= 0.16).all(), rejected
    # A discrete p-value lies above the uniform one; two-sided would punish that.
    for column in np.array(found).T[:-1]:
        assert kstest(column, "uniform", alternative="greater").pvalue > 0.001


def test_holds_its_level_where_harm_is_confounded_with_topic(simulate, rng):
    found = []
    for _ in range(40):
        labels = simulate.unbalanced(rng)
        shares = simulate.shares(labels, rng, n_layers=1, topic=2.0)
        run = transfer_auc(simulate.profile(labels, shares), n_resamples=39, rng=rng)
        found.append([run[name].auc for name in run.splits] + [run["leave_topic_out"].p_value])
    # Scores pooled over topics would reach .7 and more here.
    assert np.abs(np.mean(found, axis=0)[:2] - 0.5).max() < 0.05
    assert np.mean(np.array(found)[:, 2] <= 0.05) <= 0.2


def test_another_topic_sees_harm_that_topics_share_and_no_other(simulate, rng):
    labels = simulate.labels("pair", n_topics=6, n_wordings=10)
    shared = mean_aucs(
        lambda: simulate.profile(labels, simulate.shares(labels, rng, harm=0.25)), rng, 6
    )
    own = mean_aucs(
        lambda: simulate.profile(labels, simulate.shares(labels, rng, by_topic=0.4)), rng, 6
    )
    assert shared["leave_topic_out"] > 0.7
    assert own["within_topic"] > 0.7
    assert own["leave_topic_out"] < 0.58


def test_words_that_carry_the_label_lift_no_wording_that_is_left_out(simulate, rng):
    labels = simulate.labels("wording_pair", n_topics=4, n_wordings=12)

    def worded():
        return simulate.profile(labels, simulate.shares(labels, rng, n_experts=24, wording=1.0))

    # Each wording has its own way of telling harm, so that whoever has seen it knows.
    # An AUC spreads by 0.15 here; the mean of 10 lies within 4 standard errors.
    found = mean_aucs(worded, rng, 10)
    assert max(abs(auc - 0.5) for auc in found.values()) < 0.19

    def as_if_unworded():
        return RoutingProfile(**{**vars(worded()), "wording": None})

    assert mean_aucs(as_if_unworded, rng, 2)["leave_topic_out"] > 0.6


def test_a_bag_of_words_knows_only_wordings_it_has_seen(simulate, rng):
    labels = simulate.labels("wording_pair", n_topics=4, n_wordings=12)
    profile = simulate.profile(labels, simulate.shares(labels, rng, harm=0.4))
    # Three tokens a prompt: its topic, the purpose, and a word that only the side has.
    words = [
        [f"t{t}", f"c{w}", f"c{w}{h}"]
        for t, w, h in zip(labels.topic, labels.wording, labels.harm, strict=True)
    ]
    vocabulary = sorted({word for own in words for word in own})
    token_id = np.array([vocabulary.index(word) for own in words for word in own])
    bag = bag_of_tokens(token_id, np.repeat(np.arange(labels.n), 3), labels.n)
    found = transfer_auc(profile, baselines={"bag": bag}, n_resamples=199, rng=rng)
    for own in found.splits.values():
        assert own.baseline("bag").auc == 0.5
        assert own.baseline("bag").difference_low > 0
        assert "routing beats bag" in own.summary()
    unworded = RoutingProfile(**{**vars(profile), "wording": None})
    seen = transfer_auc(unworded, baselines={"bag": bag}, n_resamples=19, rng=rng)
    assert seen["leave_topic_out"].baseline("bag").auc == 1


def test_one_prompt_as_both_members_of_a_pair_is_a_tie(simulate, rng):
    labels = simulate.labels("pair", n_topics=3, n_wordings=8)
    shares = simulate.shares(labels, rng)
    shares[np.flatnonzero(labels.harm)] = shares[np.flatnonzero(~np.array(labels.harm))]
    found = transfer_auc(simulate.profile(labels, shares), n_resamples=99, rng=rng)
    for own in found.splits.values():
        assert own.auc == 0.5
        assert own.p_value > 0.5


def test_repeats_of_prompts_lift_nothing_once_they_are_one_wording(simulate, rng):
    labels = simulate.labels("pair", n_topics=4, n_wordings=8)
    shares = simulate.shares(labels, rng)
    twice = {
        "shares": np.concatenate([shares, shares]),
        "layers": (0, 1),
        "span": "user",
        "topic": labels.topic * 2,
        "harm": labels.harm * 2,
        "pair": [f"{p}{n}" for n in (0, 1) for p in labels.pair],
    }
    leaked = aucs(RoutingProfile(**twice), rng)
    assert leaked["within_topic"] > 0.75
    held = aucs(RoutingProfile(**twice, wording=labels.pair * 2), rng)
    assert abs(held["within_topic"] - 0.5) < 0.2


def test_intervals_cover_the_mean_of_many_samples(simulate, rng):
    labels = simulate.labels("pair", n_topics=4, n_wordings=8)
    own = []
    for _ in range(50):
        same = np.random.default_rng(5)
        sign = np.where(labels.harm, 0.2, -0.2)[:, None, None]
        logits = same.normal(size=(1, 6)) + sign * same.normal(size=(1, 6))
        logits = logits + 0.5 * rng.normal(size=(labels.n, 1, 6))
        odds = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        profile = simulate.profile(labels, rng.multinomial(40, odds) / 40)
        found = transfer_auc(profile, splits=["leave_topic_out"], n_resamples=19, rng=rng)
        own.append([getattr(found["leave_topic_out"], name) for name in ("auc", "low", "high")])
    auc, low, high = np.array(own).T
    # At 95 % coverage fewer than 42 of 50 happen about once in 1,000 runs; intervals that are
    # twice as wide as needed would show in the second line.
    assert ((low <= auc.mean()) & (auc.mean() <= high)).sum() >= 42
    assert np.mean(high - low) < 2.2 * 1.96 * 2 * auc.std() / 1.5


def test_random_experts_are_as_many_in_each_layer(simulate, rng):
    labels = simulate.labels("pair")
    profile = simulate.profile(labels, simulate.shares(labels, rng))
    chosen = ExpertSet.parse("L0E1,L1E0,L1E4")
    draws = random_expert_features(profile, chosen, n_draws=200, rng=rng)
    assert draws.shape == (200, profile.n_prompts, 3)
    used = np.zeros((2, 6), dtype=int)
    for draw in draws:
        for column in draw.T:
            match = np.isclose(profile.embedding, column[:, None, None]).all(axis=0)
            layer, expert = np.argwhere(match)[0]
            used[layer, expert] += 1
    assert used.sum(axis=1).tolist() == [200, 400]
    # Six experts share 200 draws, or 400: each within 5 standard errors of its part.
    assert (np.abs(used[0] - 200 / 6) < 5 * np.sqrt(200 * 5 / 36)).all()
    assert (np.abs(used[1] - 400 / 6) < 5 * np.sqrt(200 * 2 / 9)).all()


def test_a_bag_counts_tokens_of_each_prompt():
    bag = bag_of_tokens(np.array([7, 3, 3, 3, 9]), np.array([0, 0, 0, 0, 2]), 3)
    assert np.allclose(2 * bag**2, [[0.75, 0.25, 0], [0, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, r: bag_of_tokens(np.arange(2), np.array([0, 2]), 2),
            r"`prompt_index` must lie between 0 and 1, got 0 to 2",
        ),
        (
            lambda p, r: random_expert_features(p, ExpertSet.parse("L0E0"), n_draws=0, rng=r),
            r"`n_draws` must be at least 1, got 0",
        ),
        (
            lambda p, r: random_expert_features(p, ExpertSet.parse("L0E77"), rng=r),
            r"names L0E77, but the profile has layers 0, 1 with 6 experts each",
        ),
    ],
)
def test_features_refuse_what_does_not_fit(simulate, rng, call, message):
    labels = simulate.labels("pair")
    profile = simulate.profile(labels, simulate.shares(labels, rng))
    with pytest.raises(ValueError, match=message):
        call(profile, rng)
