"""What a sweep costs: against one trace per expert, one per expert and prompt, and its floor.

    OMP_NUM_THREADS=1 python benchmarks/sweep.py [--d-model 256] [--prompts 64]

All run in one process, timed by the processor's clock. The two loops are timed on some of the
experts, drawn by chance, and extrapolated in proportion; on these their numbers are compared with
the sweep's. The floor counts, for every pair of expert and prompt that has to run, the tokens from
the first that chose the expert on, in the layers above and in the expert's own, and in the last
layer one token; it is told in full forwards of all prompts, which the same run times.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_interp.capture import record_routing
from moe_interp.interventions import Zero, run
from moe_interp.models import MoEModel, load_model
from moe_interp.prompts import Prompt, PromptSet
from moe_interp.scores import sweep

N_EXPERTS, TOP_K, N_WORDS = 16, 2, 500


def build(given: argparse.Namespace) -> MoEModel:
    """Make a random model of the size asked for."""
    settings = {
        "vocab_size": N_WORDS + 2,
        "hidden_size": given.d_model,
        "intermediate_size": 2 * given.d_model,
        "num_hidden_layers": given.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_local_experts": N_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "max_position_embeddings": 4 * given.longest,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["mixtral"](**settings)).float().eval()
    model.set_experts_implementation(given.implementation)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gate.weight"):
                weight.normal_(0.0, 1.0)
            elif "embed" in name:
                weight.normal_(0.0, given.embedding)
    words = {"<pad>": 0, "<unk>": 1, **{f"w{n}": n + 2 for n in range(N_WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    return load_model(model, tokenizer=fast)


def make_prompts(given: argparse.Namespace) -> PromptSet:
    """Draw prompts of several lengths."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(given.shortest, given.longest + 1, size=given.prompts)
    texts = [" ".join(f"w{n}" for n in rng.integers(N_WORDS, size=length)) for length in lengths]
    return PromptSet([Prompt(text) for text in texts], source="random")


def metric(logits: torch.Tensor) -> torch.Tensor:
    """A difference of two logits at the last token."""
    return logits[:, 7] - logits[:, 8]


def seconds(work: Callable[[], object]) -> float:
    """Time one call by the processor's clock, which other programs do not slow as much."""
    start = time.process_time()
    work()
    return time.process_time() - start


def floor(model: MoEModel, prompts: PromptSet) -> tuple[float, float, int]:
    """Tokens times layers that have to run, those of a forward of all prompts, and pairs."""
    record = record_routing(model, prompts, progress=False).dataset
    chosen = record["expert_index"].transpose("token", "layer", "top_k").values
    prompt, pos = record["prompt_index"].values, record["pos"].values
    n_layers = chosen.shape[1]
    work, n_pairs = 0, 0
    for number in np.unique(prompt):
        own = chosen[prompt == number][np.argsort(pos[prompt == number])]
        for layer in range(n_layers):
            for expert in range(N_EXPERTS):
                hit = np.flatnonzero((own[:, layer] == expert).any(-1))
                if layer == n_layers - 1:
                    hit = hit[hit == len(own) - 1]
                if len(hit):
                    n_pairs += 1
                    work += (len(own) - hit[0]) * (n_layers - 1 - layer) + 1
    return work, len(prompt) * n_layers, n_pairs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--shortest", type=int, default=8)
    parser.add_argument("--longest", type=int, default=24)
    parser.add_argument("--sampled", type=int, default=8, help="experts timed in the loops")
    parser.add_argument("--sweeps", type=int, default=2, help="sweeps timed among them")
    parser.add_argument(
        "--embedding",
        type=float,
        default=0.02,
        help="spread of embeddings: more, and tokens differ",
    )
    parser.add_argument("--implementation", default="grouped_mm")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model, prompts = build(given), make_prompts(given)
    run(model, prompts)
    # Experts are sampled over layers, so that every depth is in the sample.
    rng = np.random.default_rng(1)
    layers = np.resize(np.arange(given.layers), given.sampled)
    sample = [(int(layer), int(rng.integers(N_EXPERTS))) for layer in layers]
    n_experts = given.layers * N_EXPERTS
    effects, found, spent = {}, [], {"plain": [], "by expert": [], "by pair": [], "sweep": []}

    def one_expert(expert: tuple[int, int]) -> None:
        logits = run(model, prompts, Zero([expert]), batch_size=len(prompts)).logits
        effects[expert] = (metric(logits) - untouched).double().numpy()

    def one_expert_one_prompt(expert: tuple[int, int]) -> None:
        for text in prompts.texts[:: given.prompts // 16]:
            run(model, [text], Zero([expert]))

    untouched = metric(run(model, prompts, batch_size=len(prompts)).logits)
    for turn, expert in enumerate(sample):
        spent["plain"].append(seconds(lambda: run(model, prompts, batch_size=len(prompts))))
        spent["by expert"].append(seconds(lambda: one_expert(expert)))  # noqa: B023
        spent["by pair"].append(seconds(lambda: one_expert_one_prompt(expert)))  # noqa: B023
        if turn % (given.sampled // given.sweeps) == 0:
            spent["sweep"].append(
                seconds(lambda: found.append(sweep(model, prompts, metric=metric)))
            )
    plain, swept = statistics.median(spent["plain"]), statistics.median(spent["sweep"])
    by_expert = statistics.mean(spent["by expert"]) * n_experts
    timed = len(prompts.texts[:: given.prompts // 16])
    by_pair = statistics.mean(spent["by pair"]) * n_experts * given.prompts / timed
    scores = found[0].array
    off = max(
        float(np.abs(scores.sel(layer=layer, expert=expert) - effect).max())
        for (layer, expert), effect in effects.items()
    )
    work, per_forward, n_pairs = floor(model, prompts)
    least = plain * work / per_forward
    attributes = scores.attrs
    print(
        f"mixtral, {given.layers} layers, {N_EXPERTS} experts, top {TOP_K}, d_model "
        f"{given.d_model}, {given.prompts} prompts of {given.shortest}-{given.longest} tokens, "
        f"{given.implementation}, {torch.get_num_threads()} thread, processor time\n"
        f"sweep: {attributes['rows']} of {n_experts * given.prompts} pairs run (floor {n_pairs}), "
        f"{attributes['tokens']} tokens in {attributes['forwards']} forwards; taken over: "
        f"{attributes['taken_over']}"
    )
    print(f"{'':44s} {'s':>8s} {'to sweep':>9s} {'goal':>6s}")
    for name, spent, goal in (
        ("one plain forward of all prompts", plain, ""),
        ("floor that the work allows", least, ""),
        ("sweep", swept, ""),
        ("one trace per (expert, prompt batch)", by_expert, "4"),
        ("one trace per (expert, prompt)", by_pair, "25"),
    ):
        print(f"{name:44s} {spent:8.2f} {spent / swept:8.2f}x {goal:>6s}")
    print(f"largest difference to one trace per expert: {off:.1e}")


if __name__ == "__main__":
    main()
