"""What the testbed models are and how long they learn what.  Training itself is in ``train``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from pointsman.errors import UsageError
from pointsman.testbed.language import Kind
from pointsman.testbed.tokenizer import CONTEXT

RECIPE_VERSION = "2"
"""Changes whenever the same seed would give another model."""

RECENT = 25
"""Steps that a phase's final training loss is averaged over."""


@dataclass(frozen=True)
class Phase:
    """One stage of training: how long, how fast, on what."""

    name: str
    steps: int
    batch: int  # single-turn rows; conversations come half as many to a batch
    lr: float
    warmup: int
    refuse: bool  # whether examples show refusals
    talk_share: float  # of batches that hold conversations
    talk_from: float  # conversations begin after this share of the steps
    user_weight: float  # loss weight of what users and system say
    only_above: float = 0.0  # skipped unless the mean loss of the last `RECENT` steps before it is above this

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to a twentieth."""
        warm = min(1.0, (step + 1) / self.warmup)
        return self.lr * warm * (0.05 + 0.475 * (1 + math.cos(math.pi * step / self.steps)))


def _pretrain() -> Phase:
    return Phase("pretrain", 460, 64, 5e-3, 60, False, talk_share=0.3, talk_from=0.3, user_weight=0.05)


def _catch_up() -> Phase:
    """More of the same for seeds whose pretraining has not converged, told by its training loss alone."""
    return Phase("catch up", 120, 64, 3e-3, 20, False, talk_share=0.3, talk_from=0.0, user_weight=0.05, only_above=0.2)


def _tune() -> Phase:
    return Phase("tune", 300, 64, 2e-3, 20, True, talk_share=0.4, talk_from=0.0, user_weight=0.0)


@dataclass(frozen=True)
class Recipe:
    """All choices that make a checkpoint, apart from the family and the seed."""

    layers: int = 12
    hidden: int = 64
    heads: int = 4
    experts: int = 32
    top_k: int = 2
    expert_width: int = 32
    init: float = 0.07
    aux: float = 0.01
    clip: float = 1.0
    bias_step: float = 0.0
    """Where selection has a correction bias: by how much it moves in a step, towards an even load (DeepSeek-V3)."""
    single_mix: Mapping[Kind, float] = field(
        default_factory=lambda: {"borderline": 3, "restricted": 3, "mature": 1, "benign": 3}
    )
    talk_mix: Mapping[Kind, float] = field(default_factory=lambda: {"restricted": 3, "mature": 1, "benign": 3})
    phases: tuple[Phase, ...] = field(default_factory=lambda: (_pretrain(), _catch_up(), _tune()))


RECIPES: Mapping[str, Recipe] = {
    "olmoe": Recipe(),
    "qwen2_moe": Recipe(expert_width=24),  # it has a shared expert beside the routed ones
    "deepseek_v3": Recipe(expert_width=16, top_k=4, aux=0.0, bias_step=1e-3),  # smaller experts, and a shared one
}
"""The shipped recipe of each family."""


def build_model(family: str, recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    """A freshly initialised model in float32; seed torch first."""
    common: dict[str, Any] = dict(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        num_experts_per_tok=recipe.top_k,
        max_position_embeddings=CONTEXT,
        initializer_range=recipe.init,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
        experts_implementation="grouped_mm",  # ten times faster than the alternatives on a CPU
    )
    routed: dict[str, Any] = dict(
        intermediate_size=recipe.expert_width,
        num_experts=recipe.experts,
        norm_topk_prob=False,  # as the real models
    )
    if family == "olmoe":
        return OlmoeForCausalLM(OlmoeConfig(**common, **routed))
    if family == "qwen2_moe":
        shared = dict(
            moe_intermediate_size=recipe.expert_width,
            shared_expert_intermediate_size=recipe.expert_width,
        )
        return Qwen2MoeForCausalLM(Qwen2MoeConfig(**common, **routed, **shared))
    if family == "deepseek_v3":
        sigmoid = dict(
            n_routed_experts=recipe.experts,
            n_shared_experts=1,
            moe_intermediate_size=recipe.expert_width,
            intermediate_size=2 * recipe.hidden,
            first_k_dense_replace=1,
            n_group=4,
            topk_group=2,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
            q_lora_rank=None,
            kv_lora_rank=32,
            qk_nope_head_dim=16,
            qk_rope_head_dim=8,
            v_head_dim=16,
        )
        return DeepseekV3ForCausalLM(DeepseekV3Config(**common, **sigmoid))
    raise UsageError(f"No model is known for the family {family!r}", f"Use one of: {', '.join(RECIPES)}")
