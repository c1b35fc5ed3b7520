"""The fast methods against the papers' literal loops on trained models: the testbed's, in float64, whole prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch

from oracle import loops
from pointsman import load
from pointsman.data.types import Behaviour
from pointsman.engine.hf import HFEngine
from pointsman.methods.fsour import FSour
from pointsman.methods.rosais import RoSais
from pointsman.testbed.plugin import load_suite

# Routers take their softmax in float32 whatever the model's dtype: a logit that differs in its last bit can round to
# the other side there, and moves log p by about 1e-8.
ROUNDING = 1e-7


@cache
def trained(name: str) -> HFEngine:
    return load(f"testbed:{name}", dtype="float64", device="cpu")


@pytest.fixture(params=["olmoe", "qwen2_moe"])
def engine(request: pytest.FixtureRequest) -> HFEngine:
    return trained(request.param)


@pytest.fixture
def olmoe() -> HFEngine:
    return trained("olmoe")


@pytest.fixture(scope="module")
def asked() -> list[Behaviour]:
    return [b for b in load_suite().restricted if b.split == "test"][:2]


def route(steps: Any) -> list[tuple[int, int, tuple[int, ...]]]:
    return [(s.layer, s.position, s.experts) for s in steps]


def test_rosais_equals_the_paper(engine: HFEngine, asked: list[Behaviour]) -> None:
    method = RoSais(samples=2, seed=1)
    result = method.rank(engine, asked)
    prompt, target = engine.encode(asked[0].turns), engine.encode_target(asked[0].target)
    masks = [method.masks(asked[0], router).tolist() for router in engine.routers]
    literal = loops.rosais(engine.model, prompt.ids, target[0], masks)
    assert result.scores[0].tolist() == pytest.approx(literal, abs=1e-9)


def test_fsour_accepts_the_route_of_the_paper(engine: HFEngine, asked: list[Behaviour]) -> None:
    method = FSour(candidates=3, log_tau=0.0, seed=4)
    found = method.find_routes(engine, asked, 0)
    prompt, target = engine.encode(asked[0].turns), engine.encode_target(asked[0].target)

    def draw(layer: int, token: int) -> list[list[int]]:
        return method.candidate_sets(engine, asked[0], 0, layer, token).tolist()

    literal, trajectory = loops.fsour(engine.model, prompt.ids, target, len(engine.routers), draw, log_tau=0.0)
    before, steps, rows = found[0]
    assert rows == 1 + 3 * len(engine.routers) * len(prompt)  # the whole prompt was searched
    assert {(s.layer, s.position): s.experts for s in steps} == literal
    assert [before, *(s.log_prob for s in steps)] == pytest.approx(trajectory, abs=ROUNDING)
    assert len(steps) > 10


def test_nothing_else_decides_a_route(olmoe: HFEngine, asked: list[Behaviour]) -> None:
    """Batch size, neighbours, and the way in which a forward is resumed."""
    method = FSour(candidates=3, seed=4)
    together = method.find_routes(olmoe, asked, 0)
    alone = [method.find_routes(olmoe, [b], 0)[0] for b in asked]
    few = HFEngine(olmoe.model, olmoe.tokenizer, name="few rows", batch_size=4)
    small = method.find_routes(few, asked, 0)
    assert few._resume is not None
    few._resume.split_from = 1
    split = method.find_routes(few, asked, 0)
    for one, *others in zip(together, alone, small, split, strict=True):
        for other in others:
            assert route(one[1]) == route(other[1])
            assert one[1][-1].log_prob == pytest.approx(other[1][-1].log_prob, abs=ROUNDING)


PROGRAM = """
import json, torch
torch.set_num_threads(1)
from pointsman import load
from pointsman.methods.fsour import FSour
from pointsman.testbed.plugin import load_suite
asked = [b for b in load_suite().restricted if b.split == "test"][1:2]
engine = load("testbed:olmoe", dtype="float64", device="cpu")
(_, steps, _), = FSour(candidates=3, seed=4).find_routes(engine, asked, 0)
print(json.dumps([[s.layer, s.position, list(s.experts)] for s in steps]))
"""


def test_another_process_finds_the_same_route(olmoe: HFEngine, asked: list[Behaviour]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    (_, steps, _), *_ = FSour(candidates=3, seed=4).find_routes(olmoe, [asked[1], asked[0]], 0)
    assert json.loads(done.stdout.splitlines()[-1]) == [[s.layer, s.position, list(s.experts)] for s in steps]


torch.set_num_threads(1)
