"""What a steering moves: which prompts are read, that runs resume, and what the page shows of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import small_engine
from pointsman.data.scenario import Scenario
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.engine.hf import HFEngine
from pointsman.jobs.steer.job import from_steer_1
from pointsman.jobs.steer.moved import Moved
from pointsman.jobs.steer.outcome import Outcome
from pointsman.jobs.steer.page import page
from pointsman.jobs.steer.prompts import SteerPrompts
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.jobs.steer.results import SteerResults
from pointsman.jobs.steer.sections import drawings
from pointsman.jobs.steer.tracing_moves import trace_moves
from pointsman.judges.types import Verdict
from pointsman.methods.play import Played
from pointsman.report.html import render
from pointsman.routing.intervention import Intervention
from pointsman.runs.bench import Bench
from pointsman.runs.results import SCHEMA, dump, read
from pointsman.runs.run import Run
from pointsman.testbed.language import Kind, requests
from reader import Reader
from works import ManyJudge, stop

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
ALLOW = Outcome("allow", True, (), None, (), (), (), (), ())


def some(kind: Kind, count: int) -> tuple[Behaviour, ...]:
    return tuple(Behaviour(r.id, r.text, r.target, r.category, r.source) for r in requests(kind, limit=count))


PROMPTS = SteerPrompts(scenario=some("restricted", 9), restricted=some("borderline", 5), benign=some("benign", 7))


def bias(engine: HFEngine, phase: Any = "both") -> Intervention:
    """One expert is raised in the first layer."""
    return Intervention.bias({0: [100.0, *[0.0] * (engine.routers[0].experts - 1)]}, phase=phase)


def measure(
    folder: Path,
    engine: HFEngine,
    prompts: SteerPrompts = PROMPTS,
    before: Outcome = ALLOW,
    routing: Intervention | None = None,
    *,
    most: int = 50,
    seed: int = 0,
    stop_after: int | None = None,
) -> Moved | None:
    question = SteerQuestion(Scenario("tiny", before.objective, suite="none"), Suite("none", ()), ManyJudge())
    with Run.create(folder, "steer", {}) as run:
        if stop_after is not None:
            stop(run, stop_after)
        return trace_moves(Bench(engine, question, run), prompts, before, routing or bias(engine), most, seed)


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


@pytest.fixture(scope="module")
def moved(engine: HFEngine, tmp_path_factory: pytest.TempPathFactory) -> Moved:
    found = measure(tmp_path_factory.mktemp("moved") / "run", engine)
    assert found is not None
    return found


# ---------------------------------------------------------------------- what is measured


def test_mass_sums_to_one_and_the_raised_expert_gains_in_every_group(moved: Moved) -> None:
    assert [group.group for group in moved.groups] == ["scenario", "restricted", "benign"]
    assert [group.swapped.n for group in moved.groups] == [9, 5, 7]
    for group in moved.groups:
        for row, change in zip(moved.mass(group, group.under), moved.change(group), strict=True):
            assert row.sum() == pytest.approx(1)
            assert change.sum() == pytest.approx(0, abs=1e-12)
        assert moved.change(group)[0].argmax() == 0
        assert moved.mass(group, group.under)[0][0] == pytest.approx(1 / moved.top_k[0]), "it is always selected"


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, moved: Moved) -> None:
    engine = small_engine()
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "run", engine, stop_after=2)
    before = engine.cost.forwards
    assert before > 0
    with Run.open(tmp_path / "run") as run:
        question = SteerQuestion(Scenario("tiny", "allow", suite="none"), Suite("none", ()), ManyJudge())
        bench = Bench(engine, question, run)
        assert trace_moves(bench, PROMPTS, ALLOW, bias(engine), 50, 0) == moved
        rest = engine.cost.forwards - before
        assert 0 < rest < before, "only the last group was left"
        assert trace_moves(bench, PROMPTS, ALLOW, bias(engine), 50, 0) == moved
        assert engine.cost.forwards - before == rest, "all of it is remembered"


def test_a_few_are_drawn_by_the_seed_from_each_group(engine: HFEngine, tmp_path: Path) -> None:
    once, again, other = (
        measure(tmp_path / name, engine, most=4, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert once is not None
    assert once == again != other
    assert [group.swapped.n for group in once.groups] == [4, 4, 4]


def test_nothing_is_asked_where_no_prompts_are_wanted_or_there_are_none(engine: HFEngine, tmp_path: Path) -> None:
    before = engine.cost.forwards
    assert measure(tmp_path / "none", engine, most=0) is None
    assert measure(tmp_path / "empty", engine, SteerPrompts()) is None
    assert engine.cost.forwards == before
    found = measure(tmp_path / "some", engine, SteerPrompts(benign=PROMPTS.benign))
    assert found is not None
    assert [group.group for group in found.groups] == ["benign"]
    assert found.most == found.least == ()


def test_conversations_are_read_as_the_unsteered_model_played_them(engine: HFEngine, tmp_path: Path) -> None:
    turns = ("how do i mend the red tairn ?", "thanks ! and where is it ?")
    talk = Conversation("c", turns, turns[-1], "Sure", source="s")
    verdict = Verdict("refused", 0.0)

    def group(*answers: str) -> Any:
        played = Played("c", "", "", "s", answers, (verdict,) * len(answers))
        before = replace(ALLOW, objective="defend", played=(played,))
        found = measure(tmp_path / str(len(list(tmp_path.iterdir()))), engine, SteerPrompts((talk,)), before)
        assert found is not None
        return found.groups[0]

    whole = group("take the rope .", "no .")
    assert whole.tokens == sum(role == "content" for role in engine.encode(turns, answers=["x"]).roles)
    assert whole != group("where ?", "no ."), "answers before the last turn are read along"
    assert whole == group("take the rope .", "yes ."), "the last answer is not"
    first = group("take the rope .")
    assert first.tokens == sum(role == "content" for role in engine.encode(turns[:1]).roles)


# ---------------------------------------------------------------------- what is shown


@pytest.fixture
def results(moved: Moved) -> SteerResults:
    found = from_steer_1(json.loads((GOLDEN / "steer/results.json").read_text(encoding="utf-8")))
    return replace(read({**found, "schema": SCHEMA}, SteerResults), moved=moved)


def words_of(results: SteerResults, show_text: bool = False) -> str:
    shown = page(results, show_text=show_text)
    sections = [section for section in shown.sections if section.id == "moved"]
    assert len(sections) == 1
    return Reader(render(replace(shown, sections=sections, cards=[]))).words


def test_results_come_back_from_disk(results: SteerResults) -> None:
    assert read(json.loads(json.dumps(dump(results))), SteerResults) == results


def test_a_run_that_did_not_look_has_no_such_section(results: SteerResults) -> None:
    assert all(section.id != "moved" for section in page(replace(results, moved=None)).sections)


def test_the_page_says_what_the_maps_show(results: SteerResults, moved: Moved) -> None:
    words = words_of(results)
    for group in moved.groups:
        assert group.swapped.mean is not None
        assert f"{100 * group.swapped.mean:.1f} %" in words.replace("\u202f", " ")
        assert f"{group.swapped.n} prompts, {group.tokens} tokens" in words
    change = moved.change(moved.groups[0])
    layer, expert = max(
        ((n, e) for n, row in enumerate(change) for e in range(len(row))), key=lambda at: abs(change[at[0]][at[1]])
    )
    assert f"Largest moves at conversations: layer {layer}, expert {expert}, " in words


def test_each_map_draws_its_changes_on_one_scale_and_says_so_to_who_cannot_see_it(
    results: SteerResults, moved: Moved
) -> None:
    html = render(page(results))
    html = html[html.index('<div class="maps">') :]
    html = html[: html.index("</div>")]
    most = max(np.abs(row).max() for group in moved.groups for row in moved.change(group))
    drawn = sum(int((np.abs(row) > 0.02 * most).sum()) for group in moved.groups for row in moved.change(group))
    assert html.count('class="heat ') == drawn > 0
    assert 'fill-opacity="1"' in html, "the strongest of all maps"
    assert html.count('role="img" aria-label="') == 3


def test_the_maps_of_a_large_model_draw_the_strongest_changes_alone() -> None:
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(60, 256)).tolist() for _ in range(3)]
    most = max(abs(change) for matrix in matrices for row in matrix for change in row)
    least = drawings.faintest(matrices, most)
    drawn = sum(abs(change) > least * most for matrix in matrices for row in matrix for change in row)
    assert 0.8 * drawings.CELLS < drawn <= drawings.CELLS
    assert drawings.faintest([matrix[:4] for matrix in matrices], most) == drawings.FAINTEST


def test_words_are_shown_only_where_the_page_may_show_text(results: SteerResults, moved: Moved) -> None:
    assert moved.most
    secret = replace(moved.most[0], at=" zxqy\n")
    results = replace(results, moved=replace(moved, most=(secret, *moved.most[1:])))
    hidden, shown = words_of(results), words_of(results, show_text=True)
    assert "zxqy" not in render(page(results))
    assert "␣zxqy⏎" in shown
    for words in (hidden, shown):
        assert "first third" in words
        assert "all tokens" in words


def test_a_steering_of_answers_alone_moves_nothing_here_and_the_page_says_why(
    engine: HFEngine, tmp_path: Path, results: SteerResults
) -> None:
    found = measure(tmp_path / "run", engine, routing=bias(engine, "decode"))
    assert found is not None
    assert all(group.swapped.mean == 0 for group in found.groups)
    words = words_of(replace(results, moved=found, chosen=replace(results.chosen, phase="decode")))
    assert "acts while answers are written" in words
    assert "At which words" not in words
