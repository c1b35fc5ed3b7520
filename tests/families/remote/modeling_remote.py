"""Model code as a checkpoint brings it: a small decoder whose gate is written as that of deepseek-moe-16b.

Nothing here says to transformers where the routers are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast


class RemoteConfig(PretrainedConfig):
    model_type = "remote_moe"

    def __init__(
        self,
        vocab_size: int = 64,
        hidden_size: int = 32,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        n_routed_experts: int | None = 8,
        num_experts_per_tok: int = 2,
        moe_intermediate_size: int = 16,
        first_k_dense_replace: int = 1,
        gate: str = "MoEGate",
        max_position_embeddings: int = 512,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.n_routed_experts = n_routed_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.moe_intermediate_size = moe_intermediate_size
        self.first_k_dense_replace = first_k_dense_replace
        self.gate = gate
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)


class MoEGate(nn.Module):
    """The gate of deepseek-moe-16b: indices first, weights second, an auxiliary loss last."""

    def __init__(self, config: RemoteConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.n_routed_experts = config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
        logits = F.linear(hidden_states, self.weight, None)
        scores = logits.softmax(dim=-1)
        topk_weight, topk_idx = torch.topk(scores, k=self.top_k, dim=-1, sorted=False)
        return topk_idx, topk_weight, None


class TwoStepGate(MoEGate):
    """One that Pointsman cannot read: two products, either of which may be the logits."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
        logits = F.linear(hidden_states, self.weight)
        scores = F.linear(F.linear(logits, self.weight.T), self.weight).softmax(dim=-1)
        topk_weight, topk_idx = torch.topk(scores, k=self.top_k, dim=-1, sorted=False)
        return topk_idx, topk_weight, None


class LyingGate(MoEGate):
    """One that says one thing and makes the block do another: its indices are not those that the block uses."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        topk_idx, topk_weight, _ = super().forward(hidden_states)
        self.used = torch.zeros_like(topk_idx) + torch.arange(self.top_k)
        return topk_idx, topk_weight, None


class SortingGate(MoEGate):
    """One that picks by sorting: there is no top-k in which a mask could be carried out, and none is needed."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
        scores = F.linear(hidden_states, self.weight).softmax(dim=-1)
        topk_idx = scores.argsort(dim=-1, descending=True)[:, : self.top_k]
        return topk_idx, scores.gather(-1, topk_idx), None


class SilentGate(MoEGate):
    """One that returns only probabilities and leaves the choice to its block."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.linear(hidden_states.view(-1, hidden_states.shape[-1]), self.weight).softmax(dim=-1)


_GATES = {gate.__name__: gate for gate in (MoEGate, TwoStepGate, LyingGate, SortingGate, SilentGate)}


class MLP(nn.Module):
    def __init__(self, config: RemoteConfig, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RemoteMoE(nn.Module):
    def __init__(self, config: RemoteConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList(MLP(config, config.moe_intermediate_size) for _ in range(config.n_routed_experts))
        self.gate = _GATES[config.gate](config)
        self.shared_experts = MLP(config, config.moe_intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        flat = hidden_states.view(-1, hidden_states.shape[-1])
        told = self.gate(hidden_states)
        if isinstance(told, Tensor):
            weight, index = told.topk(self.gate.top_k, dim=-1)
        else:
            index, weight, _ = told
        index = getattr(self.gate, "used", index)
        output = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(index == number)
            if len(token):
                output.index_add_(0, token, expert(flat[token]) * weight[token, slot, None])
        return output.view_as(hidden_states) + self.shared_experts(hidden_states)


class Attention(nn.Module):
    def __init__(self, config: RemoteConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.layer = config.num_attention_heads, layer
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        causal = mask is None and x.shape[1] > 1
        joined = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(joined.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, config: RemoteConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        dense = config.n_routed_experts is None or layer < config.first_k_dense_replace
        self.mlp = MLP(config, 2 * config.hidden_size) if dense else RemoteMoE(config)
        self.before, self.after = nn.RMSNorm(config.hidden_size), nn.RMSNorm(config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        x = x + self.self_attn(self.before(x), mask, cache)
        return x + self.mlp(self.after(x))


class RemoteModel(PreTrainedModel):
    config_class = RemoteConfig
    _supports_sdpa = True

    def __init__(self, config: RemoteConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, n) for n in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, past_key_values: Any
    ) -> Tensor:
        x = self.embed_tokens(input_ids)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        elif position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]
        x = x + self.embed_positions(position_ids)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        for layer in self.layers:
            x = layer(x, mask, past_key_values)
        return self.norm(x)


class RemoteForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = RemoteConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: RemoteConfig) -> None:
        super().__init__(config)
        self.model = RemoteModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden = self.model(input_ids, attention_mask, position_ids, past_key_values if use_cache else None)
        return CausalLMOutputWithPast(logits=self.lm_head(hidden[:, -logits_to_keep:]), past_key_values=past_key_values)
