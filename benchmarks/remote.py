"""What travels to an NDIF server and back, a prompt, against the least that could.

    python benchmarks/remote.py ADDRESS MODEL [N_PROMPTS]

MODEL is the hub id of a model that the server runs. The least that could come back of a capture is
each token's experts as bytes (two bytes each where there are more than 256) and their weights at
half precision; of a metric, one number of four bytes.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

import moe_interp as mi

WORDS = (6, 40)
TIGHT = ("expert_index", "routing_weights")


def random_prompts(model: mi.MoEModel, n_prompts: int, rng: np.random.Generator) -> list[str]:
    """Prompts of which no two are alike: words of the vocabulary in any order."""
    known = sorted(word for word in model.tokenizer.get_vocab() if word.isalpha() and len(word) > 1)
    lengths = rng.integers(*WORDS, size=n_prompts)
    return [" ".join(rng.choice(known, size=length)) for length in lengths]


def measured(model: mi.MoEModel, n_prompts: int, act: Callable[[], int]) -> str:
    """A row of the table; `act` gives the fewest bytes that could come back."""
    traffic = model.connection.traffic
    jobs, sent, received = traffic.jobs, traffic.sent_bytes, traffic.received_bytes
    start = time.perf_counter()
    least = act()
    seconds = time.perf_counter() - start
    sent, received = traffic.sent_bytes - sent, traffic.received_bytes - received
    return (
        f"{traffic.jobs - jobs} | {sent / n_prompts:,.0f} | {received / n_prompts:,.0f} | "
        f"{least / n_prompts:,.0f} | {received / least:.2f} | {1e3 * seconds / n_prompts:.1f} |"
    )


def main() -> None:
    """Capture, and measure effects, on the server; print a table."""
    address, name = sys.argv[1:3]
    n_prompts = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    model = mi.load_model(name, remote=address)
    rng = np.random.default_rng(0)
    prompts = random_prompts(model, n_prompts, rng)
    wide = 1 if model.architecture.n_experts <= 256 else 2
    first, second = model.tokenizer.convert_ids_to_tokens([5, 6])
    metric = mi.LogitDifference(5, 6)

    def capture(**options: object) -> int:
        record = mi.record_routing(model, prompts, spans=("prompt",), progress=False, **options)
        return record.dataset["expert_index"].size * (wide + 2)

    def effect() -> int:
        chosen = [(list(model.moe)[-1], 0)]
        mi.measure_effect(model, prompts, mi.Zero(chosen), metric=metric)
        return 2 * 4 * n_prompts

    print(f"{name}, {n_prompts} prompts of {WORDS[0]}–{WORDS[1] - 1} words; {metric.name} is of")
    print(f"{first!r} and {second!r}")
    print("| what | jobs | sent, B a prompt | received | least | ratio | ms a prompt |")
    print("|---|---|---|---|---|---|---|")
    rows = {
        "experts and weights": lambda: capture(quantities=TIGHT),
        "the same and 99 random routers": lambda: capture(quantities=TIGHT, rng=rng),
        "the same and the routers' logits": capture,
        "effect of one expert on a metric": effect,
    }
    for what, act in rows.items():
        print(f"| {what} | {measured(model, n_prompts, act)}")


if __name__ == "__main__":
    main()
