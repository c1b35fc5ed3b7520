"""One set for many tokens: its value is the plain sum of gains, and no set that was tried is worth more."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pointsman.engine.route_gradients import LayerGradient
from pointsman.engine.weighing import Weighing, every_set
from pointsman.errors import ModelError
from pointsman.methods import shared_sets
from pointsman.methods.shared_sets import at_tokens, best_shared_set, joined, summed_gains
from pointsman.routing.routers import Router

ROUTER = Router(0, 0, "gate", 8, 3)
GROUPED = Router(0, 0, "gate", 8, 3, 4, 2)


def layer(rule: str, router: Router = ROUTER, tokens: int = 5, seed: int = 0) -> LayerGradient:
    """A layer of random gradients whose experts are weighed by this rule."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(tokens, router.experts))
    strength = np.exp(rng.normal(size=(tokens, router.experts)))
    chosen = router.draw(rng, tokens)
    sets = every_set(router)
    if rule == "listed":
        listed = rng.random((tokens, len(sets), router.top_k))
        weighing = Weighing("listed", np.zeros((tokens, 0)), np.zeros(0), sets, listed)
    else:
        scale = np.ones(router.experts) if rule == "fixed" else rng.random(router.experts) + 0.5
        weighing = Weighing(rule, strength, scale)  # type: ignore[arg-type]
    return LayerGradient(scores, chosen, rng.random((tokens, router.top_k)), weighing)


def by_loop(gradient: LayerGradient, router: Router) -> dict[tuple[int, ...], float]:
    """Of every set that can be selected, the sum of its gains, token by token."""
    return {
        experts: sum(float(gradient.gain(experts)[t]) for t in range(len(gradient.scores)))
        for experts in combinations(range(router.experts), router.top_k)
        if router.selectable(experts)
    }


@pytest.mark.parametrize("router", [ROUTER, GROUPED])
@pytest.mark.parametrize("rule", ["fixed", "softmax", "sigmoid", "listed"])
def test_of_few_sets_the_best_of_the_sum_is_found(rule: str, router: Router) -> None:
    gradient = layer(rule, router)
    values = by_loop(gradient, router)
    experts, value = best_shared_set(gradient, router)
    assert value == pytest.approx(max(values.values()))
    assert values[experts] == pytest.approx(value)
    assert summed_gains(gradient, np.array(list(values))) == pytest.approx(list(values.values()))


@pytest.mark.parametrize("router", [ROUTER, GROUPED])
def test_of_many_sets_one_is_found_that_no_exchange_betters(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_sets, "FEW_SETS", 0)
    shares = []
    for seed in range(20):
        gradient = layer("softmax", router, seed=seed)
        values = by_loop(gradient, router)
        experts, value = best_shared_set(gradient, router)
        assert values[experts] == pytest.approx(value)  # what it is worth is exact
        assert value >= max(v for other, v in values.items() if len({*other} & {*experts}) >= router.top_k - 1) - 1e-12
        shares.append(value >= max(values.values()) - 1e-12)
    assert np.mean(shares) >= 0.8  # nearly always the best of all


@pytest.mark.parametrize("rule", ["softmax", "listed"])
def test_tokens_are_taken_and_joined_without_a_change(rule: str) -> None:
    whole = layer(rule)
    parts = [at_tokens(whole, [3, 0]), at_tokens(whole, [4])]
    again = joined(parts)
    for experts in [(0, 1, 2), (1, 4, 7)]:
        assert again.gain(experts).tolist() == whole.gain(experts)[[3, 0, 4]].tolist()


def test_tokens_of_a_rule_that_did_not_hold_are_joined_with_those_of_all_sets() -> None:
    before, after = layer("fixed", tokens=2), layer("listed", tokens=3, seed=1)
    whole = joined([before, after])
    for experts in [(0, 1, 2), (1, 4, 7)]:
        assert whole.gain(experts).tolist() == [*before.gain(experts), *after.gain(experts)]
    assert best_shared_set(whole, ROUTER)[1] == pytest.approx(max(by_loop(whole, ROUTER).values()))


def test_two_rules_of_one_router_are_not_joined() -> None:
    for one, other in [("fixed", "softmax"), ("softmax", "sigmoid"), ("softmax", "softmax")]:
        with pytest.raises(ModelError, match="by one rule in some prompts and by another"):
            joined([layer(one), layer(other, seed=1)])  # with another scale, if nothing else
