"""How often each statistic errs when the truth is known: levels, coverage, discoveries, power.

    OMP_NUM_THREADS=1 nice python benchmarks/calibration.py [--minutes 40] [--table]

Every case is simulated in blocks, each from its own seed, and kept in calibration.json when done:
a run that is stopped goes on where it was. Cases take turns, so that a short run has some of each.
"Slots" of a prompt are multinomial around its own odds, which topic, harm, wording, pair and the
prompt itself move. Where harm (or topic) does nothing, its p-values must be uniform.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator

from moe_interp.stats import (
    RoutingProfile,
    expert_tests,
    harm_test,
    naive_token_test,
    negligible,
    routing_shares,
)

KEPT = Path(__file__).with_name("calibration.json")
N_RESAMPLES = 199
LAYERS, EXPERTS, TOPICS = 2, 12, 6

Measured = dict[str, list[float]]


@dataclass(frozen=True)
class World:
    """One way of making prompts, and how strongly their labels move routing.

    Attributes:
        labels: Draws the labels, as columns.
        topic: Size of the effect of topic on the log-odds; 0 for none.
        harm: Size of the effect of harm, the same in every topic.
        by_topic: Size of the effect of harm that differs by topic.
        wording: Size of the effect of a wording, and of each of its sides.
        sparse: Whether harm moves the first layer only.
        seed: Seed of the effects that are fixed; None draws them anew for every profile.
    """

    labels: Callable[..., dict[str, np.ndarray]]
    topic: float = 1.0
    harm: float = 0.0
    by_topic: float = 0.0
    wording: float = 0.7
    sparse: bool = False
    seed: int | None = None
    options: dict = field(default_factory=dict)

    def draw(self, rng: Generator, **options: int) -> RoutingProfile:
        """Draw one profile; wordings, pairs and prompts are always new."""
        own = self.labels(rng, **{**self.options, **options})
        fixed = rng if self.seed is None else np.random.default_rng(self.seed)
        shape = (LAYERS, EXPERTS)
        base = fixed.normal(size=shape)
        topic, main = fixed.normal(size=(TOPICS, *shape)), fixed.normal(size=shape)
        by_topic = fixed.normal(size=(TOPICS, *shape))
        if self.sparse:
            main[1:], by_topic[:, 1:] = 0.0, 0.0
        sign = np.where(own["harm"], 1.0, -1.0)[:, None, None] / 2
        odds = base + self.topic * topic[own["topic"]]
        odds = odds + sign * (self.harm * main + self.by_topic * by_topic[own["topic"]])
        odds += 0.5 * rng.normal(size=odds.shape)
        if "pair" in own:
            odds += 0.5 * rng.normal(size=(own["pair"].max() + 1, *shape))[own["pair"]]
        if "wording" in own:
            n_wordings = own["wording"].max() + 1
            odds += self.wording * rng.normal(size=(n_wordings, *shape))[own["wording"]]
            sides = self.wording * rng.normal(size=(n_wordings, *shape))[own["wording"]]
            odds += 2 * sign * sides
        odds = np.exp(odds)
        counts = rng.multinomial(own["slots"][:, None], odds / odds.sum(axis=2, keepdims=True))
        return RoutingProfile(
            shares=counts / own["slots"][:, None, None],
            layers=tuple(range(LAYERS)),
            span="user",
            topic=own["topic"],
            harm=own["harm"],
            pair=own.get("pair"),
            wording=own.get("wording"),
            n_slots=own["slots"],
        )


def _slots(rng: Generator, harm: np.ndarray, shorter: float) -> np.ndarray:
    """Slots of prompts of 16 to 64; those of harmful prompts are fewer by the factor given."""
    slots = rng.integers(16, 65, size=len(harm))
    return np.where(harm, np.maximum(slots / shorter, 4), slots).astype(int)


def paired(rng: Generator, *, pairs: int = 12, shorter: float = 1.0) -> dict[str, np.ndarray]:
    """Matched pairs, as many in each topic."""
    pair = np.repeat(np.arange(TOPICS * pairs), 2)
    harm = np.arange(len(pair)) % 2 == 0
    slots = np.repeat(rng.integers(16, 65, size=TOPICS * pairs), 2)
    slots = np.where(harm, np.maximum(slots / shorter, 4), slots).astype(int)
    return {"topic": pair // pairs, "harm": harm, "pair": pair, "slots": slots}


def unbalanced(
    rng: Generator, *, size: int = 1, shorter: float = 1.0, rate: float | None = None
) -> dict[str, np.ndarray]:
    """Topics of 12 to 37 prompts whose harm rate rises from 1/7 to 6/7, or is `rate`.

    With `size` there are so many times the prompts in every cell.
    """
    sizes = 12 + 5 * np.arange(TOPICS)
    topic = np.repeat(np.arange(TOPICS), sizes)
    place = np.concatenate([np.arange(n) / n for n in sizes])
    share = (topic + 1) / (TOPICS + 1) if rate is None else rate
    harm = np.repeat(place < share, size)
    topic = np.repeat(topic, size)
    return {"topic": topic, "harm": harm, "slots": _slots(rng, harm, shorter)}


def wording_pairs(rng: Generator, *, wordings: int = 10) -> dict[str, np.ndarray]:
    """Each wording in every topic, with a harmful and a harmless side."""
    wording = np.tile(np.repeat(np.arange(wordings), 2), TOPICS)
    topic = np.repeat(np.arange(TOPICS), 2 * wordings)
    harm = np.arange(len(topic)) % 2 == 0
    pair = np.repeat(np.arange(len(topic) // 2), 2)
    slots = np.repeat(rng.integers(16, 65, size=len(topic) // 2), 2)
    return {"topic": topic, "harm": harm, "pair": pair, "wording": wording, "slots": slots}


def sided_wordings(rng: Generator, *, wordings: int = 8) -> dict[str, np.ndarray]:
    """Wordings that are harmful or harmless throughout, each in every topic."""
    wording = np.tile(np.arange(2 * wordings), TOPICS)
    topic = np.repeat(np.arange(TOPICS), 2 * wordings)
    harm = wording % 2 == 0
    return {
        "topic": topic, "harm": harm, "wording": wording, "slots": _slots(rng, harm, 1.0)
    }  # fmt: skip


def paraphrases(rng: Generator, *, requests: int = 12) -> dict[str, np.ndarray]:
    """Two to four paraphrases of each request; requests of one topic and one harm level."""
    sizes = np.tile([2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 2, 2], TOPICS * requests // 12)
    wording = np.repeat(np.arange(len(sizes)), sizes)
    topic = np.repeat(np.repeat(np.arange(TOPICS), requests), sizes)
    harm = wording % 2 == 0
    return {
        "topic": topic, "harm": harm, "wording": wording, "slots": _slots(rng, harm, 1.0)
    }  # fmt: skip


NULLS = {
    "pairs": World(paired),
    "unbalanced topics, confounded with harm": World(unbalanced),
    "shared wording, two sides": World(wording_pairs),
    "shared wording, one side": World(sided_wordings),
    "clusters of paraphrases": World(paraphrases),
    "pairs, harmful prompts a third as long": World(paired, options={"shorter": 3.0}),
    "unbalanced, harmful prompts a third as long": World(unbalanced, options={"shorter": 3.0}),
    "one in four harmful and a third as long": World(
        unbalanced, options={"shorter": 3.0, "rate": 0.25}
    ),
}


def level(world: World) -> Callable[[Generator], Measured]:
    """Measure how often each test of harm rejects where harm does nothing."""

    def once(rng: Generator) -> Measured:
        return rejections(world.draw(rng), rng)

    return once


def rejections(profile: RoutingProfile, rng: Generator) -> Measured:
    """Tell which tests of harm reject at 5 %."""
    found = harm_test(profile, n_resamples=N_RESAMPLES, rng=rng)
    experts = expert_tests(profile, n_resamples=N_RESAMPLES, rng=rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        naive = [naive_token_test(profile, within_topics=inside) for inside in (False, True)]
    return {
        "harm": [found.p_harm <= 0.05],
        "harm within topics": [found.p_harm_nested <= 0.05],
        "any expert, max-T": [experts.p_adjusted.min() <= 0.05],
        "one expert": [float((experts.p <= 0.05).mean())],
        "false discoveries": [bool((experts.q <= 0.05).any())],
        "naive": [naive[0].p_value[-1] <= 0.05],
        "naive within topics": [naive[1].p_value[-1] <= 0.05],
    }


def topic_level(world: World) -> Callable[[Generator], Measured]:
    """Measure how often the test of topic rejects where topic does nothing and harm does."""
    silent = World(**{**vars(world), "topic": 0.0, "harm": 1.0})

    def once(rng: Generator) -> Measured:
        found = harm_test(silent.draw(rng), n_resamples=N_RESAMPLES, rng=rng)
        return {"topic": [found.p_topic <= 0.05]}

    return once


@cache
def _truth(world_name: str) -> tuple[dict[str, float], np.ndarray]:
    """Shares and effects of a world with very many prompts."""
    world, large = COVERED[world_name]
    profile = world.draw(np.random.default_rng(1), **large)
    shares = routing_shares(profile)
    effect = expert_tests(profile, n_resamples=19, rng=np.random.default_rng(1)).effect
    return {name: values[-1] for name, values in shares.shares.items()}, effect


_EFFECTS = {"topic": 0.7, "harm": 0.5, "by_topic": 0.4, "seed": 5}
COVERED = {
    "pairs": (World(paired, **_EFFECTS), {"pairs": 2000}),
    "unbalanced topics, confounded with harm": (World(unbalanced, **_EFFECTS), {"size": 150}),
    "shared wording, two sides": (World(wording_pairs, **_EFFECTS), {"wordings": 1500}),
    "pairs, harmful prompts a third as long": (
        World(paired, options={"shorter": 3.0}, **_EFFECTS),
        {"pairs": 2000},
    ),
    "unbalanced, harmful prompts a third as long": (
        World(unbalanced, options={"shorter": 3.0}, **_EFFECTS),
        {"size": 150},
    ),
}


def coverage(name: str) -> Callable[[Generator], Measured]:
    """Measure how often 95 % intervals hold the value of very many prompts."""

    def once(rng: Generator) -> Measured:
        truth, effect = _truth(name)
        profile = COVERED[name][0].draw(rng)
        shares = routing_shares(profile)
        experts = expert_tests(profile, n_resamples=19, rng=rng)
        found = {
            f"share of {factor}": [
                float(shares.low[factor][-1] <= value <= shares.high[factor][-1])
            ]
            for factor, value in truth.items()
        }
        inside = (experts.low <= effect) & (effect <= experts.high)
        return found | {"effect of an expert": [float(inside.mean())]}

    return once


BOUNDARY = {
    "pairs, harm 3 % of topic": (World(paired, topic=1.0, harm=0.3, seed=6), {"pairs": 3000}),
    "pairs, harm 10 % of topic": (World(paired, topic=0.8, harm=0.5, seed=7), {"pairs": 3000}),
    "unbalanced": (World(unbalanced, topic=0.8, harm=0.5, seed=8), {"size": 200}),
}


@cache
def _margin(name: str) -> float:
    world, large = BOUNDARY[name]
    shares = routing_shares(world.draw(np.random.default_rng(2), **large))
    return shares.pooled("harm_total")[0] / shares.pooled("topic")[0]


def boundary(name: str) -> Callable[[Generator], Measured]:
    """Measure how often harm is called negligible at a margin that it reaches exactly."""

    def once(rng: Generator) -> Measured:
        found = negligible(BOUNDARY[name][0].draw(rng), margin=_margin(name))
        return {"negligible": [float(found.negligible)]}

    return once


def discoveries(world: World) -> Callable[[Generator], Measured]:
    """Measure the false among the discoveries where harm moves the first layer only."""

    def once(rng: Generator) -> Measured:
        found = expert_tests(world.draw(rng), n_resamples=19, rng=rng).q <= 0.05
        return {"false discoveries": [found[1:].sum() / max(found.sum(), 1)]}

    return once


def power(world: World) -> Callable[[Generator], Measured]:
    """Measure how often each test finds a small effect of harm; N = 192 as in earlier tables."""

    def once(rng: Generator) -> Measured:
        profile = world.draw(rng)
        found = rejections(profile, rng)
        kept = ("harm", "harm within topics", "any expert, max-T")
        return {name: found[name] for name in kept}

    return once


@cache
def _organism_profile() -> RoutingProfile:
    import moe_interp as mi

    prompts = mi.load_prompts("organism", per_topic=16)
    return mi.record_routing(mi.load_model("organism:topic"), prompts).profile("user")


def pseudo_labels(kind: str) -> Callable[[Generator], Measured]:
    """Measure rejections where labels of real routing were drawn by lot."""

    def once(rng: Generator) -> Measured:
        whole = _organism_profile()
        fields = vars(whole) | {"pair": None, "wording": None}
        if kind in ("pair", "wording_pair"):
            names = getattr(whole, kind.split("_")[0])
            swapped = {name: rng.random() < 0.5 for name in dict.fromkeys(names)}
            fields["harm"] = whole.harm ^ np.array([swapped[name] for name in names])
            fields["pair"] = whole.pair
            fields["wording"] = whole.wording if kind == "wording_pair" else None
            return rejections(RoutingProfile(**fields), rng)
        benign = whole.select(~whole.harm)
        fields = vars(benign) | {"pair": None, "wording": None}
        order = rng.permutation(benign.n_prompts)
        topics = list(dict.fromkeys(benign.topic))
        harm = np.zeros(benign.n_prompts, dtype=bool)
        for number, topic in enumerate(topics):
            own = order[benign.topic[order] == topic]
            rate = (number + 1) / (len(topics) + 1) if kind == "confounded" else 0.5
            harm[own[: round(rate * len(own))]] = True
        if kind == "wording":
            names = rng.permutation(list(dict.fromkeys(benign.wording)))
            harm = np.isin(benign.wording.astype(str), names[: len(names) // 2])
            fields["wording"] = benign.wording
        return rejections(RoutingProfile(**{**fields, "harm": harm}), rng)

    return once


_ORGANISM = {
    "within_topic": "organism, labels drawn within topics",
    "confounded": "organism, labels drawn at a rate that rises with topic",
    "pair": "organism, labels swapped in pairs",
    "wording": "organism, labels drawn for whole wordings",
    "wording_pair": "organism, labels swapped in whole wordings",
}


def cases() -> dict[str, tuple[Callable[[Generator], Measured], int]]:
    """Name every case, its simulation, and how many are wanted."""
    found: dict[str, tuple[Callable, int]] = {}
    for name, world in NULLS.items():
        found[f"level: {name}"] = (level(world), 1000)
        found[f"topic level: {name}"] = (topic_level(world), 1000)
    for kind, name in _ORGANISM.items():
        found[f"level: {name}"] = (pseudo_labels(kind), 1000)
    for name in COVERED:
        found[f"coverage: {name}"] = (coverage(name), 1000)
    for name in BOUNDARY:
        found[f"boundary: {name}"] = (boundary(name), 1000)
    for name in ("pairs", "unbalanced topics, confounded with harm", "shared wording, two sides"):
        world = NULLS[name]
        moved = World(**{**vars(world), "harm": 1.0, "sparse": True})
        found[f"discoveries: {name}"] = (discoveries(moved), 1000)
    for size in (0.15, 0.3):
        for name, labels, options in (
            ("pairs", paired, {"pairs": 16}),
            ("shared wording, two sides", wording_pairs, {"wordings": 16}),
            ("unbalanced", unbalanced, {}),
        ):
            world = World(labels, harm=2 * size, wording=0.3, options=options)
            found[f"power: {name}, harm {size}"] = (power(world), 300)
    return found


def simulate(
    once: Callable[[Generator], Measured], n_runs: int, seed: list[int]
) -> dict[str, list[float]]:
    """Add up `n_runs` simulations: measure to its number, sum and sum of squares."""
    total: dict[str, list[float]] = {}
    for number in range(n_runs):
        for name, values in once(np.random.default_rng([*seed, number])).items():
            own = total.setdefault(name, [0, 0.0, 0.0])
            for value in values:
                own[:] = own[0] + 1, own[1] + float(value), own[2] + float(value) ** 2
    return total


def run(minutes: float, block: int = 25) -> None:
    """Go round the cases, one block of each at a time, until all or the time is done."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    stop = time.monotonic() + 60 * minutes
    every = cases()
    for number in range(max(wanted for _, wanted in every.values()) // block):
        for place, (name, (once, wanted)) in enumerate(every.items()):
            if number * block >= wanted or str(number) in kept.get(name, {}):
                continue
            if time.monotonic() > stop:
                return
            kept.setdefault(name, {})[str(number)] = simulate(once, block, [place, number])
            fresh = KEPT.with_suffix(".part")
            fresh.write_text(json.dumps(kept, indent=1))
            fresh.replace(KEPT)


def rows(kept: dict) -> Iterator[tuple[str, str, int, float, float]]:
    """Yield case, measure, number of simulations, mean and its standard error."""
    for case, blocks in kept.items():
        names = dict.fromkeys(name for own in blocks.values() for name in own)
        for name in names:
            n, total, square = np.sum([own[name] for own in blocks.values()], axis=0)
            mean = total / n
            yield case, name, int(n), mean, float(np.sqrt(max(square / n - mean**2, 0) / n))


def main() -> None:
    """Run for a while, or print the table of what was kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        run(given.minutes)
    for case, name, n, mean, error in rows(json.loads(KEPT.read_text())):
        print(f"{case:70s} {name:22s} {n:6d} {mean:7.3f} ± {error:.3f}")


if __name__ == "__main__":
    main()
