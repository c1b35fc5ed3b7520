"""The route stages of the audit on a small engine: what they ask, and that a killed run resumes to the same."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import behaviours, small_engine
from judging import OneByOne
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.engine.hf import HFEngine
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.routes import SPARSE, other_targets, search
from pointsman.jobs.audit.work import Asked, Work
from pointsman.judges.types import Answer, Verdict
from pointsman.methods.fsour import FSour
from pointsman.runs.progress import NullProgress
from pointsman.runs.run import Run

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
def asked() -> Asked:
    """The third behaviour has no other target, the second has two."""
    others = [("first take the rope",), ("first take the rope", "Sure , here"), (), ("Sure", "first")]
    test = tuple(replace(b, targets=t) for b, t in zip(behaviours(4), others, strict=True))
    return Asked((), test, (), (), (), {})


def perform(
    folder: Path, asked: Asked, audit: Audit = AUDIT, stop_after: int | None = None
) -> tuple[dict[str, Any], Work, list[str]]:
    engine = _engine()
    plain = engine.generate([engine.encode(b.turns) for b in asked.test], max_new_tokens=3)
    judge = ByLength({p.text for p in plain})
    with Run.create(folder, "audit", {}) as run:
        remember, left = run.remember, [stop_after]

        def until(key: str, compute: Any) -> Any:
            if key not in run and left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            return remember(key, compute)

        run.remember = until  # type: ignore[method-assign]
        work = Work(engine, Suite("s", asked.test), judge, run, NullProgress(), audit=audit)
        return search(work, asked), work, list(run.keys())


def comparable(sections: dict[str, Any], work: Work) -> str:
    costs = [{k: v for k, v in c.items() if k != "seconds"} for c in work.costs]
    return json.dumps([sections, costs, work.completions])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, asked: Asked) -> tuple[dict[str, Any], Work, list[str]]:
    return perform(tmp_path_factory.mktemp("routes") / "run", asked)


def test_every_part_is_there_and_costed(finished: tuple[dict[str, Any], Work, list[str]]) -> None:
    sections, work, keys = finished
    assert set(sections) == {"fsour", "seeds"}
    section = sections["fsour"]
    assert [c["stage"] for c in work.costs] == [
        "fsour", "route_controls", "targets", "min_gain", "transfer", "fsour_seeds",
    ]  # fmt: skip
    assert all(c["forwards"] > 0 for c in work.costs)
    assert {k.split("/")[0] for k in keys} == {
        "fsour", "random-routes", "natural-routes", "target-1", "target-2", f"min-gain-{SPARSE}", "transfer", "seed-2",
    }  # fmt: skip
    used = section["settings"]["restarts"] * len(section["behaviours"])
    random = [c for c in work.completions if c["stage"].startswith("fsour-random")]
    assert len(random) == used > 4  # the judge is called as often as the search may
    assert [t["n"] for t in section["targets"]] == [2, 2, 1]
    assert [(t["number"], t["target"]) for t in section["targets"]] == [
        (0, "affirmative"), (1, "content"), (2, "affirmative"),
    ]  # fmt: skip
    assert [(e["min_gain"], e["n"]) for e in section["min_gain"]] == [(1e-9, 2), (SPARSE, 2)]
    assert section["min_gain"][1]["pairs"] < section["min_gain"][0]["pairs"]
    assert sections["seeds"]["fsour"]["seeds"] == [1, 2]
    assert sections["seeds"]["fsour"]["asr"][0] == section["asr"]["rate"]
    needed = [b["id"] for b in section["behaviours"] if b["success"] and not b["base_success"] and b["pairs"]]
    assert section["transfer"]["ids"] == needed[:3]
    assert len(section["transfer"]["matrix"]) == len(needed[:3]) >= 2


def test_no_word_of_a_target_is_in_the_results(finished: tuple[dict[str, Any], Work, list[str]], asked: Asked) -> None:
    text = json.dumps(finished[0])
    for behaviour in asked.test:
        for words in (behaviour.goal, behaviour.target, *behaviour.targets):
            assert words not in text


def test_other_targets_and_gains_are_searched_once_with_the_same_candidates(
    finished: tuple[dict[str, Any], Work, list[str]], asked: Asked
) -> None:
    engine = _engine()
    once = FSour(candidates=2, restarts=1, together=2, seed=1)
    aimed = [replace(b, target="first take the rope") for b in asked.test[:2]]
    routes = once.find_routes(engine, aimed, 0)
    entry = finished[0]["fsour"]["targets"][1]
    assert entry["log_prob_before"] == pytest.approx(sum(before for before, _, _ in routes) / 2)
    assert entry["pairs"] == sum(len(steps) for _, steps, _ in routes) / 2
    sparse = replace(once, min_gain=SPARSE).find_routes(engine, asked.test[:2], 0)
    assert finished[0]["fsour"]["min_gain"][1]["pairs"] == sum(len(steps) for _, steps, _ in sparse) / 2


def test_an_interrupted_run_resumes_to_the_same(
    finished: tuple[dict[str, Any], Work, list[str]], asked: Asked, tmp_path: Path
) -> None:
    """Killed at the beginning of every stage, one after the other."""
    sections, work, keys = finished
    first = {key.split("/")[0]: n for n, key in reversed(list(enumerate(keys)))}
    done = 0
    for n in first.values():
        with pytest.raises(KeyboardInterrupt):
            perform(tmp_path / "run", asked, stop_after=n - done)
        done = n
    again, resumed, _ = perform(tmp_path / "run", asked)
    assert comparable(again, resumed) == comparable(sections, work)


def test_parts_that_are_not_asked_for_cost_nothing(asked: Asked, tmp_path: Path) -> None:
    audit = replace(AUDIT, route_controls=False, other_targets=0, transfer=0, method_seeds=1, searches=2)
    sections, work, keys = perform(tmp_path / "run", asked, audit)
    assert set(sections) == {"fsour"}
    assert not {"controls", "targets", "min_gain", "transfer", "difference_random"} & set(sections["fsour"])
    assert {k.split("/")[0] for k in keys} == {"fsour"}
    assert [c["stage"] for c in work.costs] == ["fsour"]


def test_without_other_targets_or_successes(tmp_path: Path) -> None:
    test = tuple(behaviours(2))
    audit = replace(AUDIT, method_seeds=1, min_gain=SPARSE, restarts=1)
    engine = _engine()
    with Run.create(tmp_path / "run", "audit", {}) as run:
        work = Work(engine, Suite("s", test), ByLength(set()), run, NullProgress(), audit=audit)
        work.judge.one = lambda *a: Verdict("garbage", 0.0)  # type: ignore[attr-defined]
        section = search(work, Asked((), test, (), (), (), {}))["fsour"]
    assert section["targets"] == []
    assert section["transfer"] is None
    assert [e["min_gain"] for e in section["min_gain"]] == [SPARSE]  # nothing to compare it with


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
