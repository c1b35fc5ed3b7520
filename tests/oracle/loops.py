"""The papers' loops, written literally: one plain batch-1 forward of the untouched model at a time.

They share nothing with the library but the candidate streams: routing is forced by a hook on the router that
replaces its selection, and probabilities are read from a full forward of one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Route = dict[tuple[int, int], Sequence[int]]  # (layer, token) -> experts


def log_prob(model: nn.Module, prompt: Sequence[int], target: Sequence[int], route: Route) -> float:
    """log p(target | prompt, route) in nats, from one forward of one row (OLMoE)."""
    gates = [layer.mlp.gate for layer in model.model.layers]
    hooks = [gate.register_forward_hook(_forced(route, n)) for n, gate in enumerate(gates)]
    try:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *target]])).logits[0]  # shape: [T, V]
    finally:
        for hook in hooks:
            hook.remove()
    log_p = torch.log_softmax(logits, -1)
    return math.fsum(float(log_p[len(prompt) + n - 1, token]) for n, token in enumerate(target))


def _forced(route: Route, layer: int):
    def hook(gate: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]):
        logits, weights, chosen = (t.clone() for t in output)
        for (where, token), experts in route.items():
            if where != layer:
                continue
            # OLMoE's own rule over the forced set: softmax over what is allowed, top-k of it
            allowed = torch.full_like(logits[token], float("-inf"))
            allowed[list(experts)] = logits[token, list(experts)]
            probabilities = torch.softmax(allowed, -1, dtype=torch.float)  # in float32, as OLMoE does
            value, index = probabilities.topk(len(experts))
            if gate.norm_topk_prob:
                value = value / value.sum()
            weights[token], chosen[token] = value, index
        return logits, weights, chosen

    return hook


def rosais(
    model: nn.Module, prompt: Sequence[int], target: int, masks: Sequence[Sequence[Sequence[int]]]
) -> list[float]:
    """RoSais(l; q) for every layer; ``masks[l][s]`` is the s-th random mask of layer l. METHODS section 1."""
    base = math.exp(log_prob(model, prompt, [target], {}))
    scores = []
    for layer, drawn in enumerate(masks):
        best = -math.inf
        for experts in drawn:
            everywhere = {(layer, t): experts for t in range(len(prompt))}
            best = max(best, math.exp(log_prob(model, prompt, [target], everywhere)) - base)
        scores.append(best)
    return scores


def fsour(
    model: nn.Module,
    prompt: Sequence[int],
    target: Sequence[int],
    layers: int,
    draw,
    *,
    log_tau: float = math.log(0.8),
    min_gain: float = 1e-9,
) -> tuple[Route, list[float]]:
    """The route search of METHODS section 3, N + 1 forwards at a time as published; ``draw(l, t)`` gives the sets."""
    route: Route = {}
    best = log_prob(model, prompt, target, route)
    trajectory = [best]
    for t in range(len(prompt)):
        for layer in range(layers):
            scores = [log_prob(model, prompt, target, {**route, (layer, t): c}) for c in draw(layer, t)]
            winner, level = None, best
            for n, score in enumerate(scores):
                if score > level + 1e-9:  # a tie goes to the first
                    winner, level = n, score
            if winner is not None and level > best + min_gain:
                best = level
                route[(layer, t)] = tuple(draw(layer, t)[winner])
                trajectory.append(best)
            if best >= log_tau:
                return route, trajectory
    return route, trajectory
