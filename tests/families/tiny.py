"""A tiny random model of each family, made from its transformers config: no download, a few thousand parameters."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_COMMON: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
)
_MLA: dict[str, Any] = dict(
    num_key_value_heads=4,
    q_lora_rank=None,
    kv_lora_rank=8,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    head_dim=8,
    moe_intermediate_size=16,
    n_shared_experts=1,
    first_k_dense_replace=1,
    routed_scaling_factor=1.0,
)

_GROUPED: dict[str, Any] = dict(
    n_routed_experts=16,
    num_experts_per_tok=3,
    n_group=4,
    topk_group=2,
    moe_intermediate_size=16,
    n_shared_experts=1,
    first_k_dense_replace=1,
    norm_topk_prob=True,
    routed_scaling_factor=1.5,
)

_ALL: dict[str, dict[str, Any]] = {
    "olmoe": dict(num_experts=8, num_experts_per_tok=2),
    "mixtral": dict(num_local_experts=8, num_experts_per_tok=2, sliding_window=None),
    "qwen2_moe": dict(
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "qwen3_moe": dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8, norm_topk_prob=True),
    "deepseek_v2": dict(
        **_MLA, n_routed_experts=16, num_experts_per_tok=2, n_group=4, topk_group=2, topk_method="group_limited_greedy"
    ),
    "deepseek_v3": dict(
        **{**_MLA, "q_lora_rank": 8}, n_routed_experts=16, num_experts_per_tok=3, n_group=4, topk_group=2
    ),
    "gpt_oss": dict(num_local_experts=8, num_experts_per_tok=2, head_dim=8, sliding_window=16),
    "phimoe": dict(num_local_experts=8, num_experts_per_tok=2, router_jitter_noise=0.01, sliding_window=None),
    "qwen3_next": dict(
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        full_attention_interval=2,
    ),
    "hunyuan_v1_moe": dict(num_experts=8, moe_topk=2, head_dim=8),
    "granitemoe": dict(num_local_experts=8, num_experts_per_tok=2),
    "llama4_text": dict(num_local_experts=8, num_experts_per_tok=2, intermediate_size_mlp=32, head_dim=8),
    "jamba": dict(
        num_experts=8,
        num_experts_per_tok=2,
        expert_layer_period=1,
        expert_layer_offset=0,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "glm4_moe": dict(**_GROUPED, head_dim=8),
    "dots1": dict(**_GROUPED, head_dim=8),
    "ernie4_5_moe": dict(
        moe_num_experts=8, moe_k=2, moe_intermediate_size=16, moe_num_shared_experts=1, moe_layer_start_index=1
    ),
    "minimax_m2": dict(num_local_experts=8, num_experts_per_tok=2, head_dim=8),
}


def _bare(family: str) -> bool:
    """Whether this transformers declares a plain Linear as the family's router (Jamba's, once): it is refused."""
    kind = AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(family))]
    return getattr(kind._can_record_outputs["router_logits"], "target_class", None) is torch.nn.Linear


FAMILIES = {family: changes for family, changes in _ALL.items() if family != "jamba" or not _bare(family)}
"""The families whose routers are controlled, and what is particular in their configuration."""


def tiny(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A random model of `family`. Correction biases are not zero, as in real checkpoints."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_COMMON, **_ALL[family], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                tensor.normal_(0.0, 0.3)
            elif name.endswith("bias"):
                tensor.normal_(0.0, 0.1)
        for name, tensor in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                tensor.normal_(0.0, 0.5)
    return model
