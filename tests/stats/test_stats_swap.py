import json
from itertools import combinations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from moe_interp.errors import DesignError
from moe_interp.stats import RoutingProfile, swap_distances


@pytest.fixture
def profile(simulate, rng):
    labels = simulate.labels("wording_pair", n_topics=3, n_wordings=5, per_cell=2)
    return simulate.profile(labels, simulate.shares(labels, rng, harm=0.3, wording=0.2))


def by_hand(profile, alike, unlike, distance, *, harmless=False, without=None):
    """Mean distance over the pairs of prompts, one at a time, and their number."""
    found = []
    for one, other in combinations(range(profile.n_prompts), 2):
        label = {
            name: (getattr(profile, name)[one], getattr(profile, name)[other])
            for name in ("topic", "harm", "pair", "wording")
        }
        if any(label[name][0] != label[name][1] for name in alike):
            continue
        if any(label[name][0] == label[name][1] for name in unlike):
            continue
        if harmless and any(label["harm"]):
            continue
        if without is not None and without in label["wording"]:
            continue
        found.append(
            [
                distance(profile.shares[one, layer], profile.shares[other, layer])
                for layer in range(profile.n_layers)
            ]
        )
    return np.mean(found, axis=0), len(found)


def js_bits(p, q):
    return jensenshannon(p, q, base=2) ** 2


def hellinger_squared(p, q):
    return 1 - np.sqrt(p * q).sum()


KINDS = {
    "wording": (("topic", "harm"), ("wording",)),
    "harm": (("pair",), ("harm",)),
    "topic": (("wording", "harm"), ("topic",)),
}


@pytest.mark.parametrize(
    ("measure", "distance"), [("js_bits", js_bits), ("hellinger_squared", hellinger_squared)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_each_distance_is_the_mean_over_its_pairs(profile, kind, measure, distance):
    found = swap_distances(profile)
    own, n_pairs = by_hand(profile, *KINDS[kind], distance)
    assert found.n_pairs[kind] == n_pairs
    assert found.distance[kind][measure][:-1] == pytest.approx(own)
    assert found.distance[kind][measure][-1] == pytest.approx(own.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_jackknife_leaves_out_whole_wordings(profile, kind):
    found = swap_distances(profile)
    assert found.n_units == 5
    left = [
        by_hand(profile, *KINDS[kind], hellinger_squared, without=wording)[0].mean()
        for wording in dict.fromkeys(profile.wording)
    ]
    ours = found.replicates[kind]["hellinger_squared"][:, -1]
    assert sorted(ours) == pytest.approx(sorted(left))
    error = np.sqrt(4 / 5 * ((np.array(left) - np.mean(left)) ** 2).sum())
    reach = (
        found.high[kind]["hellinger_squared"][-1] - found.distance[kind]["hellinger_squared"][-1]
    )
    # Student's t with four degrees of freedom.
    assert reach == pytest.approx(2.7764451 * error)


def test_the_ratio_is_one_mean_over_the_other(profile):
    found = swap_distances(profile)
    ratio, low, high = found.ratio("harm", "topic", measure="js_bits")
    assert ratio == pytest.approx(
        found.distance["harm"]["js_bits"][-1] / found.distance["topic"]["js_bits"][-1]
    )
    assert low < ratio < high
    assert low * high == pytest.approx(ratio**2)


def test_the_floor_is_of_harmless_prompts_of_one_request(profile, rng):
    request = np.array([f"{pair.rsplit('-', 1)[0][0]}" for pair in profile.pair])
    found = swap_distances(profile, request=request)
    own, n_pairs = by_hand(profile, ("topic",), (), hellinger_squared, harmless=True)
    assert found.n_pairs["floor"] == n_pairs
    assert found.distance["floor"]["hellinger_squared"][:-1] == pytest.approx(own)
    assert found.words["wording"] == "one topic and harm level and request, other wording"


def test_missing_requests_make_no_pairs(profile):
    request = [None] * profile.n_prompts
    for row in np.flatnonzero(~profile.harm)[:2]:
        request[row] = "bake"
    assert swap_distances(profile, request=request).n_pairs["floor"] == 1


def test_without_a_request_there_is_no_floor_and_it_says_so(profile):
    found = swap_distances(profile)
    assert "floor" not in found.words
    assert "No floor: No two harmless prompts share a `request`" in found.summary()
    with pytest.raises(DesignError, match="the distance that mere paraphrase makes is unknown"):
        found.ratio("floor", "topic")


def test_intervals_cover_the_distance_of_many_prompts(simulate):
    labels = simulate.labels("pair", n_topics=3, n_wordings=12)
    large = simulate.labels("pair", n_topics=3, n_wordings=40)
    hits, n_runs = {"harm": 0, "topic": 0, "ratio": 0}, 100
    for run in range(n_runs):
        rng = np.random.default_rng(run)
        state = rng.bit_generator.state
        # One seed, so that both sets have the same effects of topic and harm.
        fixed = {"n_layers": 1, "topic": 1.0, "harm": 0.4, "pair": 0.0, "noise": 0.5}
        effects = np.random.default_rng(run + 10_000)
        found, truth = (
            swap_distances(simulate.profile(some, shares_of(some, effects, rng, **fixed)))
            for some, effects in ((labels, effects), (large, np.random.default_rng(run + 10_000)))
        )
        assert state != rng.bit_generator.state
        for kind in ("harm", "topic"):
            ends = found.low[kind], found.high[kind], truth.distance[kind]
            low, high, true = (x["hellinger_squared"][-1] for x in ends)
            hits[kind] += low <= true <= high
        _, low, high = found.ratio()
        hits["ratio"] += low <= truth.ratio()[0] <= high
    # At 95 % fewer than 88 of 100 happen about once in 300 runs; the truth has some noise too.
    assert min(hits.values()) >= 88, hits


def shares_of(labels, effects, rng, *, n_layers, topic, harm, pair, noise):
    """Slots of prompts whose topic and harm shift the routing as `effects` says."""
    shape = (n_layers, 6)
    shifts = {name: topic * effects.normal(size=shape) for name in sorted(set(labels.topic))}
    sign = np.where(labels.harm, 1.0, -1.0)[:, None, None]
    logits = np.stack([shifts[name] for name in labels.topic])
    logits = logits + sign * harm * effects.normal(size=shape)
    logits = logits + noise * rng.normal(size=(labels.n, *shape))
    odds = np.exp(logits)
    return rng.multinomial(40, odds / odds.sum(axis=-1, keepdims=True)) / 40


def test_equal_prompts_have_no_distance_and_no_ratio(simulate):
    labels = simulate.labels("pair", n_wordings=4)
    found = swap_distances(simulate.profile(labels, np.full((labels.n, 1, 4), 0.25)))
    assert found.distance["harm"]["js_bits"].tolist() == [0.0, 0.0]
    assert np.isnan(found.ratio()[0])
    json.dumps(found.to_dict(), allow_nan=False)


def test_harm_that_moves_nothing_has_a_ratio_of_zero(simulate):
    labels = simulate.labels("pair", n_topics=3, n_wordings=6)
    own = np.eye(3)[[int(name[5:]) for name in labels.topic]][:, None]
    assert swap_distances(simulate.profile(labels, own)).ratio() == (0.0, 0.0, 0.0)
    moved = own.copy()
    moved[0] = moved[0, :, ::-1]
    ratio, low, high = swap_distances(simulate.profile(labels, moved)).ratio()
    assert 0 == low < ratio < high


def test_prompts_without_pairs_have_no_distance_by_harm(simulate, rng):
    labels = simulate.labels("within_topic", n_wordings=4)
    found = swap_distances(simulate.profile(labels, simulate.shares(labels, rng)))
    assert set(found.words) == {"topic", "wording"}
    with pytest.raises(DesignError, match="No two prompts of one pair differ in harm"):
        found.ratio()
    assert "harm_over_topic" in found.to_dict()


def test_topics_are_compared_freely_where_no_wording_is_in_two(simulate, rng):
    labels = simulate.labels("pair", n_topics=3, n_wordings=4)
    found = swap_distances(simulate.profile(labels, simulate.shares(labels, rng)))
    assert found.words["topic"] == "one harm level, other topic"
    assert found.n_pairs["topic"] == 2 * 3 * 4 * 4


def test_refuses_what_does_not_fit(profile):
    with pytest.raises(ValueError, match="`request` has 2 values for 60 prompts"):
        swap_distances(profile, request=["a", "b"])
    found = swap_distances(profile)
    with pytest.raises(ValueError, match=r"`measure` must be one of .*, got 'kl'"):
        found.ratio(measure="kl")
    with pytest.raises(ValueError, match=r"A kind must be one of .*, got 'intent'"):
        found.ratio("intent")
    lone = RoutingProfile(
        shares=np.full((2, 1, 2), 0.5), layers=(0,), span="user", topic=["a", "a"],
        harm=[True, False],
    )  # fmt: skip
    with pytest.raises(DesignError, match="No two prompts differ in one thing only"):
        swap_distances(lone, scheme="within_topic")


def test_the_table_has_every_kind_measure_and_layer(profile):
    frame = swap_distances(profile).to_frame()
    assert len(frame) == 3 * 2 * 3
    assert set(frame["layer"]) == {0, 1, "all"}
