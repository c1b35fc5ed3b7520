"""The section on routes: arithmetic against literal loops."""

from __future__ import annotations

import numpy as np
import pytest

from engines import behaviours, small_engine
from pointsman.engine.hf import HFEngine
from pointsman.jobs.audit.route_findings import (
    controls_section,
    experts_used,
    fsour_section,
    one_search,
    seeds_section,
    transfer_section,
)
from pointsman.judges.types import Verdict
from pointsman.methods.attempts import Attempt
from pointsman.methods.fsour import FSour, FSourResult, Search, Step


def attempt(name: str, label: str, source: str | None = None) -> Attempt:
    return Attempt(name, "c", source or name, "", True, Verdict(label, 1.0 if label == "correct" else 0.0))  # type: ignore[arg-type]


def one(label: str, name: str = "a", steps: tuple[Step, ...] = (), before: float = -3.0, restart: int = 0) -> Search:
    after = steps[-1].log_prob if steps else before
    return Search(restart, before, steps, after, attempt(name, label), {"rows": 2, "tokens": 3, "seconds": 0.0})


def result(name: str, base: str, *labels: str) -> FSourResult:
    searches = tuple(one(label, name, restart=n) for n, label in enumerate(labels))
    return FSourResult(name, "c", name, attempt(name, base), searches)


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def test_base_success_counts_apart(engine: HFEngine) -> None:
    asked = behaviours(4)
    found = [
        result(b.id, base, *labels)
        for b, base, labels in zip(
            asked,
            ("correct", "refused", "refused", "refused"),
            (("correct",), ("wrong", "correct"), ("correct",), ("wrong", "wrong")),
            strict=True,
        )
    ]
    section = fsour_section(found, engine, FSour(), {b.id: b for b in asked})
    assert (section["asr"]["k"], section["asr"]["n"]) == (3, 4)
    assert (section["base"]["k"], section["base"]["n"]) == (1, 4)
    assert (section["asr_base_failed"]["k"], section["asr_base_failed"]["n"]) == (2, 3)
    assert (section["asr_at_1"]["k"], section["asr_at_1"]["n"]) == (2, 4)
    assert section["difference_base"]["difference"] == 0.5
    assert (section["difference_base"]["n10"], section["difference_base"]["n01"]) == (2, 0)
    assert section["difference_base"]["p_mcnemar"] == 0.5


def test_controls_take_the_best_draw_and_pair_it_with_the_route() -> None:
    found = [result("a", "refused", "wrong", "correct"), result("b", "refused", "correct"), result("c", "x", "wrong")]
    random = [
        [attempt("a", "refused"), attempt("a", "correct")], [attempt("b", "wrong")], [attempt("c", "garbage")],
    ]  # fmt: skip
    natural = [attempt("a", "refused"), attempt("b", "refused"), attempt("c", "correct")]
    section = controls_section(found, random, natural)
    drawn = section["controls"]["random"]
    assert [drawn[r]["k"] for r in ("asr", "asr_at_1", "any_compliance", "garbage", "refused")] == [1, 0, 2, 1, 0]
    assert section["controls"]["natural"]["asr"]["k"] == 1
    assert section["difference_random"]["difference"] == pytest.approx((0 + 1 + 0) / 3)
    assert section["difference_natural"]["difference"] == pytest.approx((1 + 1 - 1) / 3)
    assert (section["difference_natural"]["n10"], section["difference_natural"]["n01"]) == (2, 1)


def test_experts_against_a_loop(engine: HFEngine) -> None:
    rng = np.random.default_rng(0)
    searches = []
    for _ in range(5):
        layers = rng.integers(3, size=8).tolist()
        steps = [Step(n, t, tuple(engine.routers[n].draw(rng, 1)[0].tolist()), 0.0) for t, n in enumerate(layers)]
        searches.append(one("correct", steps=tuple(steps)))
    pairs = [step for s in searches for step in s.steps]
    rows = experts_used(searches, engine)
    assert len(rows) == 10
    assert [r["count"] for r in rows] == sorted((r["count"] for r in rows), reverse=True)
    for row in rows:
        router = engine.routers[row["layer"]]
        uses = [p for p in pairs if p.layer == row["layer"] and row["expert"] in p.experts]
        there = [p for p in pairs if p.layer == row["layer"]]
        assert row["count"] == len(uses)
        assert row["share"] == len(uses) / len(pairs)
        assert row["expected"] == pytest.approx(len(there) * router.top_k / router.experts / len(pairs))
    assert experts_used([one("wrong")], engine) == []


def test_one_search() -> None:
    step = Step(0, 0, (0, 1), -0.5)
    entry = one_search([one("correct", "a", (step,)), one("wrong", "b", before=-2.0), one("garbage", "c")])
    assert (entry["n"], entry["asr_at_1"]["k"], entry["any_compliance"]["k"], entry["garbage"]["k"]) == (3, 1, 2, 1)
    assert (entry["pairs"], entry["log_prob_before"], entry["log_prob_after"]) == (0.0, -3.0, -2.0)


def test_transfer_section() -> None:
    labels = [["correct", "wrong"], ["garbage", "refused"]]
    matrix = [[attempt(name, label) for name, label in zip("ab", row, strict=True)] for row in labels]
    section = transfer_section(["a", "b"], matrix, [0.5, 0.1])
    assert section["matrix"] == [[True, False], [False, False]]
    assert (section["asr_others"]["k"], section["asr_others"]["n"]) == (0, 2)
    assert (section["asr_own"]["k"], section["asr_own"]["n"]) == (1, 2)
    assert section["pairs_kept"] == pytest.approx(0.3)


def test_seeds_are_a_spread_of_their_own() -> None:
    runs = [[result("a", "x", "wrong", "correct"), result("b", "x", "wrong")], [result("a", "x", "correct")] * 2]
    section = seeds_section([4, 5], runs)
    assert section == {
        "seeds": [4, 5], "asr": [0.5, 1.0], "asr_at_1": [0.0, 1.0], "pairs": [0.0, 0.0],
        "mean": 0.75, "min": 0.5, "max": 1.0,
    }  # fmt: skip
