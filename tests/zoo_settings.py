"""Settings of the tiny random models of `zoo`: what their configurations share."""

from tiny_models import VOCABULARY

N_EXPERTS = 8

# Configurations call the same thing by many names; each takes those that it knows.
COMMON = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "sliding_window": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
    # Experts.
    "num_experts": N_EXPERTS,
    "num_local_experts": N_EXPERTS,
    "n_routed_experts": N_EXPERTS,
    "moe_num_experts": N_EXPERTS,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "top_k_experts": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_experts_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "share_expert_dim": 24,
    "shared_intermediate_size": 24,
    "dense_intermediate_size": 48,
    "moe_hidden_size": 16,
    "router_hidden_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "moe_routed_scaling_factor": 2.5,
    "moe_router_scaling_factor": 2.5,
    "router_scaling_factor": 2.5,
    "route_scale": 2.5,
    "first_k_dense_replace": 0,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    # Latent attention and its indexer.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 16,
    "index_kpool": 4,
    # State-space and linear attention.
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 8,
    "mamba_d_state": 8,
    "mamba_d_conv": 2,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 2,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
}
# A tower that no test looks through.
TOWER = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "out_hidden_size": 32,
    "image_size": 28,
    "patch_size": 14,
    "head_dim": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "output_dim": 32,
    "output_proj_dims": 32,
    "adapter_out_dim": 32,
    "position_embedding_size": 64,
    "text_hidden_size": 32,
    "num_local_experts": 2,
}

LATENT = {"num_key_value_heads": 4, "head_dim": 4}
GROUPS = {"n_group": 2, "topk_group": 1}
FIRST_DENSE = {"num_hidden_layers": 3, "first_k_dense_replace": 1}
DENSE_SPARSE = {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"]}
DOTS = {
    **LATENT,
    "layer_types": ["indexed_attention", "indexed_attention", "indexed_attention"],
}
ONE_DENSE = {"num_hidden_layers": 3, "mlp_only_layers": [0]}
HYBRID = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}


QWEN4 = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "hc_count": 2,
    "hc_lowrank": 8,
}
SMALL_SAM = {"sam_config": {"output_channels": 16, "downsample_channels": [16, 32]}}
MISTRAL_ROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 256,
    "llama_4_scaling_beta": 0.1,
}
GLM_ROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [1, 2, 1],
    "partial_rotary_factor": 1.0,
}
