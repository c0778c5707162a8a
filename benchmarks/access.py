"""What reading costs: traces against a plain forward of the same model, in the same run.

    OMP_NUM_THREADS=1 python benchmarks/access.py [--model-type qwen3_moe] [--tokens 256]

Every round times a plain forward of an untouched Hugging Face model and, right after it, of the
case, both by the processor's clock; the median over rounds of their ratio holds on machines of
any speed, also on busy ones. The untouched model is a copy that was never wrapped; the last row
compares with a copy that was wrapped but never traced.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator

import nnsight
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_interp.models import MoEModel, load_model

FAMILIES = {
    "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256},
    "mixtral": {"num_local_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 256},
    "deepseek_v3": {
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 256,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
        "n_group": 4,
        "topk_group": 2,
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "num_key_value_heads": 8,
    },
}
ROUTING = ("expert_index", "routing_weights")
# Quantities read of all layers, and the ratio that is aimed at, by whether the experts' own call
# can be left out.
READINGS = (
    ("routing", ROUTING, {True: 1.10, False: 1.10}),
    ("routing and router_logits", ("router_logits", *ROUTING), {True: 1.10, False: 1.10}),
    ("expert_contributions", ("expert_contributions",), {True: 1.3, False: 1.8}),
    ("expert_outputs", ("expert_outputs",), {True: 1.3, False: 1.8}),
)


def build(given: argparse.Namespace) -> PreTrainedModel:
    """Make a random model of the size asked for."""
    settings = {
        "vocab_size": 512,
        "hidden_size": given.d_model,
        "num_hidden_layers": given.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4 * given.tokens,
        **FAMILIES[given.model_type],
    }
    torch.manual_seed(0)
    config = CONFIG_MAPPING[given.model_type](**settings)
    return AutoModelForCausalLM.from_config(config).float().eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer that a loaded model must come with; the benchmark gives token ids."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>")),
        pad_token="<pad>",
        unk_token="<unk>",
    )


def seconds(work: Callable[[], object]) -> float:
    """Time one call by the processor's clock, which other programs do not slow as much."""
    start = time.process_time()
    work()
    return time.process_time() - start


def median_ratio(plain: Callable[[], object], case: Callable[[], object], rounds: int) -> float:
    """Time a case and the plain forward in turn, each first in half of the rounds."""
    plain(), case()
    ratios = []
    for turn in range(rounds):
        if turn % 2:
            of_case, of_plain = seconds(case), seconds(plain)
        else:
            of_plain, of_case = seconds(plain), seconds(case)
        ratios.append(of_case / of_plain)
    return statistics.median(ratios)


def forward(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    """Make a plain forward."""
    return lambda: model(**batch, use_cache=False)


def cases(moe: MoEModel, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], object]]:
    """Make the traces to time, by name."""
    layers = list(moe.moe.values())
    inputs = {**batch, "use_cache": False}

    def empty() -> None:
        with moe.trace(inputs):
            nnsight.save(moe.nnsight.output.logits)

    def reading(names: tuple[str, ...]) -> Callable[[], object]:
        def read() -> None:
            with moe.trace(inputs):
                nnsight.save({layer.layer: layer.read(*names) for layer in layers})

        return read

    def ban() -> None:
        with moe.trace(inputs):
            for layer in layers:
                layer.ban([0, 1])
            nnsight.save(moe.nnsight.output.logits)

    def cache() -> None:
        moe.run_with_cache(batch["input_ids"])

    def cache_of_routing() -> None:
        moe.run_with_cache(
            batch["input_ids"], names_filter=lambda name: name.endswith("hook_expert_indices")
        )

    return {
        "trace, the logits only": empty,
        **{name: reading(names) for name, names, _ in READINGS},
        "ban of two experts": ban,
        "run_with_cache, all that it offers": cache,
        "run_with_cache, expert_index only": cache_of_routing,
    }


def measure(given: argparse.Namespace, implementation: str) -> Iterator[tuple[str, float, str]]:
    """Time every case under one experts implementation: name, ratio, ratio aimed at."""
    model = build(given)
    model.set_experts_implementation(implementation)
    untouched, second = copy.deepcopy(model), copy.deepcopy(model)
    ids = torch.randint(2, 512, (1, given.tokens), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plain, noise = forward(untouched, batch), forward(second, batch)
    yield "a second untouched model (noise)", median_ratio(plain, noise, given.rounds), ""
    moe = load_model(model, tokenizer=build_tokenizer())
    wrapped = forward(model, batch)
    yield "wrapped, no trace yet", median_ratio(plain, wrapped, given.rounds), ""
    can_skip = implementation != "eager"
    goals = {name: f"{goal[can_skip]:.2f}" for name, _, goal in READINGS}
    for name, case in cases(moe, batch).items():
        yield name, median_ratio(plain, case, given.rounds), goals.get(name, "")
    never = forward(second, batch)
    load_model(second, tokenizer=build_tokenizer(), check=False)
    yield "after all traces, to never traced", median_ratio(never, wrapped, given.rounds), "1.02"


def main() -> None:
    """Print one table for each experts implementation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-type", choices=FAMILIES, default="qwen3_moe")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--implementations", nargs="+", default=["grouped_mm", "eager"])
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.set_grad_enabled(False)
    print(
        f"{given.model_type}, {given.layers} layers, d_model {given.d_model}, 16 experts, top 4, "
        f"{given.tokens} tokens, float32, {torch.get_num_threads()} thread, processor time, "
        f"medians of {given.rounds} paired ratios to a plain forward"
    )
    for implementation in given.implementations:
        print(f"\n{implementation:40s} {'ratio':>7s} {'goal':>7s}")
        for name, ratio, goal in measure(given, implementation):
            print(f"{name:40s} {ratio:7.3f} {goal:>7s}", flush=True)


if __name__ == "__main__":
    main()
