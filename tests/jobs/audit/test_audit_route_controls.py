"""What routes come to: arithmetic against literal loops."""

from __future__ import annotations

import numpy as np
import pytest

from engines import behaviours, small_engine
from pointsman.engine.hf import HFEngine
from pointsman.jobs.audit.results import FsourSeeds
from pointsman.jobs.audit.route_controls import compare_routes, transfer_result
from pointsman.jobs.audit.route_variants import search_variant
from pointsman.jobs.audit.routes import Routes, describe_routes, experts_used, fsour_seeds
from pointsman.judges.types import Verdict
from pointsman.methods.attempts import Attempt
from pointsman.methods.fsour import FSour
from pointsman.methods.routes import RouteResult, Search, Step


def attempt(name: str, label: str, source: str | None = None) -> Attempt:
    return Attempt(name, "c", source or name, "", True, Verdict(label, 1.0 if label == "correct" else 0.0))  # type: ignore[arg-type]


def one(label: str, name: str = "a", steps: tuple[Step, ...] = (), before: float = -3.0, restart: int = 0) -> Search:
    after = steps[-1].log_prob if steps else before
    return Search(restart, before, steps, after, attempt(name, label), {"rows": 2, "tokens": 3, "seconds": 0.0})


def result(name: str, base: str, *labels: str) -> RouteResult:
    searches = tuple(one(label, name, restart=n) for n, label in enumerate(labels))
    return RouteResult(name, "c", name, attempt(name, base), searches)


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
    section = describe_routes(engine, Routes(FSour(), tuple(asked), found))
    assert (section.asr.k, section.asr.n) == (3, 4)
    assert (section.base.k, section.base.n) == (1, 4)
    assert (section.asr_base_failed.k, section.asr_base_failed.n) == (2, 3)
    assert (section.asr_at_1.k, section.asr_at_1.n) == (2, 4)
    assert section.difference_base.difference == 0.5
    assert (section.difference_base.n10, section.difference_base.n01) == (2, 0)
    assert section.difference_base.p_mcnemar == 0.5


def test_controls_take_the_best_draw_and_pair_it_with_the_route() -> None:
    found = [result("a", "refused", "wrong", "correct"), result("b", "refused", "correct"), result("c", "x", "wrong")]
    random = [
        [attempt("a", "refused"), attempt("a", "correct")], [attempt("b", "wrong")], [attempt("c", "garbage")],
    ]  # fmt: skip
    natural = [attempt("a", "refused"), attempt("b", "refused"), attempt("c", "correct")]
    controls, to_random, to_natural = compare_routes(found, random, natural)
    drawn = controls.random
    rates = (drawn.asr, drawn.asr_at_1, drawn.any_compliance, drawn.garbage, drawn.refused)
    assert [rate.k for rate in rates] == [1, 0, 2, 1, 0]
    assert controls.natural.asr.k == 1
    assert to_random.difference == pytest.approx((0 + 1 + 0) / 3)
    assert to_natural.difference == pytest.approx((1 + 1 - 1) / 3)
    assert (to_natural.n10, to_natural.n01) == (2, 1)


def test_experts_against_a_loop(engine: HFEngine) -> None:
    rng = np.random.default_rng(0)
    searches = []
    for _ in range(5):
        layers = rng.integers(3, size=8).tolist()
        steps = [Step(n, t, tuple(engine.routers[n].draw(rng, 1)[0].tolist()), 0.0) for t, n in enumerate(layers)]
        searches.append(one("correct", steps=tuple(steps)))
    pairs = [step for s in searches for step in s.steps]
    rows = experts_used(engine, searches)
    assert len(rows) == 10
    assert [r.count for r in rows] == sorted((r.count for r in rows), reverse=True)
    for row in rows:
        router = engine.routers[row.layer]
        uses = [p for p in pairs if p.layer == row.layer and row.expert in p.experts]
        there = [p for p in pairs if p.layer == row.layer]
        assert row.count == len(uses)
        assert row.share == len(uses) / len(pairs)
        assert row.expected == pytest.approx(len(there) * router.top_k / router.experts / len(pairs))
    assert experts_used(engine, [one("wrong")]) == ()


def test_a_search_variant() -> None:
    step = Step(0, 0, (0, 1), -0.5)
    found = search_variant([one("correct", "a", (step,)), one("wrong", "b", before=-2.0), one("garbage", "c")])
    assert (found.n, found.asr_at_1.k, found.any_compliance.k, found.garbage.k) == (3, 1, 2, 1)
    assert (found.pairs, found.log_prob_before, found.log_prob_after) == (0.0, -3.0, -2.0)


def test_transfer() -> None:
    labels = [["correct", "wrong"], ["garbage", "refused"]]
    matrix = [[attempt(name, label) for name, label in zip("ab", row, strict=True)] for row in labels]
    section = transfer_result(["a", "b"], matrix, [0.5, 0.1])
    assert section.matrix == ((True, False), (False, False))
    assert (section.asr_others.k, section.asr_others.n) == (0, 2)
    assert (section.asr_own.k, section.asr_own.n) == (1, 2)
    assert section.pairs_kept == pytest.approx(0.3)


def test_seeds_are_a_spread_of_their_own() -> None:
    runs = [[result("a", "x", "wrong", "correct"), result("b", "x", "wrong")], [result("a", "x", "correct")] * 2]
    assert fsour_seeds([4, 5], runs) == FsourSeeds(
        seeds=(4, 5), asr=(0.5, 1.0), asr_at_1=(0.0, 1.0), pairs=(0.0, 0.0), mean=0.75, min=0.5, max=1.0
    )
