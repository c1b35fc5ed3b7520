"""The screen: its literal loop, batches, memory, refusals; and that it sees what RoSais sees."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from engines import behaviours, small_engine
from plain_engine import PlainEngine
from pointsman.engine.hf import HFEngine
from pointsman.errors import ModelError, UsageError
from pointsman.methods.rosais import RoSais
from pointsman.methods.screen import Screen
from pointsman.methods.steps import Steps


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


@pytest.mark.parametrize("score", ["first_token", "target"])
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_a_score_is_the_sum_over_tokens_of_the_best_gains(family: str, score: Any) -> None:
    """Softmax over a set; and sigmoid weights with groups, in which not every set can be selected."""
    engine, asked = small_engine(family), behaviours(2)
    free = Screen(score=score).rank(engine, asked)
    one = Screen("one", score).rank(engine, asked)
    for n, behaviour in enumerate(asked):
        target = engine.encode_target(behaviour.target)
        if score == "first_token":
            target = target[:1]
        (gradient,) = engine.route_gradients([engine.encode(behaviour.turns)], [target])
        for router, layer in zip(engine.routers, gradient.layers, strict=True):
            sets = [c for c in combinations(range(router.experts), router.top_k) if router.selectable(c)]
            by_token = [[float(layer.gain(c)[t]) for t in range(len(layer.scores))] for c in sets]
            assert free.scores[n, router.layer] == pytest.approx(sum(map(max, zip(*by_token, strict=True))))
            assert one.scores[n, router.layer] == pytest.approx(max(map(sum, by_token)))
        assert free.base[n] == one.base[n] == pytest.approx(gradient.log_prob)
    assert (free.scores >= one.scores - 1e-9).all()
    assert free.routers == tuple(router.path for router in engine.routers)
    assert free.prompts == tuple(b.id for b in asked)
    assert free.sources == tuple(b.row_cluster for b in asked)


def test_batches_change_no_score(engine: HFEngine) -> None:
    asked = behaviours(3)
    alone = Screen().rank(small_engine(batch_size=1), asked)
    assert Screen().rank(engine, asked).scores == pytest.approx(alone.scores, rel=1e-6)  # routers round to float32


@pytest.mark.parametrize("quiet", [0, 1])
def test_a_router_whose_experts_say_little_is_last_by_the_screen_as_by_rosais(quiet: int) -> None:
    engine, asked = small_engine(), behaviours(2)
    found = [w for name, w in engine.model.named_parameters() if f"layers.{quiet}.mlp.experts.down_proj" in name]
    assert found
    for weight in found:
        weight.data *= 0.01
    masks = RoSais(samples=5, score="target", scale="log_probability").rank(engine, asked)
    for sets in ("free", "one"):
        screen = Screen(sets, score="target").rank(engine, asked)  # type: ignore[arg-type]
        assert screen.ranking[-1] == masks.ranking[-1] == quiet


def test_its_prompts_are_remembered(engine: HFEngine) -> None:
    asked, stored = behaviours(18), {}

    def remember(key: str, compute: Callable[[], Any]) -> Any:
        if key not in stored:
            stored[key] = compute()
        return stored[key]

    first = Screen().rank(engine, asked, steps=Steps(remember))
    assert list(stored) == ["screen/free/first_token/0", "screen/free/first_token/16"]
    before = engine.cost.copy()
    again = Screen().rank(engine, asked, steps=Steps(remember))
    assert (engine.cost - before).forwards == 0
    assert np.array_equal(again.scores, first.scores)


def test_what_cannot_be_screened_is_refused_with_the_way_out(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no prompts"):
        Screen().rank(engine, [])
    with pytest.raises(UsageError, match=r"plain cannot be screened .* has none.*--rank rosais"):
        Screen().rank(PlainEngine(), behaviours(1))

    def no_gradient(*args: Any, **named: Any) -> Any:
        raise ModelError("tiny passes no gradient from what it says to its experts", "Search with F-SOUR")

    monkeypatch.setattr(engine, "route_gradients", no_gradient)
    with pytest.raises(ModelError, match=r"passes no gradient .*--rank rosais"):
        Screen().forwards(engine, behaviours(1)[0])
