"""One route for all prompts in an audit: the stage, its figures, its claim, its section, its forecast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines import small_engine
from plain_engine import PlainEngine
from pointsman.engine.hf import HFEngine
from pointsman.errors import UsageError
from pointsman.jobs.audit.claims import claims_on_universal, conclude
from pointsman.jobs.audit.page import page, summary
from pointsman.jobs.audit.results import AuditResults
from pointsman.jobs.audit.route_results import UniversalPlace, UniversalRates
from pointsman.jobs.audit.sections.universal import in_words
from pointsman.jobs.audit.universal import ROUTE, forwards_of_gradient, notes_on_universal, try_universal_route
from pointsman.methods.attempts import Attempt, ask
from pointsman.methods.universal import Replay, Universal
from pointsman.methods.universal_route import UniversalRoute
from pointsman.report.html import render
from pointsman.runs.rates import AttackRates, compare_success, successes
from pointsman.runs.results import Claim
from pointsman.stats.paired import above_draws, compare
from pointsman.stats.rates import Rate
from reader import Reader
from works import TINY, ManyJudge, asked, audit_bench

PLAN = replace(TINY, universal=2, seed=3)


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


@pytest.fixture(scope="module")
def base(engine: HFEngine) -> list[Attempt]:
    return ask(engine, asked().test, ManyJudge(), max_new_tokens=3)


def test_it_is_what_the_method_finds_on_discovery_prompts_and_says_on_test_prompts(
    engine: HFEngine, base: list[Attempt], tmp_path: Path
) -> None:
    some = asked()
    with audit_bench(tmp_path / "run", PLAN, engine=engine) as bench:
        rates = try_universal_route(bench, PLAN, some, base)
        keys = list(bench.run.keys())
    assert rates is not None
    found = Universal().find(engine, some.discovery[:2])
    answers = Replay(2, 3, 3).ask(engine, some.test, ManyJudge(), found.route)
    assert UniversalRoute.load(tmp_path / "run" / ROUTE) == found.route
    assert [(p.layer, p.anchor, p.offset, p.experts) for p in rates.places] == [
        (f.layer, f.place.anchor, f.place.offset, f.experts) for f in found.route.forced
    ]
    assert rates.places
    assert (rates.prompts, rates.forwards) == (2, found.rows)
    assert (rates.log_prob_before, rates.log_prob_after) == (found.trajectory[0], found.trajectory[-1])
    assert rates.reached.n == 2
    assert rates.asr == AttackRates.of(answers.routed, 3).asr
    assert rates.natural == AttackRates.of(answers.natural, 3)
    assert rates.vs_base == compare_success(answers.routed, base, 3)
    drawn = [successes(draw) for draw in answers.random]
    assert rates.draws == tuple(sum(draw) / 4 for draw in drawn)
    sources = [a.source for a in answers.routed]
    assert rates.difference_random == above_draws(successes(answers.routed), drawn, sources, 3)
    assert not any("universal/plain" in key for key in keys)  # answers without a route are there already


def test_stopped_anywhere_it_resumes_to_the_same(engine: HFEngine, base: list[Attempt], tmp_path: Path) -> None:
    with audit_bench(tmp_path / "whole", PLAN, engine=engine) as bench:
        whole = try_universal_route(bench, PLAN, asked(), base)
        keys = list(bench.run.keys())
    for stop_after in range(0, len(keys), 3):
        folder = tmp_path / f"run-{stop_after}"
        stopped = audit_bench(folder, PLAN, engine=engine, stop_after=stop_after)
        with pytest.raises(KeyboardInterrupt), stopped as bench:
            try_universal_route(bench, PLAN, asked(), base)
        with audit_bench(folder, PLAN, engine=engine) as bench:
            assert try_universal_route(bench, PLAN, asked(), base) == whole
            assert list(bench.run.keys()) == keys


def test_nobody_asked_for_it_and_no_controls(engine: HFEngine, base: list[Attempt], tmp_path: Path) -> None:
    with audit_bench(tmp_path / "run", engine=engine) as bench:
        assert try_universal_route(bench, TINY, asked(), base) is None
        assert not list(bench.run.keys())
        bare = replace(PLAN, route_controls=False)
        rates = try_universal_route(bench, bare, asked(), base)
    assert rates is not None
    assert (rates.random, rates.difference_random, rates.draws) == (None, None, ())


def test_fewer_prompts_than_asked_for_are_said() -> None:
    assert notes_on_universal(PLAN, asked()) == ()
    (note,) = notes_on_universal(replace(PLAN, universal=100_000), asked())
    assert f"on {len(asked().discovery)} prompts, and not on 100000" in note
    assert notes_on_universal(replace(PLAN, universal=0), asked()) == ()


def test_an_engine_without_gradients_is_refused_before_anything_is_asked(engine: HFEngine) -> None:
    assert forwards_of_gradient(engine, asked().test[0]) > 3
    with pytest.raises(UsageError, match=r"has none.*Leave --universal out"):
        forwards_of_gradient(PlainEngine(), asked().test[0])


# ---------------------------------------------------------------------- what is said


def rate(successes_: int, n: int = 40) -> Rate:
    return Rate.of([i < successes_ for i in range(n)], [str(i) for i in range(n)])


def flags(successes_: int, n: int = 40) -> list[bool]:
    return [i < successes_ for i in range(n)]


def some_rates(opened: int, drawn: tuple[int, ...] = (2, 5)) -> UniversalRates:
    def rates(k: int) -> dict[str, Any]:
        return dict(asr=rate(k), any_compliance=rate(k), garbage=rate(0), refused=rate(40 - k), unscored=0)

    return UniversalRates(
        **rates(opened),
        prompts=16,
        reached=rate(12, 16),
        log_prob_before=-9.0,
        log_prob_after=-0.5,
        forwards=4321.7,
        places=(UniversalPlace(1, "end", 2, (0, 3)), UniversalPlace(0, "content_start", 0, (1, 2))),
        vs_base=compare(flags(opened), flags(1)),
        natural=AttackRates(**rates(3)),
        difference_natural=compare(flags(opened), flags(3)),
        random=AttackRates(**rates(3)) if drawn else None,
        draws=tuple(k / 40 for k in drawn),
        difference_random=above_draws(flags(opened), [flags(k) for k in drawn]) if drawn else None,
    )


def test_the_page_and_the_terminal_tell_it_beside_its_controls(results: AuditResults) -> None:
    told = conclude(replace(results, universal=some_rates(36)))
    words = " ".join(Reader(render(page(told))).words.split())
    for part in (
        "One route for all prompts",
        "One route that forces experts at 2 places takes ASR from 0 % [0, 24] to 90 % [77, 96]",
        "random sets at its places reach 8 %", "16 discovery prompts in 4 322 forwards",
        "random sets, same places", "best of 2 draws 13", "natural experts forced there",
        "2 before the last token of the prompt", "the first token of the request",
    ):  # fmt: skip
        assert part in words, part
    (row,) = [row.cells for row in summary(told).rows if row.cells[0] == "universal route ASR"]
    assert row[1:5] == ["90", "[77, 96]", 40, "random sets 8"]
    assert str(row[5]).endswith("] ✓")
    assert "90 % under one route for all prompts (random experts at its places 8 %)" in told.headline
    assert "Universal route ASR one route for all, found on 16 other prompts" in words
    none = Reader(render(page(results))).words
    assert "One route for all prompts" not in none
    nothing = replace(some_rates(1), places=())
    assert "nothing was forced" in Reader(render(page(replace(results, universal=nothing)))).words
    lost = replace(some_rates(36), draws=())  # as the file of results of a stranger may have it
    assert "best of 0 draws" in Reader(render(page(replace(results, universal=lost)))).words


@pytest.mark.parametrize(
    ("opened", "drawn", "verdict"),
    [(36, (2, 5), "holds"), (36, (2, 37), "in doubt"), (4, (3, 4), "in doubt"), (36, (), "not measured")],
)
def test_the_claim_is_held_against_every_random_route(
    results: AuditResults, opened: int, drawn: tuple[int, ...], verdict: str
) -> None:
    (claim,) = claims_on_universal(replace(results, universal=some_rates(opened, drawn)))
    assert isinstance(claim, Claim)
    assert claim.verdict == verdict
    assert claims_on_universal(results) == []


def test_places_in_words() -> None:
    assert in_words(UniversalPlace(0, "start", 0, ())) == "the first token of the prompt"
    assert in_words(UniversalPlace(0, "content_end", 1, ())) == "1 before the last token of the request"
