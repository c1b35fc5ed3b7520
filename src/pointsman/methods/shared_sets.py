"""One set of experts for many tokens: the best of the summed gains. METHODS section 9.

The set that is best for many tokens at once is what a universal route forces at a place in all prompts, and what a mask
forces at all tokens of one. Where weights are not renormalised, the sum over tokens is linear in the set, and the best
one is exact. Where they are, it is a sum of ratios, which no fractional programme solves: if there are few sets, all
are tried; if there are many, those that are best at some token, and the one that is best for the mean token, made
better by exchanging one expert for another as long as that helps. What a set is worth is exact in every case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from pointsman.engine.route_gradients import LayerGradient
from pointsman.engine.weighing import Weighing, every_set
from pointsman.errors import ModelError
from pointsman.methods.best_sets import best_sets
from pointsman.routing.routers import Router

FEW_SETS = 2048
"""Of at most so many sets, all are tried."""


def best_shared_set(layer: LayerGradient, router: Router) -> tuple[tuple[int, ...], float]:
    """The set that raises log p(target) most, to first order, if it is forced at all these tokens.

    Returns:
        Experts, ascending; the sum of its gains, in nats.
    """
    weighing = layer.weighing
    if not weighing.renormalised:
        whole = Weighing("fixed", np.ones((1, router.experts)), weighing.scale)
        worth = (weighing.strength * layer.scores).sum(0, keepdims=True)  # shape: [1, E]
        chosen = best_sets(_alone(worth, whole, router), router)[0]
        return _best(layer, chosen)
    if router.possible_sets <= FEW_SETS:
        return _best(layer, _all_sets(router))
    strength = weighing.strength / weighing.strength.sum(1, keepdims=True)  # shape: [T, E]
    mean = strength.mean(0, keepdims=True)  # shape: [1, E]
    worth = (strength * layer.scores).mean(0, keepdims=True) / np.maximum(mean, np.finfo(np.float64).tiny)
    of_mean = best_sets(_alone(worth, Weighing(weighing.rule, mean, weighing.scale), router), router)[0]
    best, value = _best(layer, np.unique(np.concatenate([best_sets(layer, router)[0], of_mean]), axis=0))
    while True:
        other, raised = _best(layer, _exchanges(best, router))
        if not raised > value:
            return best, value
        best, value = other, raised


def summed_gains(layer: LayerGradient, sets: np.ndarray) -> np.ndarray:
    """The gains of each set, forced at all these tokens, in nats. Shapes: [N, k] -> [N]."""
    weighing, level = layer.weighing, layer.level.sum()
    if weighing.rule == "listed":
        number = {tuple(each): n for n, each in enumerate(weighing.sets.tolist())}
        at = [number[tuple(each)] for each in sets.tolist()]
        return np.asarray(np.einsum("tnk,tnk->n", weighing.listed[:, at], layer.scores[:, sets]) - level)
    if weighing.rule == "fixed":
        return np.asarray((weighing.strength * layer.scores).sum(0)[sets].sum(1) - level)
    strength = weighing.strength[:, sets]  # shape: [T, N, k]
    weighed = (strength * (weighing.scale * layer.scores)[:, sets]).sum(2)
    return np.asarray((weighed / np.maximum(strength.sum(2), np.finfo(np.float64).tiny)).sum(0) - level)


def at_tokens(layer: LayerGradient, tokens: Sequence[int]) -> LayerGradient:
    """The layer at some of its tokens, in this order."""
    index, weighing = np.asarray(tokens, dtype=np.int64), layer.weighing
    listed = weighing.rule == "listed"
    some = Weighing(
        weighing.rule,
        weighing.strength if listed else weighing.strength[index],
        weighing.scale,
        weighing.sets,
        weighing.listed[index] if listed else weighing.listed,
    )
    return LayerGradient(layer.scores[index], layer.chosen[index], layer.weights[index], some)


def joined(layers: Sequence[LayerGradient]) -> LayerGradient:
    """One layer at the tokens of several prompts, one after another."""
    weighings = [each.weighing for each in layers]
    first = next((each for each in weighings if each.rule == "listed"), weighings[0])
    if first.rule == "listed":  # the others were taken before their rule turned out not to hold
        tables = [each.listed if each.rule == "listed" else _tabled(each, first.sets) for each in weighings]
        whole = Weighing("listed", first.strength, first.scale, first.sets, np.concatenate(tables))
    elif any(each.rule != first.rule or not np.array_equal(each.scale, first.scale) for each in weighings):
        raise ModelError(
            "A router weighs experts by one rule in some prompts and by another in others",
            "Search routes of one prompt (--attack guided, or fsour), not a universal one",
        )
    else:
        whole = Weighing(first.rule, np.concatenate([each.strength for each in weighings]), first.scale)
    return LayerGradient(
        np.concatenate([each.scores for each in layers]),
        np.concatenate([each.chosen for each in layers]),
        np.concatenate([each.weights for each in layers]),
        whole,
    )


def _tabled(weighing: Weighing, sets: np.ndarray) -> np.ndarray:
    """The weights of each of these sets. Shapes: [N, k] -> [T, N, k]."""
    return np.stack([weighing.of(each) for each in sets], axis=1)


def _best(layer: LayerGradient, sets: np.ndarray) -> tuple[tuple[int, ...], float]:
    """The first of those that gain most."""
    gains = summed_gains(layer, sets)
    best = int(gains.argmax())
    return tuple(sets[best].tolist()), float(gains[best])


def _alone(scores: np.ndarray, weighing: Weighing, router: Router) -> LayerGradient:
    """One token at which nothing is used yet. Shape of the scores: [1, E]."""
    nothing = np.zeros((1, router.top_k))
    return LayerGradient(scores, nothing.astype(np.int64), nothing, weighing)


def _exchanges(experts: Sequence[int], router: Router) -> np.ndarray:
    """The set itself, and every set that differs from it in one expert. Shape: [N, k]."""
    others = [
        sorted({*experts} - {out} | {into}) for out in experts for into in range(router.experts) if into not in experts
    ]
    return np.array([sorted(experts), *(each for each in others if router.selectable(each))], dtype=np.int64)


@cache
def _all_sets(router: Router) -> np.ndarray:
    return every_set(router)
