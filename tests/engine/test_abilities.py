"""Engines say what they can do: an audit works on one that is not of transformers, and what it cannot is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.conftest_cli import Cli, cli, here
from engines import behaviours, small_engine
from plain_engine import PlainEngine
from pointsman.data.scenario import Grid, Limits, Scenario
from pointsman.data.types import Suite
from pointsman.engine.checkup import check_up
from pointsman.engine.types import Ability, Engine
from pointsman.errors import InterventionError, PointsmanError, UsageError
from pointsman.jobs.audit.perform import perform as perform_audit
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.evaluate.perform import perform as perform_evaluate
from pointsman.jobs.evaluate.plan import Evaluate
from pointsman.jobs.evaluate.question import EvaluateQuestion
from pointsman.jobs.finished import write_report
from pointsman.jobs.parameters import plain
from pointsman.jobs.steer.perform import perform as perform_steer
from pointsman.jobs.steer.plan import Steer
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.methods.patching import Patching
from pointsman.routing.intervention import Intervention
from pointsman.runs.bench import Bench
from pointsman.runs.results import dump
from pointsman.runs.run import Run
from pointsman.steering.artefact import Steering
from pointsman.testbed.plugin import load_suite
from works import ManyJudge, stop

__all__ = ["cli", "here"]

AUDIT = Audit(
    limit=3, samples=2, routers=2, random_draws=2, candidates=2, restarts=2, max_new_tokens=4, phases=("prefill",),
    utility_prompts=2, noise=(), other_targets=2, transfer=2,
)  # fmt: skip


def perform(folder: Path, engine: Engine, audit: Audit = AUDIT, stop_after: int | None = None) -> dict[str, Any]:
    with Run.create(folder, "audit", {"model": "plain", **plain(audit)}) as run:
        if stop_after is not None:
            stop(run, stop_after)
        return dump(perform_audit(audit, Bench(engine, AuditQuestion(load_suite(), ManyJudge()), run)))


def comparable(folder: Path) -> Any:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "free", "created")}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return strip(json.loads((folder / "results.json").read_text()))


def test_an_audit_of_an_engine_that_is_not_of_transformers(tmp_path: Path) -> None:
    for lacking in ("model", "tokenizer", "learner", "patcher"):
        assert not hasattr(PlainEngine(), lacking)
    results = perform(tmp_path / "whole", PlainEngine())
    assert results["model"]["architecture"] == "BagOfTokens"
    assert results["model"]["resumes"].startswith("forwards are not resumed")
    assert results["rosais"]
    assert results["masking"]
    assert results["fsour"]["asr"]["n"] == 3
    page = write_report(tmp_path / "whole").read_text()
    assert "BagOfTokens" in page
    with pytest.raises(KeyboardInterrupt):
        perform(tmp_path / "parts", PlainEngine(), stop_after=9)
    perform(tmp_path / "parts", PlainEngine())
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")


def test_what_an_engine_cannot_do_is_refused_before_it_answers(tmp_path: Path) -> None:
    engine = PlainEngine()
    with pytest.raises(InterventionError) as caught:
        perform(tmp_path / "run", engine, replace(AUDIT, noise=(0.5,)))
    assert str(caught.value) == (
        "Noise cannot be carried out by the engine of plain: it knows no noise. Use masks and forced sets."
    )
    assert engine.generated == engine.cost.forwards == 0


def scenario(*refinements: str) -> Scenario:
    grid = Grid((0.0,), (1.0,), ("prefill",), refinements)  # type: ignore[arg-type]
    return Scenario(
        "tiny", "defend", suite="testbed-steering", judge="testbed", grid=grid, max_new_tokens=2,
        limits=Limits(garbage=1.0),
    )  # fmt: skip


MASCING = Steer(method="mascing")


@pytest.mark.parametrize(
    ("plan", "what", "error", "said"),
    [
        (Steer(), scenario("surrogate"), UsageError, "plain cannot learn through the model: its"),
        (MASCING, scenario("surrogate", "through_model"), UsageError, "plain cannot learn through the model: its"),
        (
            replace(MASCING, upper_bound=True),
            scenario("surrogate"),
            UsageError,
            "engine (PlainEngine) has no gradients. Steer with --method mascing",
        ),
        (
            replace(MASCING, rivals=("conditional",)),
            scenario("surrogate"),
            UsageError,
            "engine (PlainEngine) has no gradients. Steer with --method mascing",
        ),
        (MASCING, scenario("surrogate"), InterventionError, "A mask (prefill) cannot be carried out by the engine"),
    ],
)
def test_steering_refuses_an_engine_that_cannot(
    tmp_path: Path, plan: Steer, what: Scenario, error: type[PointsmanError], said: str
) -> None:
    engine = PlainEngine()
    with Run.create(tmp_path / "run", "steer", {}) as run, pytest.raises(error) as caught:
        perform_steer(plan, Bench(engine, SteerQuestion(what, Suite("none", ()), ManyJudge()), run))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert engine.cost.forwards == 0


def steering() -> Steering:
    routers = PlainEngine().routers
    matrix = tuple(np.eye(1, r.experts, dtype=np.float32)[0] for r in routers)
    return Steering(matrix, (1.0,) * len(routers), 1.0, "prefill", "plain-1", "plain")


def test_a_steering_is_not_evaluated_where_it_cannot_be_applied(tmp_path: Path) -> None:
    engine = PlainEngine()
    question = EvaluateQuestion(steering(), scenario("surrogate"), Suite("none", ()), ManyJudge())
    with (
        Run.create(tmp_path / "run", "evaluate", {}) as run,
        pytest.raises(InterventionError, match="This steering cannot be carried out by the engine of plain: it knows"),
    ):
        perform_evaluate(Evaluate(), Bench(engine, question, run))
    assert engine.cost.forwards == 0


def test_residual_streams_are_not_exchanged_where_there_are_none() -> None:
    with pytest.raises(UsageError, match="plain cannot be patched"):
        Patching().patch(PlainEngine(), behaviours(1), [Intervention.mask({0: [0, 1]})])


def test_a_checkup_of_an_engine_without_gradients() -> None:
    seen = check_up(PlainEngine())
    assert not seen.learns
    assert seen.why_not == "its engine, PlainEngine, has none"
    assert seen.scored < 1e-9


@pytest.fixture
def plain_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.engine.load.load", lambda *arguments, **more: PlainEngine())


@pytest.mark.usefixtures("plain_is_loaded")
def test_the_verbs_take_any_engine(cli: Cli, here: Path) -> None:
    effort = ("--limit", "3", "--samples", "2", "--random-draws", "1", "--candidates", "2", "--restarts", "1",
              "--max-new-tokens", "4", "--no-controls")  # fmt: skip
    done = cli("audit", "testbed", *effort, "--out", "run")
    assert done.code == 0, done.err
    assert "pointsman: note: testbed: forwards are not resumed, every score takes a full one (plain)" in done.err
    assert cli("doctor", "testbed").code == 0
    assert "layer 2" in cli("routers", "testbed").out


@pytest.mark.usefixtures("plain_is_loaded")
@pytest.mark.parametrize(
    ("verb", "said"),
    [
        (("steer", "testbed", "--scenario", "multi_turn_defence"), "testbed cannot learn through the model: its en"),
        (("fold", "testbed", "--steering", "s", "--out", "o"), "testbed is not at hand as a module: its engine (Plai"),
        (("chat", "testbed", "--steering", "s"), "This steering cannot be carried out by the engine of testbed: it kn"),
    ],
)
def test_the_verbs_refuse_what_the_engine_cannot(cli: Cli, here: Path, verb: tuple[str, ...], said: str) -> None:
    steering().save_pretrained(here / "s")
    done = cli(*verb)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"pointsman: {said}")
    assert not (here / "o").exists()


CANNOT: list[tuple[Callable[[], Any], str]] = [
    (lambda: Intervention.mask({9: [0, 1]}), "There is no MoE layer 9"),
    (lambda: Intervention.mask({0: [0]}), "The mask of layer 0 allows 1 experts"),
    (lambda: replace(Intervention.mask({0: [0, 1]}), fingerprint="another"), "This intervention is for another"),
    (lambda: "a mask", "A routing of str"),
    (lambda: [None, Intervention.mask({0: [0, 1]}, rows=[0])], "A rule that names rows has no meaning here"),
]


@pytest.mark.parametrize(("routing", "why"), CANNOT)
def test_the_transformers_engine_says_what_it_cannot(routing: Callable[[], Any], why: str) -> None:
    engine = small_engine()
    able = engine.can(routing())
    assert not able
    assert able.why_not.startswith(why)
    assert able.remedy
    assert engine.cost.forwards == 0
    for can in (None, Intervention(), Intervention.mask({0: [0, 1]}), [None, Intervention.mask({0: [0, 1]})]):
        assert engine.can(can) == Ability()


@pytest.mark.parametrize("verb", ["generate", "score", "trace"])
def test_all_of_a_routing_is_refused_before_the_first_batch(verb: str) -> None:
    """The row that cannot be is the shortest, and so the last to be computed."""
    engine = small_engine(batch_size=1)
    prompts = [engine.encode("how do you prune the tiny plum ?"), engine.encode("how")]
    routing = [Intervention.mask({0: [0, 1]}), Intervention.mask({9: [0, 1]})]
    more: dict[str, Any] = {"max_new_tokens": 2} if verb == "generate" else {}
    targets = [[engine.encode_target("Sure")] * 2] if verb == "score" else []
    with pytest.raises(InterventionError, match="There is no MoE layer 9"):
        getattr(engine, verb)(prompts, *targets, routing=routing, **more)
    assert engine.cost.forwards == 0
