"""Model code as deepseek-moe-16b-chat brings it, in small: written for transformers 4.36, with the cache of that time.

What it has in common with the public file is its interface: what it imports, how it asks its cache
(`from_legacy_cache`, `get_usable_length`, `seen_tokens`, `get_max_length`, `to_legacy_cache`), positions that are
computed when the model is made and saved nowhere, experts without gradients, a list of tied weights. The code is new.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_attn_mask_utils import (
    AttentionMaskConverter,  # noqa: F401
    _prepare_4d_attention_mask,  # noqa: F401
    _prepare_4d_causal_attention_mask,
    _prepare_4d_causal_attention_mask_for_sdpa,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS, is_torch_greater_or_equal_than_1_13
from transformers.utils import logging
from transformers.utils.import_utils import is_torch_fx_available

if is_torch_fx_available():
    if not is_torch_greater_or_equal_than_1_13:
        import torch.fx
    _prepare_4d_causal_attention_mask = torch.fx.wrap(_prepare_4d_causal_attention_mask)

logger = logging.get_logger(__name__)


class DeepseekConfig(PretrainedConfig):
    model_type = "deepseek"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size: int = 102400,
        hidden_size: int = 2048,
        intermediate_size: int = 10944,
        moe_intermediate_size: int = 1408,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 16,
        n_shared_experts: int | None = 2,
        n_routed_experts: int | None = 64,
        num_experts_per_tok: int = 6,
        moe_layer_freq: int = 1,
        first_k_dense_replace: int = 1,
        norm_topk_prob: bool = False,
        max_position_embeddings: int = 4096,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.moe_intermediate_size = moe_intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.n_shared_experts = n_shared_experts
        self.n_routed_experts = n_routed_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.moe_layer_freq = moe_layer_freq
        self.first_k_dense_replace = first_k_dense_replace
        self.norm_topk_prob = norm_topk_prob
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


class DeepseekRMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


ALL_LAYERNORM_LAYERS.append(DeepseekRMSNorm)


class DeepseekRotaryEmbedding(nn.Module):
    """Its frequencies are computed here and nowhere else: no checkpoint holds them."""

    def __init__(self, dim: int, max_position_embeddings: int, base: float) -> None:
        super().__init__()
        self.register_buffer("inv_freq", base ** -(torch.arange(0, dim, 2).float() / dim), persistent=False)
        self._remember(max_position_embeddings, torch.get_default_dtype())
        self.max_seq_len_cached: int | None = None

    def _remember(self, seq_len: int, dtype: torch.dtype) -> None:
        self.max_seq_len_cached = seq_len
        angles = torch.outer(torch.arange(seq_len, device=self.inv_freq.device), self.inv_freq).repeat(1, 2)
        self.register_buffer("cos_cached", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin_cached", angles.sin().to(dtype), persistent=False)

    def forward(self, x: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
        if self.max_seq_len_cached is None or seq_len > self.max_seq_len_cached:
            self._remember(seq_len, x.dtype)
        return self.cos_cached[:seq_len].to(x.dtype), self.sin_cached[:seq_len].to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos[position_ids][:, None] + turned * sin[position_ids][:, None]


class DeepseekMLP(nn.Module):
    def __init__(self, config: DeepseekConfig, width: int | None = None) -> None:
        super().__init__()
        width = config.intermediate_size if width is None else width
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoEGate(nn.Module):
    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.n_routed_experts = config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        flat = hidden_states.view(-1, hidden_states.shape[-1])
        scores = F.linear(flat, self.weight, None).softmax(dim=-1)
        topk_weight, topk_idx = torch.topk(scores, k=self.top_k, dim=-1, sorted=False)
        if self.top_k > 1 and self.norm_topk_prob:
            topk_weight = topk_weight / (topk_weight.sum(dim=-1, keepdim=True) + 1e-20)
        return topk_idx, topk_weight, None


class DeepseekMoE(nn.Module):
    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.experts = nn.ModuleList(
            DeepseekMLP(config, config.moe_intermediate_size) for _ in range(config.n_routed_experts)
        )
        self.gate = MoEGate(config)
        if config.n_shared_experts is not None:
            self.shared_experts = DeepseekMLP(config, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, hidden_states: Tensor) -> Tensor:
        topk_idx, topk_weight, _ = self.gate(hidden_states)
        flat = hidden_states.view(-1, hidden_states.shape[-1])
        y = self.moe_infer(flat, topk_idx.view(-1), topk_weight.view(-1, 1)).view_as(hidden_states)
        return y + self.shared_experts(hidden_states) if hasattr(self, "shared_experts") else y

    @torch.no_grad()
    def moe_infer(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Expert by expert over the tokens in the order of their experts."""
        out = torch.zeros_like(x)
        order = chosen.argsort()
        ends = chosen.bincount().cpu().numpy().cumsum(0)
        tokens = order // self.num_experts_per_tok
        for expert, end in enumerate(ends):
            start = 0 if expert == 0 else ends[expert - 1]
            if start < end:
                mine = tokens[start:end]
                said = self.experts[expert](x[mine]) * weights[order[start:end]]
                out.scatter_reduce_(0, mine.view(-1, 1).repeat(1, x.shape[-1]), said, reduce="sum")
        return out


class DeepseekAttention(nn.Module):
    def __init__(self, config: DeepseekConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        if config.rope_scaling is not None:
            raise ValueError("this small one knows no scaling")
        self.rotary_emb = DeepseekRotaryEmbedding(self.head_dim, config.max_position_embeddings, config.rope_theta)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_value: Cache | None = None,
        output_attentions: bool = False,
        use_cache: bool = False,
    ) -> tuple[Tensor, None, Cache | None]:
        batch, new, _ = hidden_states.shape
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(hidden_states).view(batch, new, -1, self.head_dim).transpose(1, 2) for p in projections)
        seen = k.shape[-2]
        if past_key_value is not None:
            seen += past_key_value.get_usable_length(seen, self.layer_idx)
        cos, sin = self.rotary_emb(v, seq_len=seen)
        q, k = _rotated(q, cos, sin, position_ids), _rotated(k, cos, sin, position_ids)
        if past_key_value is not None:
            k, v = past_key_value.update(k, v, self.layer_idx, {"sin": sin, "cos": cos})
        groups = self.num_heads // self.num_key_value_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if attention_mask is not None and attention_mask.shape != (batch, 1, new, seen):
            raise ValueError(f"Attention mask should be of size {(batch, 1, new, seen)}, but is {attention_mask.shape}")
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, new, -1)), None, past_key_value


_ATTENTION_CLASSES = {"eager": DeepseekAttention, "sdpa": DeepseekAttention}


class DeepseekDecoderLayer(nn.Module):
    def __init__(self, config: DeepseekConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = _ATTENTION_CLASSES[config._attn_implementation](config=config, layer_idx=layer_idx)
        sparse = config.n_routed_experts is not None and layer_idx >= config.first_k_dense_replace
        self.mlp = DeepseekMoE(config) if sparse and not layer_idx % config.moe_layer_freq else DeepseekMLP(config)
        self.input_layernorm = DeepseekRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = DeepseekRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_value: Cache | None = None,
        output_attentions: bool = False,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        attended, _, present = self.self_attn(
            self.input_layernorm(hidden_states), attention_mask, position_ids, past_key_value, use_cache=use_cache
        )
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return (hidden_states, present) if use_cache else (hidden_states,)


class DeepseekPreTrainedModel(PreTrainedModel):
    config_class = DeepseekConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("DeepseekDecoderLayer",)
    _skip_keys_device_placement = "past_key_values"
    _supports_sdpa = True
    _supports_cache_class = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)


class DeepseekModel(DeepseekPreTrainedModel):
    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(DeepseekDecoderLayer(config, n) for n in range(config.num_hidden_layers))
        self._use_sdpa = config._attn_implementation == "sdpa"
        self.norm = DeepseekRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        use_cache = use_cache if use_cache is not None else self.config.use_cache
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        given = input_ids if inputs_embeds is None else inputs_embeds
        batch, new = given.shape[:2]
        past, legacy = 0, False
        if use_cache:
            legacy = not isinstance(past_key_values, Cache)
            if legacy:
                past_key_values = DynamicCache.from_legacy_cache(past_key_values)
            past = past_key_values.get_usable_length(new)
        if position_ids is None:
            position_ids = torch.arange(past, new + past, dtype=torch.long, device=given.device)[None]
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        prepare = _prepare_4d_causal_attention_mask_for_sdpa if self._use_sdpa else _prepare_4d_causal_attention_mask
        mask = prepare(attention_mask, (batch, new), hidden, past)
        kept = None
        for layer in self.layers:
            outputs = layer(
                hidden, attention_mask=mask, position_ids=position_ids, past_key_value=past_key_values,
                output_attentions=bool(output_attentions), use_cache=use_cache,
            )  # fmt: skip
            hidden = outputs[0]
            if use_cache:
                kept = outputs[1]
        hidden = self.norm(hidden)
        if use_cache and legacy:
            kept = kept.to_legacy_cache()
        if not return_dict:
            return tuple(part for part in (hidden, kept) if part is not None)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=kept)


class DeepseekForCausalLM(DeepseekPreTrainedModel):
    _tied_weights_keys = ("lm_head.weight",)

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        self.model = DeepseekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_decoder(self) -> nn.Module:
        return self.model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=return_dict,
        )  # fmt: skip
        logits = self.lm_head(outputs[0]).float()
        if not return_dict:
            return (logits, *outputs[1:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if past_key_values is not None:
            if isinstance(past_key_values, Cache):
                cached, past = past_key_values.get_seq_length(), past_key_values.seen_tokens
                longest = past_key_values.get_max_length()
            else:
                cached = past = past_key_values[0][0].shape[2]
                longest = None
            if attention_mask is not None and attention_mask.shape[1] > input_ids.shape[1]:
                input_ids = input_ids[:, -(attention_mask.shape[1] - past) :]
            elif past < input_ids.shape[1]:
                input_ids = input_ids[:, past:]
            if longest is not None and attention_mask is not None and cached + input_ids.shape[1] > longest:
                attention_mask = attention_mask[:, -longest:]
        position_ids = kwargs.get("position_ids")
        if attention_mask is not None and position_ids is None:
            position_ids = attention_mask.long().cumsum(-1) - 1
            position_ids.masked_fill_(attention_mask == 0, 1)
            if past_key_values is not None:
                position_ids = position_ids[:, -input_ids.shape[1] :]
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "attention_mask": attention_mask,
        }

    @staticmethod
    def _reorder_cache(past_key_values: Any, beam_idx: Tensor) -> tuple[Any, ...]:
        return tuple(tuple(state.index_select(0, beam_idx) for state in layer) for layer in past_key_values)
