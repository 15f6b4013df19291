"""Causal language models of transformers with random weights, as small as their configs allow."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "n_inner": 48,
    "ffn_hidden_size": 48,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "max_seq_len": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "sliding_window": 4,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "intermediate_size_mlp": 48,
    # queries and keys wider than values
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # recurrent layers
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_d_state": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_d_ssm": 64,
    "mamba_dt_rank": 4,
    "n_mamba_heads": 8,
    "ssm_state_size": 4,
    "state_size": 4,
    "n_groups": 1,
    "lru_width": 32,
    "use_mamba_kernels": False,
}
MORE: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 8, "num_hidden_layers": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 16},
    "zamba2": {"hybrid_layer_ids": [1, 3], "mamba_headdim": 16},
    "phimoe": {"sliding_window": None},
}
MOST_PARAMETERS = 3_000_000


def model_types() -> list[str]:
    """Every text-only type that AutoModelForCausalLM knows."""
    return sorted({config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING})


def build_tiny(model_type: str, **changes: Any) -> PreTrainedModel:
    """A float32 model of some 10,000 weights, wide enough that answers differ.

    Raises: ValueError when its configuration stays large.
    """
    known = AutoConfig.for_model(model_type)
    fixed = {name for name, value in vars(type(known)).items() if isinstance(value, property)}
    small = {k: v for k, v in SMALL.items() if hasattr(known, k) and k not in fixed}
    if hasattr(known, "qk_rope_head_dim"):
        small = {**small, "num_key_value_heads": small["num_attention_heads"]}
        small.pop("head_dim", None)
    config = AutoConfig.for_model(model_type, **{**small, **MORE.get(model_type, {}), **changes})
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > MOST_PARAMETERS:
        raise ValueError(f"{model_type} has {size:,} weights with a tiny configuration")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and float(parameter.std()) < 0.1:
                parameter.mul_(0.2 / max(float(parameter.std()), 1e-6))
    return model.eval()
