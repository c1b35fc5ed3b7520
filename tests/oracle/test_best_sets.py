"""`best_sets` is the best of all sets, found by asking every one of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pointsman.engine.all_experts import cover
from pointsman.engine.route_gradients import LayerGradient
from pointsman.engine.weighing import Rule, Weighing, every_set
from pointsman.methods.best_sets import best_sets
from pointsman.routing.routers import Router

TOKENS = 6
SHAPES = [  # experts, top-k, groups, groups used
    (4, 1, 1, 1), (7, 2, 1, 1), (12, 4, 1, 1), (5, 4, 1, 1), (8, 1, 4, 2), (12, 3, 4, 2), (12, 4, 3, 2), (12, 2, 2, 1),
    (8, 2, 8, 3), (9, 3, 3, 1), (12, 4, 4, 4),
]  # fmt: skip


def router_of(experts: int, top_k: int, groups: int, used: int) -> Router:
    return Router(0, 0, "gate", experts, top_k, groups, used)


def layer_of(router: Router, rule: Rule, seed: int) -> LayerGradient:
    """Any scores, strengths over several orders of magnitude, and scales as a router with one for each expert has."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(TOKENS, router.experts))
    strength = np.exp(rng.normal(scale=2, size=scores.shape))
    if rule == "fixed":
        weighing = Weighing(rule, strength, np.ones(router.experts))
    elif rule == "listed":
        sets = every_set(router)
        weighing = Weighing(rule, np.zeros((TOKENS, 0)), np.zeros(0), sets, rng.random((TOKENS, *sets.shape)))
    else:
        weighing = Weighing(rule, strength, rng.random(router.experts) + 0.5)
    chosen = router.draw(rng, TOKENS)
    return LayerGradient(scores, chosen, rng.random((TOKENS, router.top_k)), weighing)


def literal_gain(layer: LayerGradient, experts: tuple[int, ...], token: int) -> float:
    """sum over c of w_e(c) s_e - sum over the chosen of w_e s_e, written out."""
    weighing, gain = layer.weighing, 0.0
    for n, e in enumerate(experts):
        if weighing.rule == "fixed":
            weight = weighing.strength[token, e]
        elif weighing.rule == "listed":
            weight = weighing.listed[token, weighing.sets.tolist().index(list(experts)), n]
        else:
            weight = weighing.scale[e] * weighing.strength[token, e] / sum(weighing.strength[token, f] for f in experts)
        gain += weight * layer.scores[token, e]
    return gain - sum(
        w * layer.scores[token, e] for w, e in zip(layer.weights[token], layer.chosen[token], strict=True)
    )


def literal_sets(router: Router) -> list[tuple[int, ...]]:
    """Every set within as many groups as may be used."""
    size = router.experts // router.groups
    return [
        each
        for each in combinations(range(router.experts), router.top_k)
        if len({e // size for e in each}) <= router.groups_used
    ]


@pytest.mark.parametrize("rule", ["fixed", "softmax", "sigmoid", "listed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_set_is_better(shape: tuple[int, int, int, int], rule: Rule) -> None:
    router = router_of(*shape)
    for seed in range(3):
        layer = layer_of(router, rule, seed)
        sets, gains = best_sets(layer, router)
        for token in range(TOKENS):
            found = tuple(sets[token].tolist())
            assert found in literal_sets(router)
            assert gains[token] == pytest.approx(literal_gain(layer, found, token), rel=1e-9, abs=1e-9)
            best = max(literal_gain(layer, each, token) for each in literal_sets(router))
            assert gains[token] == pytest.approx(best, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("rule", ["fixed", "softmax", "listed"])
def test_gain_is_the_sum_written_out_in_any_order_of_the_experts(rule: Rule) -> None:
    router = router_of(8, 3, 1, 1)
    layer = layer_of(router, rule, 5)
    for experts in ((0, 3, 6), (1, 2, 7)):
        wanted = [literal_gain(layer, experts, token) for token in range(TOKENS)]
        assert layer.gain(experts) == pytest.approx(wanted, rel=1e-12)
        assert layer.gain(experts[::-1]) == pytest.approx(wanted, rel=1e-12)
        backwards = layer.weighing.of(experts[::-1])
        assert np.array_equal(backwards[:, ::-1], layer.weighing.of(experts))


@pytest.mark.parametrize("groups", [(1, 1), (4, 2)])
@pytest.mark.parametrize("rule", ["fixed", "softmax"])
def test_of_sets_that_are_equally_good_the_first_is_taken(rule: Rule, groups: tuple[int, int]) -> None:
    """All experts alike, so that rounding has no say: the lowest numbers, and the same again."""
    router = router_of(8, 2, *groups)
    scores = np.ones((TOKENS, 8))
    weighing = Weighing(rule, np.ones((TOKENS, 8)), np.ones(8))
    layer = LayerGradient(scores, np.zeros((TOKENS, 2), dtype=np.int64), np.zeros((TOKENS, 2)), weighing)
    sets, gains = best_sets(layer, router)
    assert sets.tolist() == [[0, 1]] * TOKENS
    assert gains == pytest.approx(np.full(TOKENS, 2.0 if rule == "fixed" else 1.0))
    assert np.array_equal(best_sets(layer, router)[0], sets)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_cover_holds_every_expert_in_sets_that_can_be_selected(shape: tuple[int, int, int, int]) -> None:
    router = router_of(*shape)
    sets = cover(router)
    assert {e for each in sets for e in each} == set(range(router.experts))
    assert all(router.selectable(each) and each == sorted(each) for each in sets)
    assert [tuple(each) for each in every_set(router).tolist()] == literal_sets(router)
