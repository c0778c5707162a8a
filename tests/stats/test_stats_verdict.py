import json
from dataclasses import replace

import numpy as np
import pytest

from moe_interp.stats import RoutingProfile, decide, random_router_baseline, verdict
from moe_interp.stats._verdict import _label

N_EXPERTS, TOP_K, D_MODEL, N_TOKENS, N_RANDOM = 8, 2, 32, 8, 39


class World:
    """Hidden states with topic and harm in them, and routers that may or may not look there."""

    def __init__(self, simulate, rng, *, topic=1.0, harm=1.0, n_wordings=6):
        labels = simulate.labels("pair", n_topics=4, n_wordings=n_wordings)
        self.labels, self.rng = labels, rng
        codes = np.array([int(name[5:]) for name in labels.topic])
        directions = np.linalg.qr(rng.normal(size=(D_MODEL, 5)))[0].T * 2
        self.topics, self.harm = directions[:4], directions[4]
        sign = np.where(labels.harm, 1.0, -1.0)[:, None]
        base = topic * self.topics[codes] + harm * sign * self.harm
        pair = np.repeat(0.5 * rng.normal(size=(labels.n // 2, D_MODEL)), 2, axis=0)
        noise = rng.normal(size=(labels.n, N_TOKENS, D_MODEL))
        self.hidden = (base + pair)[:, None] + noise

    def gaussian(self):
        return self.rng.normal(size=(D_MODEL, N_EXPERTS))

    def shares(self, router):
        logits = self.hidden @ router
        chosen = np.argsort(-logits, axis=2)[:, :, :TOP_K].reshape(self.labels.n, -1)
        counts = (chosen[:, :, None] == np.arange(N_EXPERTS)).sum(axis=1)
        return (counts / counts.sum(axis=1, keepdims=True))[:, None]

    def profile(self, simulate, routers):
        shares = np.concatenate([self.shares(router) for router in routers], axis=1)
        return simulate.profile(self.labels, shares)

    def random_profiles(self, n_layers):
        return np.stack(
            [
                np.concatenate([self.shares(self.gaussian()) for _ in range(n_layers)], axis=1)
                for _ in range(N_RANDOM)
            ]
        )

    def reading(self, directions, experts):
        router = self.gaussian()
        for direction, expert in zip(directions, experts, strict=True):
            router[:, expert] = 4 * direction
        return router

    def verdict(self, simulate, routers, **options):
        return verdict(
            self.profile(simulate, routers),
            self.random_profiles(len(routers)),
            n_resamples=199,
            rng=self.rng,
            **options,
        )


def topic_routers(world):
    # Harm pulls no expert: its direction is taken out of every column.
    router = world.reading(world.topics, range(4))
    unit = world.harm / np.linalg.norm(world.harm)
    return [router - np.outer(unit, unit @ router)] * 2


def harm_routers(world):
    router = world.reading([world.harm, world.harm, -world.harm, -world.harm], range(4))
    basis = np.linalg.qr(world.topics.T)[0]
    return [router - basis @ (basis.T @ router)] * 2


def test_a_random_router_is_called_neither(simulate, rng):
    labels = []
    for _ in range(40):
        topic, harm = rng.uniform(0, 1.5, size=2)
        world = World(simulate, rng, topic=float(topic), harm=float(harm), n_wordings=4)
        found = world.verdict(simulate, [world.gaussian() for _ in range(2)])
        labels.append(found.label)
    # At the promised 95 % fewer than 33 of 40 happen about once in 1,000 runs.
    assert labels.count("neither") >= 33, labels


def test_a_router_that_reads_topic_is_called_topic_driven(simulate, rng):
    for _ in range(3):
        world = World(simulate, rng, topic=0.8, harm=0.8)
        assert world.verdict(simulate, topic_routers(world)).label == "topic_driven"


def test_a_router_that_reads_harm_is_called_harm_driven(simulate, rng):
    for _ in range(3):
        world = World(simulate, rng, topic=0.8, harm=0.4)
        assert world.verdict(simulate, harm_routers(world)).label == "harm_driven"


def test_a_router_that_reads_both_is_called_both(simulate, rng):
    for _ in range(3):
        world = World(simulate, rng, topic=0.8, harm=0.4)
        reading = [*world.topics, world.harm, -world.harm]
        routers = [world.reading(reading, range(6)) for _ in range(2)]
        assert world.verdict(simulate, routers).label == "both"


def test_harm_that_differs_by_topic_counts_as_harm(simulate, rng):
    labels = simulate.labels("pair", n_topics=4, n_wordings=12)
    profile = simulate.profile(labels, simulate.shares(labels, rng, topic=0.0, by_topic=1.5))
    flat = simulate.shares(labels, rng, topic=0.0)
    random = np.stack([flat[rng.permutation(labels.n)] for _ in range(N_RANDOM)])
    found = verdict(profile, random, n_resamples=199, rng=rng)
    assert found.label == "harm_driven"
    assert found.shares.pooled("harm")[0] < found.harm.share / 2


def test_too_few_units_leave_it_undetermined(simulate, rng):
    labels = simulate.labels("wording_pair", n_wordings=4)
    profile = simulate.profile(labels, simulate.shares(labels, rng))
    random = np.stack([simulate.shares(labels, rng) for _ in range(N_RANDOM)])
    found = verdict(profile, random, n_resamples=199, rng=rng)
    assert found.label == "undetermined"
    assert "4 such units allow no p-value below 0.125" in found.reason
    assert found.test is None
    assert found.shares.n_units == 4
    json.dumps(found.to_dict(), allow_nan=False)


def test_routing_that_never_changes_is_neither(simulate, rng):
    labels = simulate.labels("pair", n_wordings=8)
    shares = np.full((labels.n, 1, 4), 0.25)
    random = np.stack([simulate.shares(labels, rng, n_layers=1, n_experts=4)] * N_RANDOM)
    found = verdict(simulate.profile(labels, shares), random, n_resamples=199, rng=rng)
    assert found.label == "neither"
    assert found.reason == "Routing on 'user' tokens is the same for every prompt."
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("topic", "harm", "label"),
    [
        ("beyond", "negligible", "topic_driven"),
        ("beyond", "not beyond", "topic_driven"),
        ("negligible", "beyond", "harm_driven"),
        ("not beyond", "beyond", "harm_driven"),
        ("beyond", "beyond", "both"),
        ("not beyond", "not beyond", "neither"),
        ("not beyond", "negligible", "neither"),
        ("undecided", "beyond", "undetermined"),
        ("beyond", "undecided", "undetermined"),
        ("not beyond", "undecided", "undetermined"),
    ],
)
def test_two_statuses_make_a_label(topic, harm, label):
    assert _label(topic, harm) == label


@pytest.fixture
def evidence(simulate, rng):
    """Shares and test of a topic-driven case, to be edited one number at a time."""
    world = World(simulate, rng, topic=0.8, harm=0.8)
    return world.verdict(simulate, topic_routers(world))


def edited(shares, **changes):
    pooled = {
        name: {factor: values.copy() for factor, values in getattr(shares, name).items()}
        for name in ("shares", "random")
    }
    for name, (factor, value) in changes.items():
        pooled[name][factor][..., -1] = value
    return replace(shares, **pooled)


def test_a_share_that_random_routers_reach_is_not_beyond(evidence):
    raised = edited(evidence.shares, random=("topic", 0.99))
    found = decide(raised, evidence.test)
    assert found.topic.status == "not beyond"
    assert found.topic.n_reached == N_RANDOM
    assert found.label == "neither"


def test_one_random_router_of_39_that_reaches_it_is_too_many(evidence):
    draws = evidence.shares.random["topic"][:, -1].copy()
    draws[3] = 0.99
    found = decide(edited(evidence.shares, random=("topic", draws)), evidence.test)
    assert found.topic.p_random == 2 / 40
    assert found.topic.status == "not beyond"


def test_an_equal_random_router_counts_as_reaching_it(evidence):
    draws = evidence.shares.random["topic"][:, -1].copy()
    draws[3] = evidence.topic.share
    assert (
        decide(edited(evidence.shares, random=("topic", draws)), evidence.test).topic.n_reached == 1
    )


def test_without_a_permutation_effect_the_excess_is_undecided(evidence):
    test = replace(evidence.test, topic=np.full_like(evidence.test.topic, 0.2))
    found = decide(evidence.shares, test)
    assert found.topic.status == "undecided"
    assert found.label == "undetermined"
    assert "may be due to the choice of prompts" in found.reason


def test_an_excess_that_hangs_on_the_prompts_is_undecided(evidence):
    unsteady = evidence.shares.replicates["topic"].copy()
    unsteady[::2] += 0.5
    replicates = {**evidence.shares.replicates, "topic": unsteady}
    found = decide(replace(evidence.shares, replicates=replicates), evidence.test)
    assert found.topic.excess > 0 > found.topic.excess_low
    assert found.topic.status == "undecided"


def test_either_test_of_harm_counts_after_correction_for_two(evidence):
    test = replace(
        evidence.test,
        harm=np.full_like(evidence.test.harm, 0.02),
        harm_nested=np.full_like(evidence.test.harm, 0.5),
    )
    assert decide(evidence.shares, test).harm.p_value == 0.04


def test_the_reason_quotes_the_numbers(evidence):
    found = evidence
    assert found.reason.startswith(
        "Routing on 'user' tokens follows topic and not harm beyond random routers: topic accounts"
    )
    assert f"{found.topic.share:.1%} of it" in found.reason
    assert f"{found.topic.random_low:.1%} to {found.topic.random_high:.1%}" in found.reason
    assert "0 of 39 random routers reach it" in found.reason
    assert f"({found.shares.n_prompts} prompts)" in found.reason
    assert found.summary() == f"topic_driven ('user' tokens): {found.reason}"


def test_the_numbers_are_flat_and_safe_for_json(evidence):
    numbers = json.loads(json.dumps(evidence.to_dict(), allow_nan=False))["numbers"]
    assert numbers["topic_share"] == evidence.topic.share
    assert numbers["harm_p_random"] == evidence.harm.p_random
    assert numbers["n_random"] == N_RANDOM
    assert evidence.to_dict()["status"]["topic"] == "beyond"


def test_expert_names_and_prompt_order_do_not_matter(simulate, rng):
    world = World(simulate, rng)
    profile, random = world.profile(simulate, topic_routers(world)), world.random_profiles(2)
    order, names = rng.permutation(profile.n_prompts), rng.permutation(N_EXPERTS)
    shuffled = profile.select(order)
    renamed = RoutingProfile(**{**vars(shuffled), "shares": shuffled.shares[:, :, names]})
    ours = verdict(profile, random, n_resamples=199, rng=np.random.default_rng(0))
    theirs = verdict(
        renamed, random[:, order][:, :, :, names], n_resamples=199, rng=np.random.default_rng(0)
    )
    assert ours.label == theirs.label
    assert ours.topic.share == pytest.approx(theirs.topic.share)
    assert ours.harm.excess_low == pytest.approx(theirs.harm.excess_low)
    assert ours.harm.n_reached == theirs.harm.n_reached


def test_refuses_too_few_random_routers(simulate, rng):
    world = World(simulate, rng)
    profile = world.profile(simulate, [world.gaussian()])
    message = r"38 random routers allow no p-value up to alpha / 2 = 0.025; at least 39"
    with pytest.raises(ValueError, match=message):
        verdict(profile, world.random_profiles(1)[:38], rng=rng)


def test_refuses_shares_without_random_routers(evidence):
    with pytest.raises(ValueError, match=r"give `random_profiles` to routing_shares"):
        decide(replace(evidence.shares, random=None), evidence.test)


def test_the_worlds_routers_are_those_of_the_baseline(simulate, rng):
    world = World(simulate, rng)
    tokens = world.hidden.reshape(-1, D_MODEL)
    chosen = random_router_baseline(
        tokens, n_experts=N_EXPERTS, top_k=TOP_K, n_draws=1, rng=np.random.default_rng(9)
    )[0]
    router = np.random.default_rng(9).normal(size=(D_MODEL, N_EXPERTS))
    counts = np.zeros((world.labels.n, N_EXPERTS))
    np.add.at(counts, (np.repeat(np.arange(world.labels.n), N_TOKENS)[:, None], chosen), 1)
    assert np.allclose(counts / (N_TOKENS * TOP_K), world.shares(router)[:, 0])
