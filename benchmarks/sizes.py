"""What is measured: the testbed, and untrained OLMoE models of any size, with prompts of any length."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from pointsman.data.types import Behaviour
from pointsman.engine.hf import HFEngine
from pointsman.engine.load import load
from pointsman.testbed.plugin import load_suite
from pointsman.testbed.tokenizer import build_tokenizer

TARGET_TOKENS = 11  # as the testbed's targets

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """An OLMoE with random weights.

    Attributes:
        hidden: Width of the residual stream (d).
        experts, top_k: Of every layer.
        width: Intermediate size of one expert.
        layers: Decoder layers, all with a router.
        heads: Attention heads, as many for keys and values.
        vocabulary: Token ids; at least those of the testbed's tokenizer.
    """

    hidden: int = 64
    experts: int = 32
    top_k: int = 2
    width: int = 32
    layers: int = 12
    heads: int = 4
    vocabulary: int = 252

    def __str__(self) -> str:
        return f"d = {self.hidden}, {self.experts} experts of {self.width}, top-{self.top_k}, {self.layers} layers"

    @property
    def active(self) -> int:
        """Weights that one token meets in one layer: attention, router, top-k experts."""
        return 4 * self.hidden**2 + self.hidden * self.experts + self.top_k * 3 * self.hidden * self.width

    def flops(self, token_layers: float, length: int) -> float:
        """Of a number of token-layers in rows of `length` tokens: 2 for each active weight, and attention over half of
        the row. Embeddings, norms and the head are left out."""
        return token_layers * (2 * self.active + 4 * self.hidden * length / 2)


SMALL = Shape()  # the shape of the testbed
WIDE = Shape(hidden=2048, experts=64, top_k=8, width=64, layers=16, heads=16, vocabulary=512)
"""As wide and deep as OLMoE-1B-7B, its experts and vocabulary cut so that float32 weights take 2.7 GB."""
OLMOE_1B_7B = Shape(hidden=2048, experts=64, top_k=8, width=1024, layers=16, heads=16, vocabulary=50304)
SHRUNK = Shape(hidden=32, experts=8, top_k=2, width=16, layers=3, heads=4, vocabulary=512)
"""Shows that a measurement runs; its figures mean nothing."""


def untrained(shape: Shape, *, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> HFEngine:
    """An engine over random weights, with the testbed's tokenizer. It never ends an answer early."""
    torch.manual_seed(seed)
    config = OlmoeConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        num_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        max_position_embeddings=1024,
        initializer_range=0.07 if shape.hidden < 512 else 0.02,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device(device):
        model: Any = OlmoeForCausalLM._from_config(config, dtype=_DTYPES[dtype])
    model.eval().requires_grad_(False)
    model.generation_config.eos_token_id = shape.vocabulary  # no such token
    if dtype == "float64":
        model.set_experts_implementation("eager")  # the grouped kernel knows no float64
    return HFEngine(model, build_tokenizer(), name=f"untrained OLMoE ({shape})")


def testbed() -> HFEngine:
    """The shipped OLMoE testbed."""
    return load("testbed", device="cpu")


def testbed_prompts(count: int) -> list[Behaviour]:
    """Restricted requests of the test split."""
    found = [b for b in load_suite().restricted if b.split == "test"]
    if len(found) < count:
        raise ValueError(f"the testbed has {len(found)} such prompts, not {count}")
    return found[:count]


def random_prompts(
    engine: HFEngine, tokens: int, count: int, seed: int = 0, target: int = TARGET_TOKENS
) -> list[Behaviour]:
    """Prompts of exactly `tokens` tokens with targets of `target`, of random words of the testbed's language."""
    rng = random.Random(seed)
    words = sorted(word for word in engine.tokenizer.get_vocab() if word.isalpha())
    around = len(engine.encode(["a"])) - 1
    if tokens <= around:
        raise ValueError(f"a prompt of {tokens} tokens has no room for a word: the chat template takes {around}")

    def say(length: int) -> str:
        return " ".join(rng.choice(words) for _ in range(length))

    found = [Behaviour(f"random-{tokens}-{n}", say(tokens - around), say(target)) for n in range(count)]
    for behaviour in found:
        lengths = len(engine.encode(behaviour.turns)), len(engine.encode_target(behaviour.target))
        if lengths != (tokens, target):
            raise ValueError(f"a prompt and target of {lengths} tokens instead of {(tokens, target)}")
    return found
