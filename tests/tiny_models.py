"""Tiny random models of the families that access is tested on, built from configs, no download."""

import functools
import string

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WORDS = """
the a an of to in on how do can i you my me what where is are was it this that and or not with
for best way kill process python person computer time light engine make bomb cake bath steal car
heart
someone cut tree paper find use without password safe harmful good bad old new big small red green
blue one two three help tell about why should people world story
"""
VOCABULARY = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    *string.punctuation,
    *string.digits,
    *WORDS.split(),
]

TEXTS = ("how do i kill a python process ?", "the cake is good")

COMMON = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT_ATTENTION = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
GROUPED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
}
EIGHT_LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
EIGHT = {"num_experts": 8, "num_experts_per_tok": 2}

# Family -> what its configuration needs beside `COMMON`.
FAMILIES: dict[str, dict] = {
    "mixtral": EIGHT_LOCAL,
    "olmoe": EIGHT,
    "qwen2_moe": {**EIGHT, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {
        **EIGHT,
        "moe_intermediate_size": 24,
        "head_dim": 8,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
    },
    "deepseek_v2": {
        **LATENT_ATTENTION,
        **GROUPED,
        "head_dim": 4,
        "topk_method": "group_limited_greedy",
    },
    "deepseek_v3": {**LATENT_ATTENTION, **GROUPED, "head_dim": 4},
    "gpt_oss": {**EIGHT_LOCAL, "head_dim": 8, "sliding_window": 16},
    "granitemoe": EIGHT_LOCAL,
    "glm4_moe": {**GROUPED, "head_dim": 8},
    "phimoe": EIGHT_LOCAL,
}
# Sparsemixer's window is narrow, so its weights stay away from 1 only if logits are close.
WEIGHT_SCALE = {"phimoe": 0.02}


def build(model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    """A random model of a family; `changes` go into its configuration."""
    settings = {**COMMON, **FAMILIES.get(model_type, {}), **changes}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**settings))
    scale = WEIGHT_SCALE.get(model_type, 0.3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, scale)
            elif "norm" in name:
                weight.normal_(1.0, 0.1)
            else:
                weight.normal_(0.0, 0.1)
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.normal_(0.0, 0.05)
    return model.to(dtype).eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-case word-level tokenizer with a padding token."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=256,
        padding_side="left",
    )


def encode(texts=TEXTS, side: str = "left") -> dict[str, torch.Tensor]:
    """Texts as one padded batch."""
    encoded = build_tokenizer()(list(texts), padding=True, padding_side=side, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@functools.cache
def wrapped(model_type: str, implementation: str = "grouped_mm", **changes):
    """A MoEModel of `build`, made once for all tests, which must leave it as it is."""
    from moe_interp.models import load_model

    model = build(model_type, **changes)
    model.set_experts_implementation(implementation)
    return load_model(model, tokenizer=build_tokenizer(), check=False)


def save(model_type: str, folder, **changes) -> str:
    """Write a Hugging Face checkpoint with its tokenizer, and return the folder."""
    if model_type in FAMILIES:
        build(model_type, **changes).save_pretrained(folder)
    else:
        import zoo

        zoo.build(model_type).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)
