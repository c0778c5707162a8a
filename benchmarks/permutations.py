"""Permutations per second: one matrix product against scipy and against a loop, in the same run.

    OMP_NUM_THREADS=1 python benchmarks/permutations.py [--prompts 1000] [--layers 32]

All three test the same data on one thread of one process, so that their ratio holds on
machines of any speed. The slow ones are timed on a slice and extrapolated in proportion to the
number of permutations, and scipy, which knows no layers, also to the number of layers.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from moe_interp.stats import RoutingProfile, expert_tests, harm_test, paired_permutation_test

_TOPICS = 8


def make_profile(n_prompts: int, n_layers: int, n_experts: int) -> RoutingProfile:
    """Make a paired profile of random routing in eight topics."""
    rng = np.random.default_rng(0)
    pairs = np.arange(n_prompts) // 2
    return RoutingProfile(
        shares=rng.dirichlet(np.ones(n_experts), size=(n_prompts, n_layers)),
        layers=tuple(range(n_layers)),
        span="user",
        topic=[f"topic{pair % _TOPICS}" for pair in pairs],
        harm=np.arange(n_prompts) % 2 == 0,
        pair=[str(pair) for pair in pairs],
    )


def seconds(work: Callable[[], object]) -> float:
    """Time one call by the processor's clock, which other programs do not slow as much."""
    start = time.process_time()
    work()
    return time.process_time() - start


def loop(differences: np.ndarray, n_resamples: int) -> None:
    """Count in Python, one sign pattern at a time, all experts of it at once."""
    rng = np.random.default_rng(0)
    observed = np.abs(differences.mean(axis=0))
    reached = np.zeros_like(observed)
    for _ in range(n_resamples):
        signs = rng.choice([-1.0, 1.0], size=len(differences))
        reached += np.abs((signs[:, None] * differences).mean(axis=0)) >= observed


def scipy_test(harmful: np.ndarray, harmless: np.ndarray, n_resamples: int) -> None:
    """Let scipy test all experts of one layer; it draws one pattern for all of them."""
    stats.permutation_test(
        (harmful, harmless),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        batch=32,
        axis=0,
        rng=np.random.default_rng(0),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--resamples", type=int, default=9999)
    given = parser.parse_args()
    profile = make_profile(given.prompts, given.layers, given.experts)
    # A single topic leaves the test of topic out.
    one_topic = RoutingProfile(**{**vars(profile), "topic": ["one"] * given.prompts})
    flat = profile.shares.reshape(given.prompts, -1)
    harmful, harmless = flat[::2], flat[1::2]
    one_layer = slice(0, given.experts)
    n = given.resamples

    def rng() -> np.random.Generator:
        return np.random.default_rng(0)

    small = 64
    rows = [
        (
            "expert_tests (max-T, all experts)",
            seconds(lambda: expert_tests(profile, n_resamples=n, rng=rng())) / n,
        ),
        (
            "paired_permutation_test (p and max-T)",
            seconds(lambda: paired_permutation_test(harmful, harmless, n_resamples=n, rng=rng()))
            / n,
        ),
        (
            "harm_test, harm and harm within topics",
            seconds(lambda: harm_test(one_topic, n_resamples=n, rng=rng())) / n,
        ),
        (
            "harm_test, topic too (seven contrasts instead of one)",
            seconds(lambda: harm_test(profile, n_resamples=n, rng=rng())) / n,
        ),
        (
            f"scipy.stats.permutation_test, slice: 1 of {given.layers} layers, {small} draws",
            given.layers
            * seconds(lambda: scipy_test(harmful[:, one_layer], harmless[:, one_layer], small))
            / small,
        ),
        (
            f"Python loop over sign patterns, slice: {small} draws",
            seconds(lambda: loop(harmful - harmless, small)) / small,
        ),
    ]
    best = rows[0][1]
    print(
        f"{given.prompts} prompts in {given.prompts // 2} pairs, {given.layers} layers x "
        f"{given.experts} experts, one thread, processor time"
    )
    print(f"{'method':72s} {'perm/s':>9s} {f's for {n}':>12s} {'slower by':>10s}")
    for name, each in rows:
        print(f"{name:72s} {1 / each:9,.0f} {n * each:12.2f} {each / best:9.1f}x")


if __name__ == "__main__":
    main()
