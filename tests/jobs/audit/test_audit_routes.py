"""The route stages of the audit on a small engine: what they ask, and that a killed run resumes to the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from engines import behaviours, small_engine
from judging import OneByOne
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.engine.hf import HFEngine
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import AuditPrompts
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.results import FsourSeeds
from pointsman.jobs.audit.route_results import Fsour
from pointsman.jobs.audit.route_variants import SPARSE, other_targets
from pointsman.jobs.audit.routes import examine_routes, search_routes, search_under_other_seeds
from pointsman.judges.types import Answer, Verdict
from pointsman.methods.fsour import FSour
from pointsman.runs.bench import Bench
from pointsman.runs.results import dump
from pointsman.runs.run import Run
from works import OneJudge, audit_bench, costs, stop

AUDIT = Audit(
    candidates=2, restarts=2, max_new_tokens=3, together=2, other_targets=2, transfer=3, method_seeds=2, seed=1,
)  # fmt: skip


@lru_cache
def _engine() -> HFEngine:
    return small_engine(dtype=torch.float32)


class ByLength(OneByOne):
    """Calls an answer under a route correct if it has an even number of letters: untrained models say all kinds."""

    name, version, grades_content = "by-length", "1", True

    def __init__(self, plain: set[str]) -> None:
        self.plain = plain

    def one(self, asked: Behaviour | Conversation, answer: Answer) -> Verdict:
        good = answer.text not in self.plain and len(answer.text) % 2 == 0
        return Verdict("correct" if good else "refused", 1.0 if good else 0.0)


@pytest.fixture(scope="module")
def asked() -> AuditPrompts:
    """The third behaviour has no other target, the second has two."""
    others = [("first take the rope",), ("first take the rope", "Sure , here"), (), ("Sure", "first")]
    test = tuple(replace(b, targets=t) for b, t in zip(behaviours(4), others, strict=True))
    return AuditPrompts((), test)


@dataclass(frozen=True)
class Searches:
    """What the stages on routes gave, and what they left behind."""

    fsour: Fsour
    seeds: FsourSeeds | None
    bench: Bench[AuditQuestion]
    keys: list[str]


def perform(folder: Path, asked: AuditPrompts, plan: Audit = AUDIT, stop_after: int | None = None) -> Searches:
    engine = _engine()
    plain = engine.generate([engine.encode(b.turns) for b in asked.test], max_new_tokens=3)
    judge = ByLength({p.text for p in plain})
    with Run.create(folder, "audit", {}) as run:
        if stop_after is not None:
            stop(run, stop_after)
        question = AuditQuestion(Suite("s", asked.test), judge)
        bench = Bench(engine, question, run, max_new_tokens=plan.max_new_tokens)
        routes = search_routes(bench, plan, asked.test[: plan.searches])
        fsour = examine_routes(bench, plan, routes)
        seeds = search_under_other_seeds(bench, routes, plan.method_seeds) if plan.method_seeds > 1 else None
        return Searches(fsour, seeds, bench, list(run.keys()))


def comparable(searches: Searches) -> str:
    return json.dumps([dump(searches.fsour), dump(searches.seeds), costs(searches.bench), searches.bench.completions])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, asked: AuditPrompts) -> Searches:
    return perform(tmp_path_factory.mktemp("routes") / "run", asked)


def test_what_a_reader_of_answers_needs_is_kept_beside_them(finished: Searches, asked: AuditPrompts) -> None:
    bench, engine = finished.bench, _engine()
    attempts, routes = bench.beside["attempts"], bench.beside["routes"]
    assert [(a["stage"], a["id"]) for a in attempts] == [(c["stage"], c["id"]) for c in bench.completions]
    assert {a["source"] for a in attempts} == {b.source or b.id for b in asked.test}
    stages = ("fsour", "fsour-target-1", "fsour-target-2", "fsour-min-gain")
    assert {r["stage"] for r in routes} == set(stages)
    by_id = {b.id: engine.encode(b.turns) for b in asked.test}
    for route in routes:
        assert route["tokens"] == list(by_id[route["id"]].tokens)
        assert all(0 <= pair["position"] < len(route["tokens"]) for pair in route["pairs"])
        assert all(0 <= pair["layer"] < route["layers"] == len(engine.routers) for pair in route["pairs"])
    (example,) = [r for r in routes if finished.fsour.example and r["id"] == finished.fsour.example.id][:1]
    assert finished.fsour.example is not None
    assert len(example["pairs"]) == len(finished.fsour.example.cells)


def test_every_part_is_there_and_costed(finished: Searches) -> None:
    section, seeds, completions = finished.fsour, finished.seeds, finished.bench.completions
    spent = costs(finished.bench)
    assert list(spent) == ["fsour", "route_controls", "targets", "min_gain", "transfer", "fsour_seeds"]
    assert all(cost["forwards"] > 0 for cost in spent.values())
    assert {k.split("/")[0] for k in finished.keys} == {
        "fsour", "random-routes", "natural-routes", "target-1", "target-2", f"min-gain-{SPARSE}", "transfer", "seed-2",
    }  # fmt: skip
    used = section.settings.restarts * len(section.behaviours)
    random = [c for c in completions if c["stage"].startswith("fsour-random")]
    assert len(random) == used > 4  # the judge is called as often as the search may
    assert section.controls is not None
    assert [t.n for t in section.targets] == [2, 2, 1]
    assert [(t.number, t.target) for t in section.targets] == [(0, "affirmative"), (1, "content"), (2, "affirmative")]
    assert [(e.min_gain, e.n) for e in section.min_gain] == [(1e-9, 2), (SPARSE, 2)]
    assert section.min_gain[1].pairs < section.min_gain[0].pairs
    assert seeds is not None
    assert seeds.seeds == (1, 2)
    assert seeds.asr[0] == section.asr.rate
    needed = tuple(b.id for b in section.behaviours if b.success and not b.base_success and b.pairs)
    assert section.transfer is not None
    assert section.transfer.ids == needed[:3]
    assert len(section.transfer.matrix) == len(needed[:3]) >= 2


def test_no_word_of_a_target_is_in_the_results(finished: Searches, asked: AuditPrompts) -> None:
    text = json.dumps([dump(finished.fsour), dump(finished.seeds)])
    for behaviour in asked.test:
        for words in (behaviour.goal, behaviour.target, *behaviour.targets):
            assert words not in text


def test_other_targets_and_gains_are_searched_once_with_the_same_candidates(
    finished: Searches, asked: AuditPrompts
) -> None:
    engine = _engine()
    once = FSour(candidates=2, restarts=1, together=2, seed=1)
    aimed = [replace(b, target="first take the rope") for b in asked.test[:2]]
    routes = once.find_routes(engine, aimed, 0)
    entry = finished.fsour.targets[1]
    assert entry.log_prob_before == pytest.approx(sum(r.before for r in routes) / 2)
    assert entry.pairs == sum(len(r.steps) for r in routes) / 2
    sparse = replace(once, min_gain=SPARSE).find_routes(engine, asked.test[:2], 0)
    assert finished.fsour.min_gain[1].pairs == sum(len(r.steps) for r in sparse) / 2


def test_an_interrupted_run_resumes_to_the_same(finished: Searches, asked: AuditPrompts, tmp_path: Path) -> None:
    """Killed at the beginning of every stage, one after the other."""
    first = {key.split("/")[0]: n for n, key in reversed(list(enumerate(finished.keys)))}
    done = 0
    for n in first.values():
        with pytest.raises(KeyboardInterrupt):
            perform(tmp_path / "run", asked, stop_after=n - done)
        done = n
    assert comparable(perform(tmp_path / "run", asked)) == comparable(finished)


def test_parts_that_are_not_asked_for_cost_nothing(asked: AuditPrompts, tmp_path: Path) -> None:
    plan = replace(AUDIT, route_controls=False, other_targets=0, transfer=0, method_seeds=1, searches=2)
    found = perform(tmp_path / "run", asked, plan)
    section = found.fsour
    assert (found.seeds, section.controls, section.transfer, section.difference_random) == (None, None, None, None)
    assert (section.targets, section.min_gain) == ((), ())
    assert {k.split("/")[0] for k in found.keys} == {"fsour"}
    assert list(found.bench.costs) == ["fsour"]


def test_without_other_targets_or_successes(tmp_path: Path) -> None:
    plan, judge = replace(AUDIT, method_seeds=1, min_gain=SPARSE, restarts=1), OneJudge("garbage")
    with audit_bench(tmp_path / "run", plan, judge=judge, engine=_engine()) as bench:
        section = examine_routes(bench, plan, search_routes(bench, plan, tuple(behaviours(2))))
    assert section.targets == ()
    assert section.transfer is None
    assert section.example is None
    assert [e.min_gain for e in section.min_gain] == [SPARSE]  # nothing to compare it with


def test_kinds_of_targets() -> None:
    engine: HFEngine = small_engine()
    plain = behaviours(3)
    given = [("first take",), (), ("Sure", "Sure ,")]
    asked = [replace(b, targets=t) for b, t in zip(plain, given, strict=True)]
    (kind, first), (other, second) = other_targets(engine, asked, 5)
    assert (kind, other) == ("mixed", "affirmative")
    assert [b.target for b in first] == ["first take", "Sure"]
    assert [(b.id, b.target, b.targets) for b in second] == [(plain[2].id, "Sure ,", ())]
    assert other_targets(engine, asked, 1) == [("content", [replace(plain[0], target="first take")])]
    assert other_targets(engine, plain, 5) == []
