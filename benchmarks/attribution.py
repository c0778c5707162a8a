"""What scores of every expert by gradient cost, against a plain forward of the same prompts.

    OMP_NUM_THREADS=1 python benchmarks/attribution.py [--d-model 256] [--prompts 64]

Each round times a plain Hugging Face forward of all prompts and, right after it, each score, both
by the processor's clock; the table gives medians over rounds of their ratio. The floor is a
forward and a backward to the embeddings with nothing read.
"""

import argparse
import os
import statistics
from collections.abc import Callable

import numpy as np
import torch
from sweep import build, make_prompts, metric, seconds

from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet, encode
from moe_interp.scores import (
    attribution,
    direction_attribution,
    gradient_sensitivity,
    integrated_attribution,
)

INTEGRATION_STEPS = 4


def cases(model: MoEModel, prompts: PromptSet) -> dict[str, tuple[Callable[[], object], str]]:
    """What is timed, by name: the work and the ratio aimed at."""
    encoded = encode(model.tokenizer, prompts)
    inputs, plain = encoded.inputs, model.nnsight._module
    embeddings = plain.get_input_embeddings()
    direction = np.random.default_rng(0).normal(size=model.architecture.d_model)

    def forward() -> None:
        with torch.no_grad():
            plain(**inputs, use_cache=False, logits_to_keep=1)

    def backward() -> None:
        ids = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
        start = embeddings(inputs["input_ids"]).detach().requires_grad_(True)
        logits = plain(inputs_embeds=start, **ids, use_cache=False, logits_to_keep=1).logits
        torch.autograd.grad(metric(logits[:, -1]).sum(), start)

    whole = {"batch_size": len(prompts)}
    layer = list(model.moe)[len(model.moe) // 2]
    return {
        "plain forward, again (noise)": (forward, ""),
        "forward and backward, nothing read": (backward, ""),
        "attribution": (lambda: attribution(model, prompts, metric=metric, **whole), "3.5"),
        "gradient_sensitivity": (
            lambda: gradient_sensitivity(model, prompts, metric=metric, **whole),
            "3.5",
        ),
        "direction_attribution": (
            lambda: direction_attribution(model, prompts, direction, **whole),
            "",
        ),
        f"integrated_attribution, one layer, {INTEGRATION_STEPS} steps": (
            lambda: integrated_attribution(
                model, prompts, metric=metric, layers=[layer], steps=INTEGRATION_STEPS, **whole
            ),
            f"{3.5 * INTEGRATION_STEPS:.1f}",
        ),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--shortest", type=int, default=8)
    parser.add_argument("--longest", type=int, default=24)
    parser.add_argument("--embedding", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--implementation", default="grouped_mm")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model, prompts = build(given), make_prompts(given)
    timed = cases(model, prompts)
    plain, _ = timed["plain forward, again (noise)"]
    for work, _ in timed.values():
        work()
    ratios: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(given.rounds):
        for name, (work, _) in timed.items():
            before, spent, after = seconds(plain), seconds(work), seconds(plain)
            ratios[name].append(2 * spent / (before + after))
    print(
        f"mixtral, {given.layers} layers, 16 experts, top 2, d_model {given.d_model}, "
        f"{given.prompts} prompts of {given.shortest}-{given.longest} tokens, "
        f"{given.implementation}, {torch.get_num_threads()} thread, processor time, medians of "
        f"{given.rounds} paired ratios to a plain forward"
    )
    print(f"{'':48s} {'ratio':>7s} {'low':>6s} {'high':>6s} {'goal':>6s}")
    for name, (_, goal) in timed.items():
        low, high = min(ratios[name]), max(ratios[name])
        middle = statistics.median(ratios[name])
        print(f"{name:48s} {middle:7.2f} {low:6.2f} {high:6.2f} {goal:>6s}")


if __name__ == "__main__":
    main()
