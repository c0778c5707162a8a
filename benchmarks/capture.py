"""What a capture costs: against a plain forward, raw nnsight and TransformerLens, in one run.

    OMP_NUM_THREADS=1 python benchmarks/capture.py [--device cuda --shape olmoe] [--json F]

All run the same prompts in the same batches, one round after the other, in turn; what is told is
the median and the quartiles over rounds of the ratio to the plain forward of the same round, by
the processor's clock (by CUDA events on a GPU). Raw nnsight saves the same three tensors of every
layer in one trace and does nothing with them. Contributions are compared with what one writes
without a library: hooks that keep the router's choice and the experts' input, and a loop over
experts that applies their weights again.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import nnsight
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_interp.capture import plan_batches, record_routing
from moe_interp.models import MoEModel, load_model
from moe_interp.prompts import tokenize

N_WORDS = 500
# The shape that the goal is stated for, and two models' own shapes with random weights.
SHAPES = {
    "small": {
        "hidden_size": 256, "num_hidden_layers": 8, "num_experts": 16, "num_experts_per_tok": 4,
        "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4,
    },
    "olmoe": {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_experts": 64, "num_experts_per_tok": 8,
        "intermediate_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    "mixtral": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_local_experts": 8,
        "num_experts_per_tok": 2, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}  # fmt: skip


def build(shape: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Make a model of a shape with random weights, and a tokenizer of words."""
    torch.manual_seed(0)
    settings = {"vocab_size": N_WORDS + 2, "max_position_embeddings": 2048, **SHAPES[shape]}
    family = "mixtral" if shape == "mixtral" else "olmoe"
    config = CONFIG_MAPPING[family](**settings, eos_token_id=0, pad_token_id=0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    words = {"<pad>": 0, "<unk>": 1, **{f"w{n}": n + 2 for n in range(N_WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="right"
    )
    return model, fast


class Clock:
    """Seconds of a call: of the processor, or of the GPU."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, work: Callable[[], object]) -> float:
        """Time one call."""
        if self.device == "cpu":
            start = time.process_time()
            work()
            return time.process_time() - start
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begun.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        return begun.elapsed_time(ended) / 1000


def cases(
    moe: MoEModel, batches: list[dict[str, torch.Tensor]], texts: list[str], size: int, folder: Path
) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    nn = moe.nnsight
    routers = [layer.mlp.gate for layer in nn.model.layers]
    count = iter(range(10**6))

    def raw() -> None:
        for batch in batches:
            with torch.no_grad(), nn.trace(batch, logits_to_keep=1):
                nnsight.save([router.output for router in routers])

    def recorded() -> None:
        record_routing(moe, texts, batch_size=size, progress=False)

    def streamed() -> None:
        store = folder / f"{next(count)}.zarr"
        record_routing(moe, texts, batch_size=size, progress=False, store=store)

    return {
        "raw nnsight: the routers' outputs": raw,
        "record_routing, in memory": recorded,
        "record_routing to a store": streamed,
    }


def contributions(moe: MoEModel, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], object]]:
    """Every expert's contribution: read, and computed again from the weights."""
    nn, layers = moe.nnsight, list(moe.moe.values())
    module = nn._module

    def read() -> None:
        with torch.no_grad(), moe.trace(batch, logits_to_keep=1):
            nnsight.save([layer.read("expert_contributions") for layer in layers])

    def recomputed() -> None:
        seen: list[tuple] = []
        blocks = [layer.mlp.experts for layer in module.model.layers]
        hooks = [
            block.register_forward_pre_hook(lambda own, args: seen.append((own, *args[:3])))
            for block in blocks
        ]
        with torch.no_grad():
            module(**batch, logits_to_keep=1)
            for hook in hooks:
                hook.remove()
            for experts, hidden, index, weights in seen:
                hidden = hidden.reshape(-1, hidden.shape[-1])
                found = hidden.new_zeros(*index.shape, hidden.shape[-1])
                for expert in range(experts.num_experts):
                    token, slot = torch.where(index == expert)
                    both = hidden[token] @ experts.gate_up_proj[expert].T
                    gate, up = both.chunk(2, dim=-1)
                    out = (experts.act_fn(gate) * up) @ experts.down_proj[expert].T
                    found[token, slot] = out * weights[token, slot, None]

    return {
        "expert_contributions of all layers": read,
        "the same from the weights, a loop over experts": recomputed,
    }


def paired(
    plain: Callable[[], object],
    case: Callable[[], object],
    rounds: int,
    clock: Clock,
) -> dict[str, float]:
    """Ratios of a case to the plain forward of the same round."""
    plain(), case()
    ratios = []
    for turn in range(rounds):
        first = [clock(work) for work in ((plain, case) if turn % 2 else (case, plain))]
        of_plain, of_case = first if turn % 2 else first[::-1]
        ratios.append(of_case / of_plain)
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {"ratio": float(middle), "low": float(low), "high": float(high)}


def transformer_lens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    batches: list[dict[str, torch.Tensor]],
    folder: Path,
) -> dict[str, Callable[[], object]]:
    """The routers' outputs by TransformerLens's bridge, on a copy of the model: it changes it."""
    from transformer_lens.model_bridge import TransformerBridge

    folder.mkdir()
    own = deepcopy(model)
    own.config.architectures = [type(own).__name__]
    own.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(
        str(folder),
        hf_model=own,
        tokenizer=tokenizer,
        device=model.device,
        dtype=model.dtype,
    )

    def cached() -> None:
        for batch in batches:
            with torch.no_grad():
                bridge.run_with_cache(
                    batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    logits_to_keep=1,
                    names_filter=lambda name: name.endswith(
                        ("gate.hook_expert_weights", "gate.hook_expert_indices")
                    ),
                )

    return {"TransformerLens: run_with_cache of the routers": cached}


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model, tokenizer = build(given.shape, given.device)
    rng = np.random.default_rng(0)
    texts = [
        " ".join(f"w{n}" for n in rng.integers(N_WORDS, size=given.tokens))
        for _ in range(given.prompts)
    ]
    moe = load_model(model, tokenizer=tokenizer)
    tokens = tokenize(tokenizer, texts)
    planned = plan_batches(tokens.lengths, batch_size=given.batch)
    batches = [
        {key: value.to(moe.device) for key, value in tokens.batch(some).inputs.items()}
        for some in planned
    ]

    def forward(some: list[dict[str, torch.Tensor]]) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                for batch in some:
                    model(**batch, logits_to_keep=1)

        return run

    clock, rows = Clock(given.device), []
    goal = 1.10 if given.device == "cpu" else 1.03
    with tempfile.TemporaryDirectory() as folder:
        timed = {"a plain forward again (noise)": forward(batches)}
        timed |= cases(moe, batches, texts, given.batch, Path(folder))
        left_out = None
        if find_spec("transformer_lens") is None:
            left_out = "it is not installed here (pip install transformer-lens)"
        else:
            timed |= transformer_lens(model, tokenizer, batches, Path(folder) / "lens")
        for name, case in timed.items():
            found = paired(forward(batches), case, given.rounds, clock)
            aim = goal if name == "record_routing, in memory" else None
            rows.append({"name": name, "against": "plain forward", **found, "goal": aim})
    for name, case in contributions(moe, batches[0]).items():
        found = paired(forward(batches[:1]), case, max(3, given.rounds // 3), clock)
        rows.append({"name": name, "against": "plain forward", **found, "goal": None})
    facts = {
        "shape": given.shape, "device": given.device, "rounds": given.rounds,
        "prompts": given.prompts, "tokens": given.tokens, "batch": given.batch,
        "load": os.getloadavg()[0], "left_out": left_out, "rows": rows,
    }  # fmt: skip
    for row in rows:
        spread = f"{row['low']:.2f}-{row['high']:.2f}"
        print(f"{row['name']:50s} {row['ratio']:6.3f} {spread:>12s} {row['goal'] or '':>6}")
    if given.json is not None:
        given.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
