"""How fast an engine is: formulas against literal numbers, and what timing and a pilot tell of an engine."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines import behaviours, small_engine
from pointsman.engine.hf import HFEngine
from pointsman.engine.pace import Effort, Pace, Shape, generation_effort, gpus, pilot, scoring_effort, time_forwards
from pointsman.engine.types import Completion

DEEP = Shape(5, (1, 3, 4), 10_000)  # a first dense layer, another between


@lru_cache
def engine() -> HFEngine:
    return small_engine(dtype=torch.float32)


def test_scored_and_generated() -> None:
    assert scoring_effort(DEEP, 3, 20, 2) == Effort(1, 60, 180, 3)
    assert scoring_effort(replace(DEEP, from_layer=False), 3, 20, 2) == Effort(1, 60, 300, 5)
    assert scoring_effort(replace(DEEP, batch=45), 5, 20).forwards == 3  # two rows at a time
    assert scoring_effort(DEEP, 0, 20) == Effort()
    assert generation_effort(DEEP, [7, 4], 3) == Effort(3, 2 * (7 + 2), 2 * 9 * 5, decoded=3)
    assert generation_effort(replace(DEEP, batch=10), [7, 4], 3) == Effort(
        6, 9 + 6, 15 * 5, decoded=6
    )  # one row at a time
    assert generation_effort(DEEP, [], 3) == Effort()
    assert generation_effort(replace(DEEP, context=9), [7, 4], 300) == generation_effort(DEEP, [7, 4], 2)
    assert generation_effort(replace(DEEP, context=9), [9], 300) == generation_effort(DEEP, [9], 1)


def test_measuring_tells_from_where_the_engine_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [engine().encode(b.turns) for b in behaviours(3)]
    targets = [engine().encode_target(b.target) for b in behaviours(3)]
    shape, pace = time_forwards(engine(), prompts, targets)
    assert (shape.from_layer, shape.from_token) == (True, True)
    assert pace.decoded > 0
    assert min(pace.call, pace.tried, pace.token_layer) >= 0
    assert pace.seconds(generation_effort(shape, [10] * 8, 4)) > 0
    monkeypatch.setattr(engine()._resume, "tokens", False)
    assert time_forwards(engine(), prompts, targets)[0].from_token is False
    monkeypatch.setattr(engine(), "_resume", None)
    shape, _ = time_forwards(engine(), prompts, targets)
    assert (shape.from_layer, shape.from_token) == (False, False)


def test_seconds_are_a_sum() -> None:
    pace = Pace(call=1.0, tried=2.0, decoded=3.0, token_layer=0.5)
    assert pace.seconds(Effort(forwards=9, tokens=9, token_layers=8, calls=1, tried=2, decoded=4)) == 1 + 4 + 12 + 4


@pytest.mark.parametrize(
    ("lengths", "longest", "expected"),
    [
        ((5, 9, 64, 3), 512, 64),
        ((5, 9), 512, 10),  # with the end token
        ((64,) * 4, 512, None),  # all are cut off
        ((64,) * 4, 64, 64),  # as long as they may be
        ((20,) * 4, 512, 20),  # the context is full
    ],
)
def test_the_pilot(lengths: tuple[int, ...], longest: int, expected: int | None) -> None:
    given: list[tuple[int, int]] = []
    prompts: Any = ["a prompt"] * 9

    def generate(prompts: Any, *, max_new_tokens: int) -> list[Completion]:
        given.append((len(prompts), max_new_tokens))
        return [Completion("", (1,) * n, finished=n < 20) for n in lengths]

    answering = SimpleNamespace(generate=generate)
    assert pilot(answering, prompts, longest) == {"answers": len(lengths), "tokens": expected}  # type: ignore[arg-type]
    assert given == [(4, 64)]


def test_every_gpu_that_holds_the_model_counts() -> None:
    def on(device: str, *devices: str) -> Any:
        held = [SimpleNamespace(device=torch.device(d)) for d in devices]
        return SimpleNamespace(
            info=SimpleNamespace(device=device), model=SimpleNamespace(parameters=lambda: iter(held))
        )

    assert gpus(engine()) == 0
    assert gpus(on("cuda:0", "cuda:0", "cuda:1", "cuda:1", "cpu")) == 2
    assert gpus(SimpleNamespace(info=SimpleNamespace(device="cuda"))) == 1  # type: ignore[arg-type]
