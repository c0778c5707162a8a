"""Tiny random models of every model type with routed experts in transformers, no download.

`FAMILIES` has one entry for each model type, and more where its configuration knows several ways
to route. `UNBUILT` gives the reason for what is left out; together they are complete, which
`tests/conformance/test_zoo.py` checks against transformers' own source.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import transformers
from tiny_models import VOCABULARY
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from zoo_settings import (
    COMMON,
    DENSE_SPARSE,
    DOTS,
    FIRST_DENSE,
    GLM_ROPE,
    GROUPS,
    HYBRID,
    LATENT,
    MISTRAL_ROPE,
    N_EXPERTS,
    ONE_DENSE,
    QWEN4,
    SMALL_SAM,
    TOWER,
)


@dataclass(frozen=True)
class Family:
    """How to build a tiny model of a model type.

    Attributes:
        model_type: As transformers names it.
        changes: What its configuration needs beside `COMMON`; for a composite configuration also
            by part, as in ``{"text_config": {...}}``.
        model_class: Name of the class; transformers' own choice of a language model if not given.
        scale: Standard deviation of the random matrices.
    """

    model_type: str
    changes: Mapping[str, object] = field(default_factory=dict)
    model_class: str | None = None
    scale: float = 0.3


def _alike(*model_types: str, **changes: object) -> dict[str, Family]:
    return {name: Family(name, changes) for name in model_types}


def _composite(model_type: str, vision: Mapping | None = None, **text: object) -> Family:
    return Family(model_type, {"text_config": text, "vision_config": vision or {}})


FAMILIES: dict[str, Family] = {
    # Softmax over all experts, or over the chosen ones.
    **_alike("aria_text", "flex_olmo", "gpt_oss", "granitemoe", "granitemoe_swa"),
    **_alike("granitemoeshared", "hunyuan_v1_moe", "minimax", "mixtral", "olmoe"),
    "olmoe-renormalised": Family("olmoe", {"norm_topk_prob": True}),
    "granitemoehybrid": Family(
        "granitemoehybrid",
        {"num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"]},
    ),
    "jamba": Family(
        "jamba",
        {
            "num_hidden_layers": 3,
            "attn_layer_period": 2,
            "attn_layer_offset": 0,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    **_alike("mellum", **DENSE_SPARSE),
    "mellum-plain": Family("mellum", {**DENSE_SPARSE, "norm_topk_prob": False}),
    **_alike("qwen2_moe", "qwen3_moe", **ONE_DENSE),
    "qwen2_moe-renormalised": Family("qwen2_moe", {"norm_topk_prob": True}),
    "qwen3_moe-renormalised": Family("qwen3_moe", {"norm_topk_prob": True}),
    **_alike("qwen3_next", "qwen3_5_moe_text", **HYBRID),
    "qwen4_exp_text": Family("qwen4_exp_text", QWEN4),
    "phimoe": Family("phimoe", scale=0.05),
    "dbrx": Family(
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 256,
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": N_EXPERTS, "moe_top_k": 2},
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        },
    ),
    "gemma4_text": Family(
        "gemma4_text",
        {
            "vocab_size_per_layer_input": len(VOCABULARY),
            "hidden_size_per_layer_input": 8,
            "enable_moe_block": True,
            "global_head_dim": 8,
        },
    ),
    # Groups limit the choice.
    "deepseek_v2": Family(
        "deepseek_v2", {**LATENT, **FIRST_DENSE, **GROUPS, "topk_method": "group_limited_greedy"}
    ),
    "deepseek_v2-greedy": Family("deepseek_v2", {**LATENT, "topk_method": "greedy"}),
    "mistral4": Family(
        "mistral4",
        {**LATENT, **FIRST_DENSE, **GROUPS, "rope_parameters": MISTRAL_ROPE},
    ),
    # Sigmoid scores, a bias that only the choice sees, groups.
    **_alike("deepseek_v3", "dots1", "glm4_moe", **LATENT, **FIRST_DENSE, **GROUPS),
    "deepseek_v3-plain": Family("deepseek_v3", {**LATENT, "norm_topk_prob": False}),
    **_alike("axk1", "axk2", "deepseek_v32", **LATENT, **DENSE_SPARSE, **GROUPS),
    **_alike("glm4_moe_lite", "glm_moe_dsa", **LATENT, **DENSE_SPARSE, **GROUPS),
    **_alike("dots3_note_text", **DOTS, **DENSE_SPARSE, **GROUPS),
    **_alike("exaone_moe", "hy_v4", "mimo_v2_flash", "beam", **DENSE_SPARSE, **GROUPS),
    **_alike("solar_open", **GROUPS),
    "bailing_hybrid": Family(
        "bailing_hybrid", {**HYBRID, **GROUPS, **DENSE_SPARSE, "num_key_value_heads": 4}
    ),
    "kimi_linear": Family(
        "kimi_linear", {**HYBRID, **GROUPS, **DENSE_SPARSE, "num_key_value_heads": 4}
    ),
    "nemotron_h": Family(
        "nemotron_h",
        {
            **GROUPS,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "moe", "attention", "moe"],
            "moe_latent_size": 16,
        },
    ),
    "nemotron_h-wide": Family(
        "nemotron_h",
        {"num_hidden_layers": 3, "layers_block_type": ["moe", "attention", "moe"]},
    ),
    # Sigmoid scores without groups.
    **_alike("afmoe", num_hidden_layers=3, num_dense_layers=1),
    **_alike("hy_v3", "laguna", **DENSE_SPARSE),
    "laguna-capped": Family("laguna", {"moe_router_logit_softcapping": 2.0}),
    "lfm2_moe": Family(
        "lfm2_moe",
        {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "num_dense_layers": 1,
        },
    ),
    "lfm2_moe-unbiased": Family(
        "lfm2_moe",
        {
            "layer_types": ["conv", "full_attention"],
            "num_dense_layers": 0,
            "use_expert_bias": False,
            "norm_topk_prob": False,
        },
    ),
    **_alike("minimax_m2", "kolibri1", "inkling2_text"),
    "kolibri1-renormalised": Family("kolibri1", {"norm_topk_prob": True}),
    **_alike("minimax_m3_vl_text", **DENSE_SPARSE),
    **_alike("flint", **ONE_DENSE),
    "cohere2_moe": Family("cohere2_moe", {**DENSE_SPARSE, "num_shared_experts": 0}),
    "cohere2_moe-sigmoid": Family("cohere2_moe", {"expert_selection_fn": "sigmoid"}),
    "cohere2_moe-sum": Family(
        "cohere2_moe",
        {
            "expert_selection_fn": "sigmoid",
            "norm_topk_prob": False,
            "shared_expert_combination_strategy": "sum",
        },
    ),
    **_alike("inkling_text", **DENSE_SPARSE),
    # Biased softmax; zero experts and a class to skip.
    "ernie4_5_moe": Family("ernie4_5_moe", {"num_hidden_layers": 3, "moe_layer_start_index": 1}),
    "longcat_flash": Family(
        "longcat_flash", {**LATENT, "moe_topk": 3, "zero_expert_num": 3, "ffn_hidden_size": 48}
    ),
    "zaya": Family("zaya", {"num_hidden_layers": 4, "num_experts_per_tok": 1}),
    # Experts chosen from a table of tokens.
    "deepseek_v4": Family(
        "deepseek_v4", {"num_hidden_layers": 3, "mlp_layer_types": ["hash_moe", "moe", "moe"]}
    ),
    # Other kinds of dispatch.
    "llama4_text": Family(
        "llama4_text", {"num_hidden_layers": 3, "moe_layers": [1, 2], "intermediate_size_mlp": 48}
    ),
    "jetmoe": Family("jetmoe"),
    "switch_transformers": Family(
        "switch_transformers",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "expert_capacity": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "nllb-moe": Family(
        "nllb-moe",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_sparse_step": 1,
            "decoder_sparse_step": 1,
            "decoder_start_token_id": 0,
            "moe_token_dropout": 0.0,
        },
    ),
    "doge": Family("doge", {"is_moe": True, "num_experts": 16}),
    "openai_privacy_filter": Family(
        "openai_privacy_filter", model_class="OpenAIPrivacyFilterForTokenClassification"
    ),
    # Language models inside models of several modalities.
    "aria": _composite("aria"),
    "deepseek_ocr2": _composite("deepseek_ocr2", SMALL_SAM, **DENSE_SPARSE),
    "diffusion_gemma": Family("diffusion_gemma", {"canvas_length": 6}),
    "dots3_note": Family(
        "dots3_note",
        {
            "text_config": {**DOTS, **DENSE_SPARSE, **GROUPS},
            "vision_config": {"adapter_in_dim": 32, "mlp_layer_types": ["dense"]},
            "audio_config": {"adapter_input_size": 32},
        },
    ),
    "ernie4_5_vl_moe": _composite(
        "ernie4_5_vl_moe",
        moe_intermediate_size=[24, 24],
        num_hidden_layers=3,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    ),
    "gemma4": _composite(
        "gemma4",
        vocab_size_per_layer_input=len(VOCABULARY),
        hidden_size_per_layer_input=8,
        enable_moe_block=True,
        global_head_dim=8,
    ),
    "glm4v_moe": _composite("glm4v_moe", **FIRST_DENSE, **GROUPS, rope_parameters=GLM_ROPE),
    "glm5_next": _composite(
        "glm5_next",
        **{**GROUPS, **DENSE_SPARSE},
        layer_types=["linear_attention", "indexed_attention", "linear_attention"],
        num_key_value_heads=4,
        qk_rope_head_dim=0,
    ),
    "inkling_mm_model": _composite("inkling_mm_model", **DENSE_SPARSE),
    "inkling2": _composite("inkling2"),
    "kimi_k25": _composite("kimi_k25", **LATENT, **FIRST_DENSE, **GROUPS),
    "llama4": _composite(
        "llama4", num_hidden_layers=3, moe_layers=[1, 2], intermediate_size_mlp=48
    ),
    "minimax_m3_vl": _composite("minimax_m3_vl", **DENSE_SPARSE),
    "mistral_large4": _composite("mistral_large4", **DENSE_SPARSE, **GROUPS, num_key_value_heads=4),
    "muse_spark": Family(
        "muse_spark",
        {
            "text_config": DENSE_SPARSE,
            "audio_config": {"patch_sizes": [4], "hidden_sizes": [32], "depths": [1]},
            "out_hidden_size": 32,
            "projector_hidden_size": 32,
        },
    ),
    "qwen3_5_moe": _composite("qwen3_5_moe", **HYBRID),
    "qwen3_omni_moe_thinker": Family(
        "qwen3_omni_moe_thinker", {"text_config": ONE_DENSE, "vision_start_token_id": 119}
    ),
    "qwen3_vl_moe": _composite("qwen3_vl_moe", **ONE_DENSE),
    "qwen4_exp": _composite("qwen4_exp", **QWEN4),
    "step3p7": _composite("step3p7", **DENSE_SPARSE),
    "unlimited_ocr": _composite("unlimited_ocr", SMALL_SAM, **DENSE_SPARSE),
}
_TALKER = (
    "belongs to a talker, which makes speech of a thinker's hidden states, not text of a prompt"
)
# Class of experts or of a router -> why no entry above has it.
UNBUILT: dict[str, str] = {
    "Qwen3OmniMoeTalkerTextExperts": _TALKER,
    "Qwen3OmniMoeTalkerTextTopKRouter": _TALKER,
    "Qwen3OmniMoeTextTopKRouter": "is declared by transformers, which makes no module of it",
}


def _configure(
    config_class: type, defaults: Mapping[str, object], changes: Mapping[str, object]
) -> transformers.PretrainedConfig:
    """A configuration of the defaults that its class knows, and of the changes."""
    known = {entry.name for entry in dataclasses.fields(config_class)}
    settings = {name: value for name, value in defaults.items() if name in known}
    settings.update(changes)
    for name, part in config_class.sub_configs.items():
        if part is transformers.AutoConfig:
            part = CONFIG_MAPPING[config_class.sub_configs_defaults[name].model_type]
        inner = COMMON if name == "text_config" else TOWER
        settings[name] = _configure(part, inner, changes.get(name, {}))
    return config_class(**settings)


def build_config(name: str) -> transformers.PretrainedConfig:
    """The configuration of an entry of `FAMILIES`."""
    family = FAMILIES[name]
    config_class = CONFIG_MAPPING[family.model_type]
    tokens = {key: COMMON[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    defaults = tokens if "text_config" in config_class.sub_configs else COMMON
    return _configure(config_class, defaults, family.changes)


def model_class(name: str) -> type[transformers.PreTrainedModel]:
    """The class that an entry of `FAMILIES` is built as."""
    family = FAMILIES[name]
    if family.model_class is not None:
        return getattr(transformers, family.model_class)
    for table in (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    ):
        if family.model_type in table:
            found = table[family.model_type]
            return getattr(transformers, found if isinstance(found, str) else found[0])
    raise KeyError(f"transformers has no language model of type {family.model_type!r}.")


def set_implementation(model: transformers.PreTrainedModel, implementation: str) -> None:
    """Let transformers run the experts in one of its ways; a composite may pass it on only."""
    for part in model.modules():
        if (
            isinstance(part, transformers.PreTrainedModel)
            and part._can_set_experts_implementation()
        ):
            part.set_experts_implementation(implementation)


def _cast(model: transformers.PreTrainedModel, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """The model in another dtype, but for what transformers loads in float32 then."""
    kept = set()
    if dtype in (torch.float16, torch.bfloat16):
        kept |= model._keep_in_fp32_modules_strict
    if dtype == torch.float16:
        kept |= model._keep_in_fp32_modules
    for path, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_floating_point():
            single = any(re.search(rf"(^|\.){part}(\.|$)", path) for part in kept)
            weight.data = weight.data.to(torch.float32 if single else dtype)
    return model


def build(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    implementation: str | None = None,
) -> transformers.PreTrainedModel:
    """A random model of an entry of `FAMILIES`, in evaluation mode.

    Matrices are wide enough for choices to differ from token to token, and the biases that only
    the choice sees are not 0.
    """
    family = FAMILIES[name]
    torch.manual_seed(seed)
    model = model_class(name)(build_config(name))
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "correction_bias" in path:
                weight.normal_(0.0, 0.05)
            elif weight.dim() > 1:
                weight.normal_(0.0, family.scale)
            elif "norm" in path:
                weight.normal_(1.0, 0.1)
            elif path.endswith("bias") or not bool(torch.isfinite(weight).all()):
                weight.normal_(0.0, 0.1)
        for path, buffer in model.named_buffers():
            if "correction_bias" in path or "expert_bias" in path or "balancing" in path:
                buffer.normal_(0.0, 0.05)
            elif "tid2eid" in path:
                table = [torch.randperm(N_EXPERTS)[: buffer.shape[1]] for _ in buffer]
                buffer.copy_(torch.stack(table))
    model = _cast(model, dtype).eval()
    if implementation is not None:
        set_implementation(model, implementation)
    return model
