"""`ThroughModel` equals its formula, written literally: one row at a time, autograd for all of it, torch's own Adam."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engines import behaviours, small_engine
from pointsman.engine.hf import HFEngine
from pointsman.engine.learning import BACKWARD, Learner, Lesson
from pointsman.methods import optimise as module
from pointsman.methods.steps import Steps, stream
from pointsman.methods.through_model import Refined, ThroughModel
from pointsman.routing.intervention import Phase

METHOD = ThroughModel(lambda_=0.02, steps=5, batch=4, seed=3)
LOSS, ENTRY = 1e-5, 1e-4  # the engine reads log-probabilities, and keeps S, in float32


@contextmanager
def shifted(model: Any, shifts: Sequence[Tensor], steered: Tensor) -> Iterator[None]:
    """Gates that add `shifts[l]` to their logits at the steered tokens, and then go on as OLMoE does."""
    gates = [layer.mlp.gate for layer in model.model.layers]

    def gate_with(gate: Any, shift: Tensor) -> Any:
        def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = F.linear(hidden.reshape(-1, hidden.shape[-1]), gate.weight) + steered[:, None] * shift
            weights, experts = torch.softmax(logits, -1, dtype=torch.float).topk(gate.top_k, -1)
            if gate.norm_topk_prob:
                weights = weights / weights.sum(-1, keepdim=True)
            return logits, weights.to(logits.dtype), experts

        return forward

    try:
        for gate, shift in zip(gates, shifts, strict=True):
            gate.forward = gate_with(gate, shift)
        yield
    finally:
        for gate in gates:
            del gate.forward


def at_the_answer(model: Any, lesson: Lesson, shifts: Sequence[Tensor], phase: Phase) -> Tensor:
    """Log-probabilities of the vocabulary where the answer tokens stand. Shape: [A, V]."""
    prompt, answer = lesson.prompt.ids, lesson.answer
    place = torch.arange(len(prompt) + len(answer))
    steered = {"prefill": place < len(prompt), "decode": place >= len(prompt), "both": place >= 0}[phase]
    with shifted(model, shifts, steered.double()):
        logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
    return torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]


def literal(
    engine: HFEngine,
    method: ThroughModel,
    wanted: Sequence[Lesson],
    held: Mapping[str, Sequence[Lesson]],
    sigma: Sequence[float],
    start: Sequence[np.ndarray],
) -> tuple[list[np.ndarray], list[float], list[float]]:
    model = engine.model
    s = [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in start]
    nothing = [torch.zeros(len(row), dtype=torch.float64) for row in start]
    adam = torch.optim.Adam(s, lr=method.lr)
    wanting, holding = [], []
    for step in range(method.steps):
        rate = method.lr * (1 / 20 + (1 - 1 / 20) * (1 + math.cos(math.pi * step / method.steps)) / 2)
        adam.param_groups[0]["lr"] = rate
        shifts = [row * float(scale) for row, scale in zip(s, sigma, strict=True)]
        rng = stream(method.seed, "through_model", step)

        def drawn(lessons: Sequence[Lesson], rng: np.random.Generator = rng) -> list[Lesson]:
            return [lessons[n] for n in rng.permutation(len(lessons))[: method.batch]]

        losses = []
        for lesson in drawn(wanted):
            log_p = at_the_answer(model, lesson, shifts, method.phase)
            losses.append(-sum(log_p[n, token] for n, token in enumerate(lesson.answer)))
        loss = torch.stack(losses).mean()
        moved = torch.zeros((), dtype=torch.float64)
        for name in sorted(held):
            divergences = []
            for lesson in drawn(held[name]):
                with torch.no_grad():
                    p = at_the_answer(model, lesson, nothing, method.phase).exp()
                log_q = at_the_answer(model, lesson, shifts, method.phase)
                divergences.append((p * (p.log() - log_q)).sum())
            moved = moved + torch.stack(divergences).mean()
        norm = sum(row.abs().sum() for row in s)
        adam.zero_grad()
        (loss + method.hold * moved + method.lambda_ * norm).backward()
        adam.step()
        wanting.append(loss.item())
        holding.append(moved.item())
    return [row.detach().numpy() for row in s], wanting, holding


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    engine = small_engine(norm_topk_prob=True)
    engine.model.requires_grad_(False)  # the literal loop needs gradients of S alone
    return engine


@pytest.fixture(scope="module")
def lessons(engine: HFEngine) -> list[Lesson]:
    """Prompts and answers of many lengths."""
    made = []
    for n, b in enumerate(behaviours(9)):
        turns = [b.goal] * (1 + n % 3)
        prompt = engine.encode(turns, answers=["Sorry"] * (len(turns) - 1))
        made.append(Lesson(prompt, engine.encode_target(b.target)[: 1 + n % 5], b.source))
    assert len({len(lesson.prompt) for lesson in made}) >= 3
    return made


@pytest.fixture(scope="module")
def sigma() -> list[float]:
    return [0.7, 1.3, 2.0]


@pytest.fixture(scope="module")
def start(engine: HFEngine) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(scale=0.3, size=router.experts).astype(np.float32) for router in engine.routers]


def check(found: Refined, s: Sequence[np.ndarray], wanting: Sequence[float], holding: Sequence[float]) -> None:
    assert found.wanted == pytest.approx(wanting, rel=LOSS, abs=LOSS)
    assert found.held == pytest.approx(holding, rel=LOSS, abs=LOSS)
    for ours, theirs in zip(found.raw, s, strict=True):
        assert ours == pytest.approx(theirs, abs=ENTRY)


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_every_step_is_the_formula_s(
    engine: HFEngine, lessons: list[Lesson], sigma: list[float], start: list[np.ndarray], phase: Phase, groups: int
) -> None:
    wanted, held = lessons[:6], {"benign": lessons[4:], "a": lessons[:2]} if groups else {}
    method = replace(METHOD, phase=phase, hold=0.5)
    found = method.learn(engine, wanted, held, sigma, start=start)
    s, wanting, holding = literal(engine, method, wanted, held, sigma, start)
    check(found, s, wanting, holding)
    assert max(float(np.abs(a - b).max()) for a, b in zip(found.raw, start, strict=True)) > 0.05  # it moved
    assert groups == 0 or min(found.held) > 1e-3
    for raw, values in zip(found.raw, found.values, strict=True):
        assert np.array_equal(values, np.where(np.abs(raw) <= 0.1, 0, raw))
        assert values.dtype == np.float32
    assert any(0 < abs(x) <= 0.1 for raw in found.raw for x in raw)  # the cut had something to cut


def test_it_starts_at_zero_where_lambda_has_no_slope(lessons: list[Lesson], sigma: list[float]) -> None:
    """Without normalisation, so that every logit has a gradient: Adam makes steps even of rounding."""
    engine = small_engine(norm_topk_prob=False)
    engine.model.requires_grad_(False)
    method = replace(METHOD, steps=3, lambda_=0.5)
    found = method.learn(engine, lessons, {}, sigma)
    zero = [np.zeros(router.experts) for router in engine.routers]
    check(found, *literal(engine, method, lessons, {}, sigma, zero))


@pytest.mark.parametrize("rows", [1, 2])
def test_a_batch_in_parts_has_the_same_gradient(
    engine: HFEngine,
    lessons: list[Lesson],
    sigma: list[float],
    start: list[np.ndarray],
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = {"benign": lessons[3:]}
    whole = METHOD.learn(engine, lessons, held, sigma, start=start)
    parts: list[int] = []
    say = Learner.say

    def counted(self: Learner, some: Sequence[Lesson], vectors: Any = None, *more: Any) -> Any:
        if vectors is not None:  # those that keep a graph for the backward
            parts.append(len(some))
        return say(self, some, vectors, *more)

    monkeypatch.setattr(Learner, "say", counted)
    monkeypatch.setattr(engine, "_batch_size", rows * BACKWARD)
    monkeypatch.setattr(module, "_CACHE", 0)
    found = METHOD.learn(engine, lessons, held, sigma, start=start)
    assert max(parts) == rows
    check(found, whole.raw, whole.wanted, whole.held)


def test_what_is_remembered_of_the_unsteered_model_changes_nothing(
    engine: HFEngine,
    lessons: list[Lesson],
    sigma: list[float],
    start: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method, held = replace(METHOD, steps=4), {"benign": lessons[2:], "also": [*lessons[:3], lessons[0]]}
    runs = []
    for room in (0, 40_000, 1 << 30):  # nothing, some of it, everything
        monkeypatch.setattr(module, "_CACHE", room)
        runs.append(method.learn(engine, lessons, held, sigma, start=start))
    for other in runs[1:]:
        check(other, runs[0].raw, runs[0].wanted, runs[0].held)


def test_units_resume_to_the_very_same_numbers(
    engine: HFEngine,
    lessons: list[Lesson],
    sigma: list[float],
    start: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "UNIT", 3)
    method, held = replace(METHOD, steps=8), {"benign": lessons[2:]}
    journal: dict[str, str] = {}

    def remember(key: str, compute: Any, left: list[int] | None = None) -> Any:
        if key not in journal:
            if left is not None and not left:
                raise KeyboardInterrupt
            if left is not None:
                left.pop()
            journal[key] = json.dumps(compute())
        return json.loads(journal[key])

    done: list[int] = []
    whole = method.learn(engine, lessons, held, sigma, start=start, steps=Steps(remember, done.append), key="k")
    assert list(journal) == ["k/0", "k/3", "k/6"]
    assert done == [3, 3, 2]
    kept = dict(journal)
    for units in (0, 2):
        journal.clear()
        left = [0] * units
        with pytest.raises(KeyboardInterrupt):
            method.learn(
                engine, lessons, held, sigma, start=start, key="k",
                steps=Steps(lambda key, compute, left=left: remember(key, compute, left)),
            )  # fmt: skip
        again = method.learn(engine, lessons, held, sigma, start=start, steps=Steps(remember), key="k")
        for name in ("raw", "values"):
            assert all(np.array_equal(a, b) for a, b in zip(getattr(again, name), getattr(whole, name), strict=True))
        assert (again.wanted, again.held) == (whole.wanted, whole.held)
        assert [json.loads(v)["state"] for v in journal.values()] == [json.loads(v)["state"] for v in kept.values()]
    monkeypatch.setattr(module, "UNIT", 25)  # nor does the size of a unit matter
    once = method.learn(engine, lessons, held, sigma, start=start)
    assert all(np.array_equal(a, b) for a, b in zip(once.raw, whole.raw, strict=True))
