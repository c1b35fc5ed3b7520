"""Noise on all routers: its unit, and what it promises beside the rule itself (tests/routing/test_noise.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines import behaviours, small_engine
from judging import OneByOne
from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.hf import HFEngine
from pointsman.errors import UsageError
from pointsman.judges.types import Answer, Verdict
from pointsman.methods.noise import Noise, spread
from pointsman.methods.steps import Steps


class Judge(OneByOne):
    name, version, grades_content = "wrong", "1", True

    def one(self, asked: Behaviour | Conversation, answer: Answer) -> Verdict:
        return Verdict("wrong", 0.0)


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_sigma_is_that_of_all_real_tokens(engine: HFEngine, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("pointsman.methods.steps.CHUNK", chunk)
    asked = behaviours(5)
    steps = Steps()
    sigma = spread(engine, asked, steps=steps)
    for router in engine.routers:
        each = [engine.trace([engine.encode(b.turns)])[router.layer].logits for b in asked]  # one row: no padding
        assert sigma[router.layer] == pytest.approx(float(np.concatenate(each).std(dtype=np.float64)), rel=1e-5)
    assert list(steps.spent) == [f"sigma/{n}" for n in range(0, 5, chunk)]


def test_every_behaviour_has_noise_of_its_own_in_any_order(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.methods.steps.CHUNK", 2)
    asked, sigma = behaviours(5), (0.5, 0.7, 0.9)
    method = Noise(2.0, max_new_tokens=4, seed=1)
    answers = method.ask(engine, asked, Judge(), sigma)
    assert method.ask(engine, asked[::-1], Judge(), sigma) == answers[::-1]
    for behaviour, answer in zip(asked, answers, strict=True):
        routing = method.routing(behaviour, sigma)
        alone = engine.generate([engine.encode(behaviour.turns)], routing=routing, max_new_tokens=4)[0]
        assert answer.response == alone.text
    seeds = {method.routing(b, sigma).rules[0].seed for b in asked}
    assert len(seeds) == 5
    assert method.routing(asked[0], sigma) != Noise(2.0, seed=2).routing(asked[0], sigma)


def test_levels_differ_in_size_alone() -> None:
    one = behaviours(1)[0]
    (low,), (high,) = (Noise(level).routing(one, (0.5, 0.0, 2.0)).rules for level in (0.1, 0.3))
    assert low.seed == high.seed
    assert low.stds == ((0, pytest.approx(0.05)), (2, pytest.approx(0.2)))  # a router that never varies is left alone
    assert high.stds == ((0, pytest.approx(0.15)), (2, pytest.approx(0.6)))
    assert low.where.phase == "both"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Noise(0.0),
        lambda: Noise(float("inf")),
        lambda: Noise(1.0).routing(behaviours(1)[0], (0.0, 0.0)),
        lambda: spread(small_engine(), []),
    ],
)
def test_parameters_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(UsageError):
        make()
