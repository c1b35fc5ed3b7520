"""The set of experts that a route gradient favours most, exactly, at every token of a layer. METHODS section 9.

Where weights are not renormalised, it is the k largest weight x score. Where they are, its value is a ratio, sum of
a_e s_e over sum of a_e, and the best set solves a fractional 0-1 programme: Dinkelbach's iteration takes, for the
value lambda of a set, the k largest a_e (s_e - lambda) of those that can be selected together, whose value is at
least lambda; it ends at the best set (W. Dinkelbach, On Nonlinear Fractional Programming, 1967).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from pointsman.engine.route_gradients import LayerGradient
from pointsman.routing.routers import Router

_ROUNDS = 64  # a handful is usual; every round but the last of a token raises its value


def best_sets(layer: LayerGradient, router: Router) -> tuple[np.ndarray, np.ndarray]:
    """The best set at every token, and by how much it would raise log p(target).

    Returns:
        Experts, ascending, shape [T, k], int64; gains in nats, to first order, shape [T].
    """
    weighing, scores = layer.weighing, layer.scores
    if weighing.rule == "listed":
        values = np.einsum("tnk,tnk->tn", weighing.listed, scores[:, weighing.sets])  # shape: [T, N]
        best = values.argmax(1)
        return weighing.sets[best], values.max(1) - layer.level
    if not weighing.renormalised:
        chosen = _largest(weighing.strength * scores, router)
        value = np.take_along_axis(weighing.strength * scores, chosen, 1).sum(1)
        return chosen, value - layer.level
    strength, worth = weighing.strength, weighing.scale * scores
    chosen = _largest(strength * worth, router)
    value = _ratio(strength, worth, chosen)
    for _ in range(_ROUNDS):
        other = _largest(strength * (worth - value[:, None]), router)
        raised = _ratio(strength, worth, other)
        better = raised > value
        if not better.any():
            break
        chosen, value = np.where(better[:, None], other, chosen), np.where(better, raised, value)
    return chosen, value - layer.level


def _ratio(strength: np.ndarray, worth: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The value of a set at every token. Shapes: [T, E], [T, E], [T, k] -> [T]."""
    taken = np.take_along_axis(strength, chosen, 1)
    total = np.maximum(taken.sum(1), np.finfo(np.float64).tiny)
    return np.asarray((taken * np.take_along_axis(worth, chosen, 1)).sum(1) / total)


def _largest(values: np.ndarray, router: Router) -> np.ndarray:
    """The set of k experts of the largest sum that the architecture can select. Shapes: [T, E] -> [T, k], ascending."""
    if router.groups_used >= router.groups:
        return np.sort(np.argsort(-values, axis=1, kind="stable")[:, : router.top_k], axis=1)
    size = router.experts // router.groups
    groups = np.array(list(combinations(range(router.groups), router.groups_used)))  # shape: [G, groups used]
    members = (groups[:, :, None] * size + np.arange(size)).reshape(len(groups), -1)
    within = values[:, members]  # shape: [T, G, members]
    order = np.argsort(-within, axis=2, kind="stable")[:, :, : router.top_k]
    best = np.take_along_axis(within, order, 2).sum(2).argmax(1)  # which groups. Shape: [T]
    chosen = np.take_along_axis(members[best], order[np.arange(len(values)), best], 1)
    return np.sort(chosen, axis=1)
