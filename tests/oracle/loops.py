"""The papers' loops, written literally: one plain batch-1 forward of the untouched model at a time.

They share nothing with the library but the candidate streams: routing is forced by a hook on the router that
replaces its selection, and probabilities are read from a full forward of one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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


def guided(
    score: Callable[[Route], float],
    promising: Callable[[Route], list[tuple[tuple[int, int], tuple[int, ...]]]],
    *,
    log_tau: float,
    iterations: int,
    joint: int,
    singles: int,
    min_gain: float,
) -> tuple[Route, float]:
    """The route search of METHODS section 9, one forward at a time.

    Args:
        score: log p(target) under a route.
        promising: Pairs by their estimated gain, each with its best set.
    """
    route: Route = {}
    best = score(route)
    for _ in range(iterations):
        if best >= log_tau:
            break
        ranked = promising(route)[:joint]
        sizes = sorted({n for n in (1, 2, 4, 8, 16, 32) if n <= len(ranked)} | ({len(ranked)} - {0}))
        together = [ranked[:n] for n in sizes]
        alone = [[pair] for pair in ranked[1:singles]]
        chosen, level = [], best
        for pairs in [*together, *alone]:
            if level >= log_tau:
                break  # the fewest pairs that arrive
            total = score({**route, **dict(pairs)})
            if total > level + 1e-9:
                chosen, level = pairs, total
        if level >= log_tau and chosen in together:  # fewer may do: bisect
            low, high = max([n for n in sizes if n < len(chosen)], default=0), len(chosen)
            while high - low > 1:
                middle = (low + high) // 2
                total = score({**route, **dict(ranked[:middle])})
                if total >= log_tau:
                    high, chosen, level = middle, ranked[:middle], total
                else:
                    low = middle
        if level <= best + max(min_gain, 1e-9):
            break
        route, best = {**route, **dict(chosen)}, level
    again = True
    while again:  # prune, the least promising first, until every pair is needed
        again = False
        for pair in reversed(list(route)):
            less = {p: experts for p, experts in route.items() if p != pair}
            if less and (total := score(less)) >= min(log_tau, best - 1e-6):
                route, best, again = less, total, True
    return route, best


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
