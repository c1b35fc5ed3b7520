"""Guided in an audit: whether it is run, what its stage asks and keeps, and how it is held against F-SOUR."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines import behaviours, small_engine
from plain_engine import PlainEngine
from pointsman.data.types import Suite
from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Engine
from pointsman.errors import ModelError, OutOfMemory, UsageError
from pointsman.jobs.audit.perform import perform as perform_audit
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.route_attacks import RouteAttacks, choose_route_attacks
from pointsman.jobs.audit.route_results import GuidedRoutes, SideBySide
from pointsman.jobs.audit.routes import examine_guided_routes, search_guided_routes, search_routes
from pointsman.jobs.audit.side_by_side import side_by_side
from pointsman.jobs.parameters import Formerly, parameters
from pointsman.judges.types import Verdict
from pointsman.methods.attempts import Attempt
from pointsman.methods.routes import RouteResult, Search, Step
from pointsman.runs.bench import Bench
from pointsman.runs.results import dump
from pointsman.runs.run import Run
from pointsman.testbed.plugin import TestbedJudge, load_suite
from works import ManyJudge, costs, stop

AUDIT = Audit(candidates=2, restarts=2, max_new_tokens=3, together=2, seed=1)


@lru_cache
def _engine() -> HFEngine:
    return small_engine(dtype=torch.float32)


# ---------------------------------------------------------------------- whether it is run


def choose(folder: Path, engine: Engine, *attacks: str) -> RouteAttacks:
    plan = Audit(attacks=attacks)
    with Run.create(folder, "audit", {}) as run:
        bench = Bench(engine, AuditQuestion(Suite("s", ()), ManyJudge()), run)
        return choose_route_attacks(bench, plan, behaviours(6))


def test_both_searches_are_run_where_the_engine_guides(tmp_path: Path) -> None:
    found = choose(tmp_path / "both", _engine())
    assert found.fsour
    assert found.notes == ()
    assert found.gradient == pytest.approx(
        _engine().route_gradients([_engine().encode("how")], [_engine().encode_target("Sure")])[0].forwards
    )
    assert choose(tmp_path / "fsour", _engine(), "fsour") == RouteAttacks(True, None)
    alone = choose(tmp_path / "guided", _engine(), "guided")
    assert (alone.fsour, alone.gradient) == (False, found.gradient)


def test_the_longest_behaviour_shows_what_the_model_is_able_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for which there is no room is found before anything is asked."""
    engine = small_engine(dtype=torch.float32)
    lengths = [len(engine.encode(b.turns)) + len(engine.encode_target(b.target)) for b in behaviours(6)]
    assert lengths[0] < max(lengths)
    gradients = engine.route_gradients

    def full(prompts: Any, targets: Any) -> Any:
        if len(prompts[0]) + len(targets[0]) == max(lengths):
            raise OutOfMemory("Not even one row fits into memory", "Use shorter prompts")
        return gradients(prompts, targets)

    monkeypatch.setattr(engine, "route_gradients", full)
    assert choose(tmp_path / "run", engine).gradient is None
    with pytest.raises(OutOfMemory):
        choose(tmp_path / "other", engine, "guided")


def test_the_choice_is_remembered(tmp_path: Path) -> None:
    first = choose(tmp_path / "run", _engine())
    before = _engine().cost.forwards
    assert choose(tmp_path / "run", _engine()) == first
    assert _engine().cost.forwards == before


def test_an_engine_without_gradients_is_searched_with_fsour_alone_and_a_note_says_so(tmp_path: Path) -> None:
    said = (
        "Routes are searched with F-SOUR alone: plain cannot be searched by its gradient: its engine (PlainEngine) "
        "has none"
    )
    assert choose(tmp_path / "run", PlainEngine()) == RouteAttacks(True, None, (said,))
    with pytest.raises(UsageError, match="plain cannot be searched by its gradient"):
        choose(tmp_path / "other", PlainEngine(), "fsour", "guided")


def test_a_model_that_passes_no_gradient_is_found_out_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise ModelError("m passes no gradient", "Search its routes with F-SOUR")

    engine = small_engine(dtype=torch.float32)
    monkeypatch.setattr(engine, "route_gradients", refuse)
    assert choose(tmp_path / "run", engine).notes == ("Routes are searched with F-SOUR alone: m passes no gradient",)
    with pytest.raises(ModelError, match="m passes no gradient"):
        choose(tmp_path / "other", engine, "guided")


def test_guided_by_name_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    engine, plan = PlainEngine(), Audit(noise=(), attacks=("guided",))
    with Run.create(tmp_path / "run", "audit", {}) as run, pytest.raises(UsageError) as caught:
        perform_audit(plan, Bench(engine, AuditQuestion(load_suite(), TestbedJudge()), run))
    assert "Search its routes with F-SOUR (--attack fsour)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert engine.generated == engine.cost.forwards == 0


def test_runs_that_began_before_there_was_guided_go_on_with_fsour_alone() -> None:
    (known,) = [p for p in parameters(Audit) if p.name == "attacks"]
    assert known.limit(Formerly).value == ("fsour",)
    assert known.label == "attack"


def test_searches_of_routes_and_attacks_of_other_packages_are_named_together() -> None:
    plan = Audit(attacks=("guided", "shove:first=1", "fsour"))
    assert plan.route_attacks == ("fsour", "guided")
    assert plan.other_attacks == ("shove:first=1",)
    assert Audit(attacks=("shove",)).route_attacks == Audit().route_attacks == ()


# ---------------------------------------------------------------------- its stages


@dataclass(frozen=True)
class Searches:
    guided: GuidedRoutes
    side: SideBySide
    bench: Bench[AuditQuestion]
    keys: list[str]


def perform(folder: Path, plan: Audit = AUDIT, stop_after: int | None = None) -> Searches:
    asked = tuple(behaviours(3))
    with Run.create(folder, "audit", {}) as run:
        if stop_after is not None:
            stop(run, stop_after)
        bench = Bench(_engine(), AuditQuestion(Suite("s", asked), ManyJudge()), run, max_new_tokens=3)
        fsour = search_routes(bench, replace(plan, restarts=1), asked)
        found = search_guided_routes(bench, plan, asked)
        guided = examine_guided_routes(bench, plan, found)
        return Searches(guided, side_by_side(fsour.found, found.found), bench, list(run.keys()))


def comparable(searches: Searches) -> Any:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k != "seconds"}
        return [strip(v) for v in value] if isinstance(value, list) else value

    found = [dump(searches.guided), dump(searches.side), costs(searches.bench), searches.bench.completions]
    return strip(json.loads(json.dumps(found)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Searches:
    return perform(tmp_path_factory.mktemp("guided") / "run")


def test_routes_answers_and_controls_are_kept_and_costed(finished: Searches) -> None:
    guided, bench = finished.guided, finished.bench
    assert list(bench.costs) == ["fsour", "guided", "guided_controls"]
    assert [key for key in finished.keys if not key.startswith("fsour")] == [
        "guided/0/base", "guided/0/0", "guided/2/base", "guided/2/0", "guided/random-routes/every/0/0",
        "guided/natural-routes/0",
    ]  # fmt: skip
    stages = [row["stage"] for row in bench.completions if row["stage"] != "fsour"]
    assert stages == [name for name in ("guided", "guided-random-1", "guided-natural") for _ in range(3)]
    routes = {row["id"]: row for row in bench.beside["routes"] if row["stage"] == "guided"}
    for row in guided.behaviours:
        assert len(routes[row.id]["pairs"]) == row.pairs
        assert row.restarts == 1
        assert row.forwards == round(row.forwards, 1) > 4
    assert guided.settings.restarts == 1
    assert guided.controls is not None
    assert guided.controls.random.asr == guided.controls.random.asr_at_1
    assert guided.difference_random is not None
    if guided.example is not None:
        gained = [cell.gain for cell in guided.example.cells]
        (row,) = [row for row in guided.behaviours if row.id == guided.example.id]
        assert gained == pytest.approx([(row.log_prob_after - row.log_prob_before) / row.pairs] * row.pairs)


def test_an_interrupted_search_resumes_to_the_same(finished: Searches, tmp_path: Path) -> None:
    """Killed after three units of ten, after six and after nine."""
    assert len(finished.keys) == 10
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            perform(tmp_path / "run", stop_after=3)
    assert comparable(perform(tmp_path / "run")) == comparable(finished)


def test_without_controls(tmp_path: Path) -> None:
    found = perform(tmp_path / "run", replace(AUDIT, route_controls=False))
    assert (found.guided.controls, found.guided.difference_random) == (None, None)
    assert list(found.bench.costs) == ["fsour", "guided"]


# ---------------------------------------------------------------------- beside F-SOUR


def result(name: str, *searches: tuple[str, float], pairs: int = 1) -> RouteResult:
    """A behaviour whose restarts ended in these labels after so many forwards each, a second for ten."""

    def attempt(label: str) -> Attempt:
        return Attempt(name, "c", name, "", True, Verdict(label, 1.0 if label == "correct" else 0.0))  # type: ignore[arg-type]

    step = Step(0, 0, (0, 1), -0.1)
    made = tuple(
        Search(n, -3.0, (step,) * pairs, -0.1, attempt(label), {"rows": rows, "tokens": 1, "seconds": rows / 10})
        for n, (label, rows) in enumerate(searches)
    )
    return RouteResult(name, "c", name, attempt("refused"), made)


def test_equal_forwards_count_the_restarts_that_failed() -> None:
    guided = [
        result("a", ("correct", 20.26)), result("b", ("correct", 30.5), pairs=4), result("c", ("wrong", 50.0), pairs=2),
    ]  # fmt: skip
    again = [("b", 40, 50), ("c", 70, 80)]
    fsour = [result("a", ("correct", 25)), *(result(n, ("wrong", x), ("correct", y)) for n, x, y in again)]
    both = side_by_side(fsour, guided)
    assert (both.guided.forwards, both.guided.most_forwards, both.guided.pairs) == (30.5, 50.0, 2.0)
    assert (both.fsour.forwards, both.fsour.most_forwards, both.fsour.seconds) == (90.0, 150.0, 9.0)
    assert both.difference.difference == pytest.approx(-1 / 3)
    assert [(at.budget, at.forwards) for at in both.budgets] == [
        ("guided_median", 30.5), ("guided_most", 50.0), ("fsour_median", 90.0), ("fsour_most", 150.0),
    ]  # fmt: skip
    assert [(at.guided.k, at.fsour.k) for at in both.budgets] == [(2, 1), (2, 1), (2, 2), (2, 3)]
    for at in both.budgets:
        assert at.difference.difference == pytest.approx((at.guided.k - at.fsour.k) / 3)


def test_a_search_is_within_the_most_that_it_took_however_that_is_rounded() -> None:
    found = [result("a", ("correct", 20.26)), result("b", ("correct", 31.249))]
    both = side_by_side(found, found)
    assert both.at("guided_most").forwards == 31.2
    assert both.at("guided_most").guided.k == 2
    assert np.isclose(both.at("guided_median").forwards, 25.75)
