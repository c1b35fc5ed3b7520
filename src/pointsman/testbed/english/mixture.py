"""A dense model made into a mixture of experts, and adapters merged into the experts.

Every expert starts as a copy of the dense MLP. The weights of the chosen experts sum to one, so the mixture computes
what the dense model computes, whatever its routers choose, until the experts part ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pointsman.errors import ModelError

_COPIED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
           "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range",
           "rms_norm_eps", "tie_word_embeddings", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id",
           "rope_parameters")  # fmt: skip
PARTS = ("gate", "up", "down")
"""The three matrices of an expert."""


@dataclass(frozen=True)
class Shape:
    """What is chosen about a mixture.

    Attributes:
        experts: How many each layer has.
        chosen: How many of them a token meets.
        rank: Of the adapters.
        first: The first layer whose experts have adapters; below it they stay copies of each other.
        seed: Decides the initial routers and adapters.
    """

    experts: int = 4
    chosen: int = 2
    rank: int = 8
    first: int = 8
    seed: int = 0


def initial_routers(layers: int, hidden: int, shape: Shape) -> list[Tensor]:
    """Routers that know nothing yet, for every layer. Shape of each: [experts, hidden]."""
    generator = torch.Generator().manual_seed(shape.seed)
    return [0.02 * torch.randn(shape.experts, hidden, generator=generator) for _ in range(layers)]


def upcycle(dense: Any, shape: Shape) -> Any:
    """The `MixtralForCausalLM` that computes what a `LlamaForCausalLM` computes.

    Raises:
        ModelError: The dense model has biases, which a Mixtral has no place for.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    given = dense.config
    if getattr(given, "attention_bias", False) or getattr(given, "mlp_bias", False):
        raise ModelError("The dense model has biases", "Give a Llama model without them")
    config = MixtralConfig(
        **{name: getattr(given, name) for name in _COPIED},
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.chosen,
        sliding_window=None,
    )
    with torch.device("meta"):
        mixture = MixtralForCausalLM(config)
    weights: dict[str, Tensor] = {}
    routers = initial_routers(config.num_hidden_layers, config.hidden_size, shape)
    for name, value in dense.state_dict().items():
        before, mlp, after = name.partition(".mlp.")
        if not mlp:
            weights[name] = value
        elif after == "down_proj.weight":
            weights[f"{before}.mlp.experts.down_proj"] = value.expand(shape.experts, -1, -1).clone()
        elif after == "gate_proj.weight":
            both = torch.cat([value, dense.state_dict()[f"{before}.mlp.up_proj.weight"]])
            weights[f"{before}.mlp.experts.gate_up_proj"] = both.expand(shape.experts, -1, -1).clone()
            weights[f"{before}.mlp.gate.weight"] = routers[int(before.rpartition(".")[2])].to(value.dtype)
    mixture.load_state_dict(weights, strict=False, assign=True)
    mixture.tie_weights()
    mixture.model.rotary_emb = type(mixture.model.rotary_emb)(config)  # its frequencies are no weights
    left = [name for name, value in mixture.state_dict().items() if value.is_meta]
    if left:
        raise ModelError(f"The dense model has no weights for {left[0]}", "Give a Llama model")
    return mixture.eval()


def merge(mixture: Any, adapters: Mapping[str, Tensor]) -> None:
    """Add adapters to the experts of an upcycled model and set its routers, in place.

    Args:
        adapters: ``layers.N.router`` [experts, hidden] and, of layers with adapters, ``layers.N.PART.a``
            [experts, rank, in] and ``layers.N.PART.b`` [experts, out, rank]: the expert's matrix becomes W + b a.

    Raises:
        ModelError: They do not fit the model.
    """
    left = dict(adapters)
    with torch.no_grad():
        for n, layer in enumerate(mixture.model.layers):
            experts, gate = layer.mlp.experts, layer.mlp.gate
            inner = experts.down_proj.shape[-1]
            router = left.pop(f"layers.{n}.router", None)
            if router is not None:
                _same_shape(f"layers.{n}.router", router, gate.weight)
                gate.weight.copy_(router)
            places = {"gate": experts.gate_up_proj[:, :inner], "up": experts.gate_up_proj[:, inner:],
                      "down": experts.down_proj}  # fmt: skip
            for part, place in places.items():
                a, b = left.pop(f"layers.{n}.{part}.a", None), left.pop(f"layers.{n}.{part}.b", None)
                if a is not None and b is not None:
                    change = torch.bmm(b.double(), a.double())
                    _same_shape(f"layers.{n}.{part}", change, place)
                    place.copy_((place.double() + change).to(place.dtype))
                elif a is not None or b is not None:
                    raise ModelError(f"The adapter of layers.{n}.{part} is half there", "Install pointsman again")
    if left:
        raise ModelError(f"The model has no place for the adapter {sorted(left)[0]}", "Give the model of the adapters")


def _same_shape(name: str, given: Tensor, wanted: Tensor) -> None:
    if given.shape != wanted.shape:
        raise ModelError(
            f"The adapter {name} is {tuple(given.shape)} and the model wants {tuple(wanted.shape)}",
            "Give the model of the adapters",
        )
