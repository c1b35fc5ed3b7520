"""What a steering moves equals its definition, written literally: one row and one token at a time, in float64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engines import small_engine
from pointsman.data.scenario import Scenario
from pointsman.data.types import Behaviour, Suite
from pointsman.engine.hf import HFEngine
from pointsman.jobs.steer.moved import Moved
from pointsman.jobs.steer.outcome import Outcome
from pointsman.jobs.steer.prompts import SteerPrompts
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.jobs.steer.tracing_moves import FEWEST, LEAST, MOST, PLACES, trace_moves
from pointsman.routing.intervention import Intervention
from pointsman.routing.low_rank import LowRank
from pointsman.runs.bench import Bench
from pointsman.runs.run import Run
from pointsman.testbed.language import Kind, requests
from works import ManyJudge

UNSTEERED = Outcome("allow", True, (), None, (), (), (), (), ())


def some(kind: Kind, count: int) -> tuple[Behaviour, ...]:
    return tuple(Behaviour(r.id, r.text, r.target, r.category, r.source) for r in requests(kind, limit=count))


PROMPTS = SteerPrompts(scenario=some("restricted", 9), restricted=some("borderline", 5), benign=some("benign", 7))


def rule(engine: HFEngine) -> dict[int, LowRank]:
    """Strong, so that much is swapped; one layer is left alone."""
    rng, found = np.random.default_rng(0), {}
    for router in engine.routers[1:]:
        assert router.width is not None
        down, up = rng.normal(size=(2, router.width)), rng.normal(size=(router.experts, 2))
        found[router.layer] = LowRank(down, 0.3 * up)
    return found


def measured(folder: Path, engine: HFEngine, routing: Intervention) -> Moved:
    question = SteerQuestion(Scenario("tiny", "allow", suite="none"), Suite("none", ()), ManyJudge())
    with Run.create(folder, "steer", {}) as run:
        found = trace_moves(Bench(engine, question, run), PROMPTS, UNSTEERED, routing, 50, 0)
    assert found is not None
    return found


@contextmanager
def gates_of(model: Any, rules: dict[int, LowRank], said: list[list[list[int]]]) -> Iterator[None]:
    """Gates that add B A x to their logits and go on as OLMoE does; `said` collects their experts."""
    gates = [layer.mlp.gate for layer in model.model.layers]

    def gate_with(gate: Any, one: LowRank | None) -> Any:
        def forward(hidden: torch.Tensor) -> Any:
            x = hidden.reshape(-1, hidden.shape[-1])
            logits = F.linear(x, gate.weight)
            if one is not None:
                logits = logits + x @ torch.tensor(one.down).double().T @ torch.tensor(one.up).double().T
            weights, experts = torch.softmax(logits, -1, dtype=torch.float).topk(gate.top_k, -1)
            if gate.norm_topk_prob:
                weights = weights / weights.sum(-1, keepdim=True)
            said.append(experts.tolist())
            return logits, weights.to(logits.dtype), experts

        return forward

    try:
        for layer, gate in enumerate(gates):
            gate.forward = gate_with(gate, rules.get(layer))
        yield
    finally:
        for gate in gates:
            del gate.forward


def chosen(engine: HFEngine, ids: tuple[int, ...], rules: dict[int, LowRank]) -> list[list[list[int]]]:
    """Experts of every layer and token of one row."""
    said: list[list[list[int]]] = []
    with gates_of(engine.model, rules, said), torch.no_grad():
        engine.model(torch.tensor([list(ids)]), use_cache=False)
    return said


def test_selections_and_swaps_are_those_of_the_literal_loop(tmp_path: Path) -> None:
    engine = small_engine()
    rules = rule(engine)
    found = measured(tmp_path / "run", engine, Intervention.conditional(rules))
    layers, experts, k = len(engine.routers), engine.routers[0].experts, engine.routers[0].top_k
    words: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    places: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for group in found.groups:
        without = [[0] * experts for _ in range(layers)]
        under = [[0] * experts for _ in range(layers)]
        swapped, tokens = [], 0
        for item in getattr(PROMPTS, group.group):
            prompt = engine.encode(item.turns)
            plain, steered = chosen(engine, prompt.ids, {}), chosen(engine, prompt.ids, rules)
            span = [t for t, role in enumerate(prompt.roles) if role == "content"]
            shares = []
            for n, t in enumerate(span):
                variations = []
                for layer in range(layers):
                    p = [float(e in plain[layer][t]) / k for e in range(experts)]
                    q = [float(e in steered[layer][t]) / k for e in range(experts)]
                    variations.append(0.5 * sum(abs(a - b) for a, b in zip(p, q, strict=True)))
                    for e in plain[layer][t]:
                        without[layer][e] += 1
                    for e in steered[layer][t]:
                        under[layer][e] += 1
                shares.append(sum(variations) / layers)
                words[prompt.tokens[t]][group.group].append(shares[-1])
                places[PLACES[3 * n // len(span)]][group.group].append(shares[-1])
            swapped.append(sum(shares) / len(shares))
            tokens += len(span)
        assert [list(row) for row in group.without] == without
        assert [list(row) for row in group.under] == under
        assert group.tokens == tokens
        assert group.swapped.n == len(swapped)
        assert group.swapped.mean == pytest.approx(sum(swapped) / len(swapped))
        assert group.swapped.mean > 0.05, "the rule is too weak to tell"
        change = [
            [(b - a) / (tokens * k) for a, b in zip(*rows, strict=True)] for rows in zip(without, under, strict=True)
        ]
        np.testing.assert_allclose(found.change(group), change, atol=1e-12)

    def mean(word: str) -> float:
        return sum(words[word]["scenario"]) / len(words[word]["scenario"])

    frequent = [word for word in words if len(words[word]["scenario"]) >= FEWEST]
    shown = [entry.at for entry in (*found.most, *found.least)]
    assert len(found.most) == min(MOST, len(frequent))
    assert len(found.least) == min(LEAST, max(len(frequent) - MOST, 0))
    ordered = sorted(map(mean, frequent), reverse=True)
    expected = ordered[:MOST] + ordered[MOST:][-LEAST:]
    assert [mean(word) for word in shown] == pytest.approx(expected)
    for entries, literal in (((*found.most, *found.least), words), (found.places, places)):
        for entry in entries:
            for name, here in entry.by_group.items():
                values = literal[entry.at][name]
                assert here.n == len(values)
                assert here.share == (pytest.approx(sum(values) / len(values)) if values else None)
    for name, here in found.everywhere.by_group.items():
        values = [share for by_group in words.values() for share in by_group[name]]
        assert (here.n, here.share) == (len(values), pytest.approx(sum(values) / len(values)))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_it_does_not_depend_on_what_is_read_together(tmp_path: Path, batch_size: int) -> None:
    engine, other = small_engine(batch_size=16), small_engine(batch_size=batch_size)
    rules = Intervention.conditional(rule(engine))
    assert measured(tmp_path / "one", engine, rules) == measured(tmp_path / "other", other, rules)
