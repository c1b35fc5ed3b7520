"""The memory of route gradients, foretold against what they allocate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from engines import behaviours, small_engine
from pointsman.engine import gradient_memory
from pointsman.engine.hf import HFEngine
from pointsman.engine.types import GradientMemory, Prompt
from pointsman.runs.forecast import memory_foretold


def allocated(run: Callable[[], object]) -> int:
    """Bytes that tensors hold at the peak of a call, beyond those that were there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events: Any = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def long_rows(engine: HFEngine, rows: int, tokens: int = 100) -> tuple[list[Prompt], list[tuple[int, ...]]]:
    """So long that what a token needs outweighs what a forward does."""
    prompts, targets = [], []
    for behaviour in behaviours(rows):
        prompt = engine.encode(behaviour.goal)
        ids, shown, roles = ((each * tokens)[:tokens] for each in (prompt.ids, prompt.tokens, prompt.roles))
        prompts.append(Prompt(ids, shown, roles))
        targets.append(engine.encode_target(behaviour.target))
    return prompts, targets


def tensors(memory: GradientMemory) -> float:
    """Of what a process was foretold to hold, the tensors."""
    return (memory.needed - gradient_memory.LIBRARY) / gradient_memory.HEAP


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("family", ["olmoe", "mixtral", "qwen2_moe", "deepseek_v3"])
def test_foretold_and_allocated(family: str, rows: int, by_layer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine(family, dtype=torch.float32)
    prompts, targets = long_rows(engine, rows)
    if by_layer:
        monkeypatch.setattr(engine, "_holds_no_row", lambda lengths: True)
    engine.route_gradients(prompts[:1], targets[:1])  # finds how the routers weigh
    memory = engine.gradient_memory(prompts, targets)
    assert memory is not None
    assert (memory.rows, memory.by_layer) == (rows, by_layer)
    foretold = tensors(memory)
    assert foretold / 2 < allocated(lambda: engine.route_gradients(prompts, targets)) < foretold * 2


def test_a_deep_model_needs_less_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backward needs of all layers outweighs the experts of one."""
    engine = small_engine(dtype=torch.float32, num_hidden_layers=24)
    prompts, targets = long_rows(engine, 1)
    engine.route_gradients(prompts, targets)
    facts, foretold = [], []
    for by_layer in (False, True):
        monkeypatch.setattr(engine, "_holds_no_row", lambda lengths, by=by_layer: by)
        memory = engine.gradient_memory(prompts, targets)
        assert memory is not None
        foretold.append(tensors(memory))
        facts.append(allocated(lambda: engine.route_gradients(prompts, targets)))
        assert foretold[-1] / 2 < facts[-1] < foretold[-1] * 2
    assert facts[1] < 0.7 * facts[0]
    assert foretold[1] < 0.7 * foretold[0]


def test_tries_count_where_they_need_more() -> None:
    engine = small_engine(dtype=torch.float32)
    prompts, targets = long_rows(engine, 1)
    few, many = (engine.gradient_memory(prompts, targets, tries=n) for n in (0, 60))
    assert few is not None
    assert many is not None
    fact = allocated(lambda: engine.score(prompts * 60, targets * 60))
    assert few.needed < many.needed
    assert tensors(many) / 2 < fact < tensors(many) * 2


def test_more_rows_need_more_until_no_more_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine(dtype=torch.float32)
    prompts, targets = long_rows(engine, 1)
    monkeypatch.setattr(engine, "_tokens_that_fit", 8.0 * 2 * (len(prompts[0]) + len(targets[0])))
    made = [engine.gradient_memory(prompts * n, targets * n) for n in (1, 2, 4)]
    rows, needed = zip(*[(m.rows, m.needed) for m in made if m is not None], strict=True)
    assert rows == (1, 2, 2)
    assert needed[0] < needed[1] == needed[2]


def test_what_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine(dtype=torch.float32)
    prompts, targets = long_rows(engine, 1)
    monkeypatch.setattr(engine.model, "is_quantized", True, raising=False)
    assert engine.gradient_memory(prompts, targets) is None


def test_it_is_said_in_words() -> None:
    assert memory_foretold(GradientMemory(3 << 29, 20 << 30, 2, False)) == (
        "gradients and their tries need about 1.5 GiB above the model, 20 GiB are free"
    )
    assert memory_foretold(GradientMemory(5 << 20, None, 1, True)) == (
        "gradients and their tries need about 5 MiB above the model, layer by layer"
    )
