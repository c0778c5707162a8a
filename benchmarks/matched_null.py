"""How often `matched_null` finds what is not there: ``python benchmarks/matched_null.py``.

No model is run. Each expert has an effect, drawn at random, and a set has the sum of its experts'
effects. A p-value of 0.05 or less should come up in 5 % of cases at most: *plain* is its share when
sets are compared as they are, *given* when they are scaled to the use of those in question as well.
"""

import argparse

import numpy as np
from numpy.random import Generator

from moe_interp import Ban, ExpertSet, Scores
from moe_interp.scores._matching import draw_counterparts, mean_use, null_p_value

SETS = ("L3E8", "L3E8,L3E9", "L2E14,L2E15,L3E14,L3E15", "L0E1,L0E2,L0E3,L1E4,L1E5,L2E6,L3E7,L3E8")
LAYERS = (0, 1, 2, 3)


def one_p_value(
    experts: ExpertSet, n_experts: int, *, most_used: bool, grows: bool, rng: Generator
) -> tuple[float, float]:
    """The p-value in one random world, without and with scaling to the experts' use.

    Args:
        experts: The experts in question.
        n_experts: Experts in a layer.
        most_used: Whether they are the most used of their layers; else they are any.
        grows: Whether effects are larger the more an expert is used; else use says nothing.
        rng: Source of randomness.
    """
    use = rng.gamma(1.0, 0.12, size=(len(LAYERS), n_experts)) + 0.002
    if most_used:
        for layer, ids in experts.by_layer().items():
            order = list(ids) + [one for one in range(n_experts) if one not in ids]
            use[layer, order] = -np.sort(-use[layer])
    effect = rng.normal(size=use.shape) * (use if grows else 1.0)
    match = [Scores.of_array("use", "fraction", use, layers=LAYERS)]
    draws = draw_counterparts([Ban(experts)], match, 100, rng)

    def of(chosen: ExpertSet) -> float:
        return float(sum(effect[one.layer, one.expert] for one in chosen))

    null = np.array([of(draw.experts) for draw in draws])
    null_use = np.array([mean_use(draw.experts, match) for draw in draws])
    own = mean_use(experts, match)
    return (
        null_p_value(of(experts), null, draws),
        null_p_value(of(experts), null, draws, use=own, null_use=null_use),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    n = parser.parse_args().simulations
    print("| experts a layer | in question | which | effects | plain | given |")
    print("|---|---|---|---|---|---|")
    for n_experts in (16, 64):
        for experts in map(ExpertSet.parse, SETS):
            for most_used in (False, True):
                for grows in (False, True):
                    rng = np.random.default_rng(0)
                    found = [
                        one_p_value(experts, n_experts, most_used=most_used, grows=grows, rng=rng)
                        for _ in range(n)
                    ]
                    plain, given = (np.array(found) <= 0.05).mean(axis=0)
                    print(
                        f"| {n_experts} | {len(experts)} | {'most used' if most_used else 'any'} | "
                        f"{'grow with use' if grows else 'any'} | {plain:.3f} | {given:.3f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
