"""`Conditional` equals its formula, written literally: one row at a time, autograd for all of it, torch's own Adam."""

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
from pointsman.engine.learning import Lesson
from pointsman.errors import DataError, UsageError
from pointsman.methods import optimise as module
from pointsman.methods.conditional import Conditional, LearntMaps
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Intervention, Phase

METHOD = Conditional(rank=2, steps=5, batch=4, decay=0.7, hold=0.5, seed=3)
LOSS, ENTRY = 1e-5, 2e-4  # the engine reads log-probabilities, and keeps A and B, in float32


@contextmanager
def steered_gates(model: Any, numbers: Sequence[Tensor], parts: int, here: Tensor) -> Iterator[None]:
    """Gates that add B A x to their logits at the steered tokens, and then go on as OLMoE does."""
    gates = [layer.mlp.gate for layer in model.model.layers]

    def gate_with(gate: Any, down: Tensor, up: Tensor, threshold: Tensor | None) -> Any:
        def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x = hidden.reshape(-1, hidden.shape[-1])
            inner = F.linear(x, down) if threshold is None else torch.relu(F.linear(x, down) - threshold)
            norm = gate.weight.norm(dim=1).mean()
            logits = F.linear(x, gate.weight) + here[:, None] * F.linear(inner, up) * norm
            weights, experts = torch.softmax(logits, -1, dtype=torch.float).topk(gate.top_k, -1)
            weights = weights / weights.sum(-1, keepdim=True)
            return logits, weights.to(logits.dtype), experts

        return forward

    try:
        for n, gate in enumerate(gates):
            down, up, *more = numbers[n * parts : (n + 1) * parts]
            gate.forward = gate_with(gate, down, up, more[0] if more else None)
        yield
    finally:
        for gate in gates:
            del gate.forward


def at_the_answer(model: Any, lesson: Lesson, numbers: Sequence[Tensor], parts: int, phase: Phase) -> Tensor:
    """Log-probabilities of the vocabulary where the answer tokens stand. Shape: [A, V]."""
    prompt, answer = lesson.prompt.ids, lesson.answer
    place = torch.arange(len(prompt) + len(answer))
    here = {"prefill": place < len(prompt), "decode": place >= len(prompt), "both": place >= 0}[phase]
    with steered_gates(model, numbers, parts, here.double()):
        logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
    return torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]


def literal(
    engine: HFEngine, method: Conditional, wanted: Sequence[Lesson], held: Mapping[str, Sequence[Lesson]]
) -> tuple[list[np.ndarray], list[float], list[float]]:
    model, parts, numbers = engine.model, 3 if method.threshold else 2, []
    for router in engine.routers:
        width = model.get_submodule(router.path).weight.shape[1]
        a = stream(method.seed, "conditional start", router.layer).normal(size=(method.rank, width))
        a /= np.sqrt((a**2).sum(1, keepdims=True))
        numbers += [a.astype(np.float32), np.zeros((router.experts, method.rank))]
        numbers += [np.zeros(method.rank)] * (parts - 2)
    numbers = [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in numbers]
    nothing = [torch.zeros_like(row) for row in numbers]
    adam = torch.optim.Adam(numbers, lr=method.lr)
    wanting, holding = [], []
    for step in range(method.steps):
        rate = method.lr * (1 / 20 + (1 - 1 / 20) * (1 + math.cos(math.pi * step / method.steps)) / 2)
        adam.param_groups[0]["lr"] = rate
        rng = stream(method.seed, "conditional", step)

        def drawn(lessons: Sequence[Lesson], rng: np.random.Generator = rng) -> list[Lesson]:
            return [lessons[n] for n in rng.permutation(len(lessons))[: method.batch]]

        losses = []
        for lesson in drawn(wanted):
            log_p = at_the_answer(model, lesson, numbers, parts, method.phase)
            losses.append(-sum(log_p[n, token] for n, token in enumerate(lesson.answer)))
        loss = torch.stack(losses).mean()
        moved = torch.zeros((), dtype=torch.float64)
        for name in sorted(held):
            divergences = []
            for lesson in drawn(held[name]):
                with torch.no_grad():
                    p = at_the_answer(model, lesson, nothing, parts, method.phase).exp()
                log_q = at_the_answer(model, lesson, numbers, parts, method.phase)
                divergences.append((p * (p.log() - log_q)).sum())
            moved = moved + torch.stack(divergences).mean()
        decay = torch.zeros((), dtype=torch.float64)
        for n, router in enumerate(engine.routers):  # |B A|^2 beside E rows of norm 1, in units of the weight's own
            decay = decay + (numbers[n * parts + 1] @ numbers[n * parts]).square().sum() / router.experts
        adam.zero_grad()
        rising = method.decay * 100 ** (step / (method.steps - 1)) / 100
        (loss + method.hold * moved + rising * decay).backward()
        adam.step()
        wanting.append(loss.item())
        holding.append(moved.item())
    return [row.detach().numpy() for row in numbers], wanting, holding


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    engine = small_engine(norm_topk_prob=True)
    engine.model.requires_grad_(False)  # the literal loop needs gradients of A and B alone
    return engine


@pytest.fixture(scope="module")
def lessons(engine: HFEngine) -> list[Lesson]:
    """Prompts and answers of many lengths."""
    made = []
    for n, b in enumerate(behaviours(9)):
        turns = [b.goal] * (1 + n % 3)
        prompt = engine.encode(turns, answers=["Sorry"] * (len(turns) - 1))
        made.append(Lesson(prompt, engine.encode_target(b.target)[: 1 + n % 5], b.source))
    return made


def check(engine: HFEngine, found: LearntMaps, numbers: Sequence[np.ndarray], parts: int) -> None:
    """All but what hardly moved: Adam makes steps even of rounding, and an expert that is never chosen has no slope."""
    for n, router in enumerate(engine.routers):
        one, norm = found.maps[router.layer], engine.router_norms()[router.layer]
        down, up = numbers[n * parts : n * parts + 2]
        moved = np.abs(up) > 0.03
        assert moved.mean() > 0.2
        assert (one.up / norm)[moved] == pytest.approx(up[moved], abs=10 * ENTRY)
        assert one.down == pytest.approx(down, abs=10 * ENTRY)


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_every_step_is_the_formula_s(engine: HFEngine, lessons: list[Lesson], phase: Phase, groups: int) -> None:
    wanted, held = lessons[:6], {"benign": lessons[4:], "a": lessons[:2]} if groups else {}
    method = replace(METHOD, phase=phase)
    *_, found = method.learn(engine, wanted, held)
    numbers, wanting, holding = literal(engine, method, wanted, held)
    assert found.wanted == pytest.approx(wanting, rel=LOSS, abs=LOSS)
    assert found.held == pytest.approx(holding, rel=1e-2, abs=LOSS)  # after steps that rounding moves
    check(engine, found, numbers, 2)
    assert max(float(np.abs(one.up).max()) for one in found.maps.values()) > 0.02  # it moved
    assert groups == 0 or max(found.held) > 1e-5


def test_thresholds_are_learnt_too(engine: HFEngine, lessons: list[Lesson]) -> None:
    method = replace(METHOD, threshold=True)
    *_, found = method.learn(engine, lessons, {"benign": lessons[:3]})
    numbers, wanting, _ = literal(engine, method, lessons, {"benign": lessons[:3]})
    assert found.wanted == pytest.approx(wanting, rel=LOSS, abs=LOSS)
    check(engine, found, numbers, 3)
    for n, one in found.maps.items():
        assert one.threshold == pytest.approx(numbers[3 * n + 2], abs=10 * ENTRY)
    assert any(np.abs(one.threshold).max() > 1e-3 for one in found.maps.values() if one.threshold is not None)


def test_what_was_learnt_is_what_the_rule_then_does(engine: HFEngine, lessons: list[Lesson]) -> None:
    """The loss of the next step's batch, by the engine's own scores under the rule."""
    method, held = replace(METHOD, steps=6, phase="prefill"), {"benign": lessons[:3]}
    *_, whole = method.learn(engine, lessons, held)
    first = next(iter(replace(METHOD, steps=6, phase="prefill").learn(engine, lessons, held)))
    assert first.step == 6
    rule = Intervention.conditional(whole.maps, phase="prefill")
    before, after = (
        np.mean([s.total for s in engine.score([w.prompt for w in lessons], [w.answer for w in lessons], routing=r)])
        for r in (None, rule)
    )
    assert after > before


def test_only_the_layers_that_are_named_are_steered(engine: HFEngine, lessons: list[Lesson]) -> None:
    *_, found = replace(METHOD, layers=(1,)).learn(engine, lessons, {})
    assert list(found.maps) == [1]


def test_units_resume_to_the_very_same_numbers(
    engine: HFEngine, lessons: list[Lesson], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNIT", 2)
    method, held = replace(METHOD, steps=5), {"benign": lessons[2:]}
    journal: dict[str, str] = {}

    def remember(key: str, compute: Any, left: list[int] | None = None) -> Any:
        if key not in journal:
            if left is not None and not left:
                raise KeyboardInterrupt
            if left is not None:
                left.pop()
            journal[key] = json.dumps(compute())
        return json.loads(journal[key])

    whole = list(method.learn(engine, lessons, held, steps=Steps(remember)))
    assert [learnt.step for learnt in whole] == [2, 4, 5]
    for units in (0, 2):
        journal.clear()
        left = [0] * units
        with pytest.raises(KeyboardInterrupt):
            list(
                method.learn(
                    engine, lessons, held, steps=Steps(lambda key, compute, left=left: remember(key, compute, left))
                )
            )
        assert list(method.learn(engine, lessons, held, steps=Steps(remember))) == whole


def test_what_cannot_be_learnt_is_refused(engine: HFEngine, lessons: list[Lesson]) -> None:
    for rank in (0, 9):
        with pytest.raises(UsageError, match=f"A rank of {rank}"):
            Conditional(rank=rank)
    with pytest.raises(UsageError, match="decay"):
        Conditional(decay=float("nan"))
    with pytest.raises(UsageError, match="steps"):
        Conditional(steps=0)
    with pytest.raises(DataError, match="no contexts"):
        list(METHOD.learn(engine, [], {}))
    narrow = [replace(router, width=3) for router in engine.routers]
    with pytest.raises(UsageError, match="reads 3 numbers"):
        Conditional(rank=4).refuse(narrow)
    with pytest.raises(UsageError, match="--method mascing"):
        Conditional().refuse([replace(narrow[0], width=None)])
