"""Record what TransformerLens 4.3 gives on tiny models, for `test_models_hooks_values.py`.

TransformerLens brings some 300 MB that nothing else here needs, so its values are recorded instead
of installing it for every test run. In an environment of its own, from the root of the repository:

    pip install -c constraints.txt torch transformers transformer-lens==4.3.0
    python tests/models/record_transformer_lens.py

Models are float64, so that the two attention codes agree; values are stored as float32.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tiny_models  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

FAMILIES = (
    "mixtral",
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "granitemoe",
    "glm4_moe",
)
# Of the same length: its attention makes numbers that are none of rows that are all padding.
TEXTS = ("how do i kill a python process ?", "where is the good old cake tree ?")
HOOKS = ("hook_in", "hook_out", "hook_expert_indices", "hook_expert_weights")
# Its name for the router's logits goes by the name of the module.
LOGITS = ("gate.hook_out", "router.hook_out")


def boot(family):
    """The tiny model in TransformerLens, which is imported here alone: tests do without it."""
    from transformer_lens.model_bridge import TransformerBridge

    model = tiny_models.build(family, dtype=torch.float64)
    model.set_experts_implementation("eager")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tiny_models.build_tokenizer().save_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return TransformerBridge.boot_transformers(
            folder, hf_model=model, tokenizer=tokenizer, device="cpu", dtype=torch.float64
        )


def record(family):
    """Values by name, and the names that TransformerLens mixes up on this family."""
    model, tokens = boot(family), tiny_models.encode(TEXTS)["input_ids"]
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    values, mixed_up = {"logits": logits[:, -1]}, []
    for layer in range(model.cfg.n_layers):
        prefix = f"blocks.{layer}.mlp"
        names = [f"{prefix}.{hook}" for hook in HOOKS]
        indices = cache.cache_dict.get(f"{prefix}.hook_expert_indices")
        if indices is not None and indices.is_floating_point():
            mixed_up += names[2:]
            names = names[:2]
        else:
            for hook in LOGITS:
                if f"{prefix}.{hook}" in cache.cache_dict:
                    values[f"{prefix}.{hook}"] = cache[f"{prefix}.{hook}"]
        values.update({name: cache[name] for name in names if name in cache.cache_dict})
    if "blocks.1.mlp.hook_expert_weights" in values:
        with torch.no_grad():
            rerouted = model.run_with_hooks(
                tokens, fwd_hooks=[("blocks.1.mlp.hook_expert_weights", prefer_one_expert)]
            )
        values["rerouted"] = rerouted[:, -1]
    return values, mixed_up


def prefer_one_expert(weights, hook):
    """Give expert 3 a weight of 0.4 at every token, chosen or not."""
    return weights.index_fill(-1, torch.tensor([3]), 0.4)


def main():
    """Write the values and their origin."""
    kept, mixed_up, weights = {}, {}, {}
    for family in FAMILIES:
        values, mixed_up[family] = record(family)
        for name, value in values.items():
            kept[f"{family}/{name}"] = value.float() if value.is_floating_point() else value.byte()
        # Tells the test whether it builds the very model.
        total = sum(w.detach().double().abs().sum() for w in tiny_models.build(family).parameters())
        weights[family] = round(float(total), 4)
    origin = {
        "transformer_lens": version("transformer_lens"),
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
        "mixed_up": json.dumps({family: names for family, names in mixed_up.items() if names}),
        "weights": json.dumps(weights),
    }
    save_file(kept, HERE / "transformer_lens_values.safetensors", metadata=origin)


if __name__ == "__main__":
    main()
