"""What each family's router does, written by hand and slowly, token by token, with deleted experts really gone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pointsman.routing.routers import Router, find_routers

Weights = dict[int, float]
"""The experts that one token uses, and how much of each."""


def _softmax(values: dict[int, float]) -> Weights:
    top = max(values.values())
    raised = {e: math.exp(v - top) for e, v in values.items()}
    total = sum(raised.values())
    return {e: v / total for e, v in raised.items()}


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _top(values: dict[int, float], k: int) -> list[int]:
    return sorted(values, key=lambda e: -values[e])[:k]


def softmax_topk(r: dict[int, float], router: Router, module: nn.Module, renormalise: bool) -> Weights:
    p = _softmax(r)
    chosen = {e: p[e] for e in _top(p, router.top_k)}
    total = sum(chosen.values()) if renormalise else 1.0
    return {e: v / total for e, v in chosen.items()}


def topk_softmax(r: dict[int, float], router: Router, module: nn.Module) -> Weights:
    return _softmax({e: r[e] for e in _top(r, router.top_k)})


def grouped_softmax(r: dict[int, float], router: Router, module: Any) -> Weights:
    p, size = _softmax(r), router.experts // router.groups
    best = {g: max((v for e, v in p.items() if e // size == g), default=-1.0) for g in range(router.groups)}
    groups = _top(best, router.groups_used)
    chosen = _top({e: v for e, v in p.items() if e // size in groups}, router.top_k)
    return {e: p[e] * module.routed_scaling_factor for e in chosen}


def grouped_sigmoid(r: dict[int, float], router: Router, module: Any) -> Weights:
    s, size = {e: _sigmoid(v) for e, v in r.items()}, router.experts // router.groups
    choice = {e: v + float(module.e_score_correction_bias[e]) for e, v in s.items()}

    def rank(group: int) -> tuple[int, float]:  # a group that offers two experts comes before one that offers one
        scores = sorted((v for e, v in choice.items() if e // size == group), reverse=True)[:2]
        return len(scores), sum(scores)

    groups = sorted(range(router.groups), key=rank, reverse=True)[: router.groups_used]
    chosen = _top({e: v for e, v in choice.items() if e // size in groups}, router.top_k)
    total = sum(s[e] for e in chosen) if module.norm_topk_prob else 1.0
    return {e: s[e] / total * module.routed_scaling_factor for e in chosen}


def sparsemixer(r: dict[int, float], router: Router, module: Any) -> Weights:
    used: Weights = {}
    for _ in range(2):
        left = {e: v for e, v in r.items() if e not in used}
        best = max(left, key=lambda e: left[e])
        high = left[best]
        near = {e: v for e, v in left.items() if (high - v) / max(abs(v), high) <= 2 * module.router_jitter_noise}
        used[best] = _softmax(near)[best]
    return used


def biased(r: dict[int, float], router: Router, owner: Any, p: Weights, bias: Tensor) -> Weights:
    """Chosen by score plus bias, weighted by score alone, adding up to one."""
    chosen = _top({e: v + float(bias.flatten()[e]) for e, v in p.items()}, router.top_k)
    total = sum(p[e] for e in chosen)
    return {e: p[e] / total for e in chosen}


def softmax_biased(r: dict[int, float], router: Router, owner: Any) -> Weights:
    return biased(r, router, owner, _softmax(r), owner.moe_statics.e_score_correction_bias)


def sigmoid_biased(r: dict[int, float], router: Router, owner: Any) -> Weights:
    return biased(r, router, owner, {e: _sigmoid(v) for e, v in r.items()}, owner.e_score_correction_bias)


def topk_sigmoid(r: dict[int, float], router: Router, owner: Any) -> Weights:
    return {e: _sigmoid(r[e]) for e in _top(r, router.top_k)}


CONTRACTS: dict[str, Callable[[dict[int, float], Router, Any], Weights]] = {
    "olmoe": lambda r, router, m: softmax_topk(r, router, m, m.norm_topk_prob),
    "qwen2_moe": lambda r, router, m: softmax_topk(r, router, m, m.norm_topk_prob),
    "qwen3_moe": lambda r, router, m: softmax_topk(r, router, m, m.norm_topk_prob),
    "mixtral": lambda r, router, m: softmax_topk(r, router, m, True),
    "gpt_oss": topk_softmax,
    "deepseek_v2": grouped_softmax,
    "deepseek_v3": grouped_sigmoid,
    "phimoe": sparsemixer,
    "qwen3_next": lambda r, router, m: softmax_topk(r, router, m, m.norm_topk_prob),
    "hunyuan_v1_moe": lambda r, router, m: softmax_topk(r, router, m, True),
    "granitemoe": topk_softmax,
    "llama4_text": topk_sigmoid,
    "jamba": lambda r, router, m: softmax_topk(r, router, m, False),
    "glm4_moe": grouped_sigmoid,
    "dots1": grouped_sigmoid,
    "ernie4_5_moe": softmax_biased,
    "minimax_m2": sigmoid_biased,
}


@contextmanager
def spied(model: nn.Module) -> Iterator[list[tuple[Router, Any, Tensor, Tensor, Tensor]]]:
    """Every router call inside: router, the module that owns its constants, raw logits, weights and experts.

    The raw logits are computed here from the router's input and weight. The owner is the router, or its block where
    the block hands the router its correction bias.
    """
    seen: list[tuple[Router, Any, Tensor, Tensor, Tensor]] = []
    hooks = []
    for router in find_routers(model):
        block = model.get_submodule(router.path.rpartition(".")[0])

        def note(module: Any, args: Any, output: Any, router: Router = router, block: nn.Module = block) -> None:
            product = module if hasattr(module, "weight") else module.wg
            x = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            raw = x @ product.weight.detach().double().T
            if getattr(product, "bias", None) is not None:
                raw = raw + product.bias.detach().double()
            tensors = [part.detach() for part in output if isinstance(part, Tensor)]
            whole = [part for part in tensors if not part.is_floating_point()]
            if whole:  # in which order they are returned depends on the version
                (experts,) = whole
                (weights,) = [part for part in tensors if part.is_floating_point() and part.shape == experts.shape]
            else:  # a score for every expert, zero where it is not used
                weights, experts = tensors[0].topk(router.top_k)
            seen.append((router, block if len(args) > 1 else module, raw, weights, experts))

        hooks.append(model.get_submodule(router.path).register_forward_hook(note))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def used(weights: Tensor, experts: Tensor, token: int) -> Weights:
    return dict(zip(experts[token].tolist(), weights[token].tolist(), strict=True))
