"""Steering with conditional masks, as a whole: learnt, stopped early, tested, and kept; without a surrogate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from test_steer import BRIEF as CONSTANT
from test_steer import OBJECTIVES, comparable, engine_of, evaluate, is_rate, perform, results_of, scenario, suite_of

from engines import small_engine
from pointsman.data.scenario import Grid
from pointsman.data.splits import SPLITS
from pointsman.data.types import Conversation
from pointsman.errors import PointsmanError, UsageError
from pointsman.jobs.evaluate.plan import Evaluate
from pointsman.jobs.finished import read_results, write_report
from pointsman.jobs.parameters import plain
from pointsman.jobs.steer import forecast
from pointsman.jobs.steer.claims import conclude
from pointsman.jobs.steer.outcome import MEASURES
from pointsman.jobs.steer.page import page
from pointsman.jobs.steer.plan import RIVALS, Steer
from pointsman.jobs.steer.results import SteerResults
from pointsman.methods import optimise
from pointsman.report.html import render
from pointsman.report.terminal import table
from pointsman.runs.results import dump, read
from pointsman.runs.run import Run
from pointsman.steering.artefact import Steering
from reader import Reader

UNIT = 2  # steps after which what is learnt is a candidate, here
STEPS = (2, 4, 6)
BRIEF = replace(
    CONSTANT, method="conditional", rank=2, conditional_steps=6, moved_prompts=3, random_draws=1, finalists=2
)
PLANS = {"defend": replace(BRIEF, method_seeds=2, latency_rounds=1), "allow": replace(BRIEF, upper_bound=True)}


@pytest.fixture(scope="module", autouse=True)
def small_units() -> Iterator[None]:
    """Units of few steps, so that short runs have several candidates."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (optimise, forecast):
            patch.setattr(module, "UNIT", UNIT)
        yield


Finished = Callable[[str], Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_units: None) -> Finished:
    """The folder of a run that nobody stopped, made once for each objective."""

    @cache
    def of(objective: str) -> Path:
        folder = tmp_path_factory.mktemp(f"conditional-{objective}") / "run"
        perform(folder, objective, PLANS[objective])
        return folder

    return of


def stages_of(results: dict[str, Any]) -> set[str]:
    return {stage["stage"] for stage in results["cost"]["stages"]}


# ---------------------------------------------------------------------- what it finds


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_conditional_mask_is_learnt_and_no_surrogate(finished: Finished, objective: str) -> None:
    folder = finished(objective)
    results = results_of(folder)
    assert (results["surrogate"], results["gap"], results["circuit"]["sigma"]) == (None, [], [])
    learnt = [c for c in results["candidates"] if c["method"] == "conditional" and c["stage"] == "coarse"]
    assert [c["step"] for c in learnt] == list(STEPS)
    assert {(c["rank"], c["decay"], c["hold"], c["alpha"], c["phase"], c["norm1"]) for c in learnt} == {
        (2, 3, 3, 1, "both", None)
    }
    assert {c["method"] for c in results["candidates"]} == {"conditional", "random"}
    assert {name for name, arm in results["test"].items() if arm} == {"before", "after", "random"}
    assert not stages_of(results) & {"traces", "on_policy", "through_model", "gap", "activations"}
    assert stages_of(results) >= {"conditional", "screen", "validation", "test", "moved"}
    keys = Run.open(folder, read_only=True).keys()
    assert not [key for key in keys if re.match(r"surrogate|matrix|traces|sigma|activations", key)]
    artefacts = {path.name for path in (folder / "artefacts").iterdir()}
    assert artefacts == {"attempts.jsonl", "completions.jsonl", "contexts.jsonl", "conversations.jsonl", "steering"}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_numbers_agree_with_each_other(finished: Finished, objective: str) -> None:
    results = results_of(finished(objective))
    (chosen,) = [c for c in results["candidates"] if c["chosen"]]
    assert {k: chosen[k] for k in results["chosen"] if k in chosen} == {
        k: v for k, v in results["chosen"].items() if k in chosen
    }
    assert chosen["method"] == "conditional"
    assert chosen["step"] in STEPS
    fine = [c for c in results["candidates"] if c["stage"] == "fine" and c["method"] == "conditional"]
    within = [c for c in fine if c["admissible"]]
    assert chosen["admissible"] == bool(within)
    assert not within or chosen["gain"]["rate"] == max(c["gain"]["rate"] for c in within)
    for c in fine:  # as large as at alpha 1, times alpha
        (same,) = [d for d in results["candidates"] if d["stage"] == "coarse" and d["method"] == "conditional"
                   and d["step"] == c["step"]]  # fmt: skip
        assert c["size"] == pytest.approx(c["alpha"] * same["size"])
    for c in results["candidates"]:  # a control has the very size of the mask
        if c["method"] == "random" and c["alpha"] == chosen["alpha"]:
            assert c["size"] == pytest.approx(chosen["size"])
    before, after, random = (results["test"][arm] for arm in ("before", "after", "random"))
    for part in MEASURES:
        assert results["comparisons"][part]["difference"] == pytest.approx(after[part]["rate"] - before[part]["rate"])
    against = results["comparisons"]["vs_random"]["difference"]
    assert against == pytest.approx(after["gain"]["rate"] - random["gain"]["rate"])
    assert all(results["comparisons"][f"vs_{name}"] is None for name in RIVALS if name != "random")
    assert results["overfit"] == {"validation": chosen["gain"], "test": after["gain"]}
    circuit = results["circuit"]
    assert all(norm > 0 for layer in circuit["conditional"] for norm in layer["experts"])
    assert sum(len(layer["experts"]) for layer in circuit["conditional"]) == chosen["entries"] == 16
    assert (circuit["size"], circuit["entries"]) == (0, [])
    size = chosen["alpha"] * sum(layer["norm"] for layer in circuit["conditional"])
    assert chosen["size"] == pytest.approx(size, rel=1e-5)
    typed = read(results, SteerResults)
    assert typed == conclude(typed)
    assert dump(typed) == results
    claims = {claim["id"]: claim for claim in results["claims"]}
    assert claims["mask_beats_random_masks"]["verdict"] != "not measured"
    assert not {f"mask_beats_{way}" for way in RIVALS if way != "random"} & claims.keys()
    assert f"(n = {after['gain']['n']})" in results["headline"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_moved_adds_up(finished: Finished, objective: str) -> None:
    moved = results_of(finished(objective))["moved"]
    assert {group["group"] for group in moved["groups"]} == {"scenario", "restricted", "benign"}
    for group in moved["groups"]:
        assert group["swapped"]["n"] == 3
        if group["swapped"]["low"] is not None:  # of one cluster there is no interval
            assert group["swapped"]["low"] <= group["swapped"]["mean"] <= group["swapped"]["high"]
        assert 0 <= group["swapped"]["mean"] <= 1
        for top_k, *layers in zip(moved["top_k"], group["without"], group["under"], strict=True):
            assert [sum(layer) for layer in layers] == [top_k * group["tokens"]] * 2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_of_the_test_split_is_learnt_or_chosen_from(objective: str, tmp_path: Path) -> None:
    """What is asked on test may change: what was learnt, tried and chosen stays what it was, number by number."""
    suite, plan = suite_of(objective), replace(BRIEF, random_draws=0, moved_prompts=0)

    def longer(items: Any) -> Any:
        return tuple(
            item
            if item.split != "test"
            else replace(
                item,
                goal=f"well {item.goal}",
                **({"turns": (f"well {item.turns[0]}", *item.turns[1:])} if isinstance(item, Conversation) else {}),
            )
            for item in items
        )

    names = ("conversations", "restricted", "benign", "scenario", "borderline", "benign_conversations")
    other = replace(suite, **{name: longer(getattr(suite, name)) for name in names if hasattr(suite, name)})
    one, two = (
        perform(tmp_path / name, objective, plan, suite=some) for name, some in (("one", suite), ("two", other))
    )
    lengths = [results["cost"]["predicted"]["tokens"] for results in (one, two)]
    assert lengths[0] < lengths[1]
    for part in ("chosen", "circuit", "baseline_validation"):
        assert one[part] == two[part], part
    clocks = {"seconds_per_answer": None}
    assert [{**c, **clocks} for c in one["candidates"]] == [{**c, **clocks} for c in two["candidates"]]


def test_contexts_of_the_splits_share_no_source(finished: Finished) -> None:
    for objective in OBJECTIVES:
        lines = (finished(objective) / "artefacts/contexts.jsonl").read_text().splitlines()
        contexts = [json.loads(line) for line in lines]
        sources = {split: {c["source"] for c in contexts if c["split"] == split} for split in SPLITS}
        assert all(sources.values())
        for a, b in (("discovery", "validation"), ("discovery", "test"), ("validation", "test")):
            assert not sources[a] & sources[b]


# ---------------------------------------------------------------------- the artefact


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_artefact_is_the_chosen_mask(finished: Finished, objective: str) -> None:
    folder = finished(objective)
    results, steering = results_of(folder), Steering.from_pretrained(folder / "artefacts/steering")
    chosen, engine = results["chosen"], engine_of()
    assert (steering.alpha, steering.phase) == (chosen["alpha"], chosen["phase"])
    assert all(not row.any() for row in steering.matrix)
    norms = engine.router_norms()
    for layer, stored in enumerate(results["circuit"]["conditional"]):
        of_rows = np.linalg.norm(steering.maps[layer].product, axis=1) / norms[layer]
        assert of_rows == pytest.approx(np.array(stored["experts"]), rel=1e-5)
    about = steering.about
    assert about["method"] == "conditional, learnt through the model"
    assert (about["rank"], about["step"], about["hold"], about["decay"]) == (2, chosen["step"], 3, 3)
    assert about["measured"][0]["after"] == results["test"]["after"]["gain"]
    assert "MASCing" not in (folder / "artefacts/steering/README.md").read_text()
    steering.check(engine.routers, engine.info.fingerprint)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_evaluating_the_artefact_gives_what_the_run_reported(
    finished: Finished, objective: str, tmp_path: Path
) -> None:
    """The run tried the candidate, the evaluation reads the artefact: had they other rules, other words would come."""
    known = results_of(finished(objective))
    plan = Evaluate(limit=BRIEF.limit, latency_rounds=0, moved_prompts=BRIEF.moved_prompts)
    steering = Steering.from_pretrained(finished(objective) / "artefacts/steering")
    with Run.create(tmp_path / "run", "evaluate", {"model": "tiny", **plain(plan)}) as run:
        found = evaluate(engine_of(), steering, objective, plan, run)
    for name in ("before", "after"):
        shared = found["test"][name].keys() & known["test"][name].keys()
        assert shared >= {*MEASURES, "by_category", "held_by_category", "turns", "dsr_context", "unscored"}
        assert {k: found["test"][name][k] for k in shared} == {k: known["test"][name][k] for k in shared}
    assert found["moved"] == known["moved"]
    assert found["chosen"]["rank"] == known["chosen"]["rank"]
    assert found["chosen"]["size"] == pytest.approx(known["chosen"]["size"], rel=1e-5)
    for layer, stored in zip(found["circuit"]["conditional"], known["circuit"]["conditional"], strict=True):
        assert layer["experts"] == pytest.approx(stored["experts"], rel=1e-5)
    page = write_report(tmp_path / "run").read_text()
    assert "conditional" in page
    job, results = read_results(found)
    assert job.work.summary(results).rows


# ---------------------------------------------------------------------- being killed, and what it costs


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_killed_again_and_again_gives_the_same(finished: Finished, tmp_path: Path, objective: str) -> None:
    folder, kills, parts = tmp_path / "run", 0, 6
    units = len(Run.open(finished(objective), read_only=True).keys())
    while True:
        try:
            perform(folder, objective, PLANS[objective], stop_after=units // parts)
            break
        except KeyboardInterrupt:
            kills += 1
            assert not (folder / "results.json").exists()
            assert kills < 2 * parts
    assert kills >= parts - 1
    assert comparable(folder) == comparable(finished(objective))


def test_a_run_killed_after_every_step_of_learning_gives_the_same(finished: Finished, tmp_path: Path) -> None:
    """Between any two of its stored units; what the unsteered model says is computed again, and counted."""
    keys = Run.open(finished("allow"), read_only=True).keys()
    first, last = (pick(n for n, key in enumerate(keys) if key.startswith("conditional/")) for pick in (min, max))
    with pytest.raises(KeyboardInterrupt):
        perform(tmp_path / "run", "allow", PLANS["allow"], stop_after=first)
    for _ in range(last - first + 2):
        with pytest.raises(KeyboardInterrupt):
            perform(tmp_path / "run", "allow", PLANS["allow"], stop_after=1)
    perform(tmp_path / "run", "allow", PLANS["allow"])
    one, other = comparable(tmp_path / "run"), comparable(finished("allow"))
    assert one["results"].pop("cost")["forwards"] >= other["results"].pop("cost")["forwards"]
    assert one == other


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_new_run_is_foretold(finished: Finished, objective: str) -> None:
    cost = results_of(finished(objective))["cost"]
    predicted, found = cost["predicted"], {stage["stage"] for stage in cost["stages"]}
    assert {stage["stage"] for stage in predicted["stages"]} == found - ({"goals"} if objective == "allow" else set())
    assert all(stage["forwards"] > 0 and stage["tokens"] > 0 for stage in predicted["stages"])
    assert cost["forwards"] / 2 < predicted["forwards"] < cost["forwards"] * 2
    assert cost["forwards"] <= predicted["upper"]["forwards"]
    assert cost["tokens"] <= predicted["upper"]["tokens"]
    foretold = {stage["stage"]: stage for stage in predicted["stages"]}
    for stage in cost["stages"]:
        if stage["stage"] in ("conditional", "moved"):
            assert stage["forwards"] / 2 < foretold[stage["stage"]]["forwards"] < stage["forwards"] * 2, stage


# ---------------------------------------------------------------------- rivals, seeds, a bound


def test_rivals_that_are_asked_are_tried(tmp_path: Path) -> None:
    """For a constant rival the surrogate is trained as well; whichever wins, both stand on test."""
    grid = Grid((1e-4,), (0.5, 1.0), ("prefill",), ("surrogate",))
    plan = replace(BRIEF, rivals=("conditional", "surrogate_only", "steermoe", "random"), finalists=1)
    results = perform(tmp_path / "run", plan=plan, what=scenario(grid=grid))
    assert results["surrogate"] is not None
    assert [row["refinement"] for row in results["gap"]] == ["surrogate"]
    assert len(results["circuit"]["sigma"]) == 2
    fine = {c["method"] for c in results["candidates"] if c["stage"] == "fine"}
    assert fine == {"conditional", "mascing", "steermoe", "random"}
    own = {"conditional": "conditional", "mascing": "surrogate_only"}[results["chosen"]["method"]]
    asked = {name for name, arm in results["test"].items() if arm}
    assert asked == {"before", "after", "conditional", "surrogate_only", "steermoe", "random"} - {own}
    for arm in asked - {"before", "after"}:
        is_rate(results["test"][arm]["gain"])
        assert results["comparisons"][f"vs_{arm}"] is not None
    assert Steering.from_pretrained(tmp_path / "run/artefacts/steering").alpha == results["chosen"]["alpha"]
    write_report(tmp_path / "run")


def test_a_conditional_mask_is_a_rival_of_mascing_where_it_is_asked(tmp_path: Path) -> None:
    grid = Grid((1e-4,), (1.0,), ("prefill",), ("surrogate",))
    plan = replace(BRIEF, method="mascing", rivals=("conditional",), random_draws=0, moved_prompts=0)
    results = perform(tmp_path / "run", "allow", plan, what=scenario("allow", grid=grid))
    assert {c["method"] for c in results["candidates"]} == {"conditional", "mascing"}
    other = results["test"]["conditional"]
    assert (other is None) == (results["chosen"]["method"] == "conditional")
    assert results["moved"] is None
    assert stages_of(results) >= {"conditional", "gap"}
    assert {stage["stage"] for stage in results["cost"]["predicted"]["stages"]} - {"goals"} == stages_of(results) - {
        "goals"
    }


def test_other_seeds_learn_again_and_stop_at_the_same_step(finished: Finished) -> None:
    results = results_of(finished("defend"))
    first, second = results["seeds"]
    assert (first["seed"], second["seed"]) == (0, 1)
    assert {part: first[part] for part in MEASURES} == {part: results["test"]["after"][part] for part in MEASURES}
    assert second["id"].startswith("conditional/rank=2/")
    assert f"/step={results['chosen']['step']}/seed=1/" in second["id"]
    is_rate(second["gain"])
    assert results_of(finished("allow"))["seeds"] is None


def test_a_bound_is_learnt_on_the_test_split(finished: Finished) -> None:
    results = results_of(finished("allow"))
    bound = results["upper_bound"]
    is_rate(bound["gain"], results["test"]["after"]["gain"]["n"])
    assert "learnt through the model on the test contexts themselves, 6 steps, alpha 1, both" in bound["what"]
    assert "conditional" in bound["what"]
    keys = Run.open(finished("allow"), read_only=True).keys()
    assert len([key for key in keys if key.startswith("upper_bound/")]) == len(
        [key for key in keys if key.startswith("conditional/")]
    )


def test_a_threshold_is_learnt_and_kept(tmp_path: Path) -> None:
    plan = replace(BRIEF, threshold=True, random_draws=0, moved_prompts=0, finalists=1)
    results = perform(tmp_path / "run", "allow", plan)
    assert "/threshold/" in results["chosen"]["id"]
    steering = Steering.from_pretrained(tmp_path / "run/artefacts/steering")
    assert all(one.threshold is not None for one in steering.maps.values())
    write_report(tmp_path / "run")


# ---------------------------------------------------------------------- what is refused


def test_a_rank_out_of_range() -> None:
    for rank in (0, 9):
        with pytest.raises(UsageError, match=f"rank is {rank}"):
            Steer(rank=rank)
    for name in ("conditional_hold", "decay"):
        for value in (-1.0, float("nan"), float("inf")):
            with pytest.raises(UsageError, match=name.replace("_", "-")):
                Steer(**{name: value})  # type: ignore[arg-type]


def refused(tmp_path: Path, engine: Any, plan: Steer = BRIEF) -> PointsmanError:
    """What a run says that is refused before it has asked anything."""
    with pytest.raises(PointsmanError) as caught:
        perform(tmp_path / "run", plan=plan, engine=engine)
    assert Run.open(tmp_path / "run", read_only=True).keys() == ()
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_rank_above_what_a_router_has(tmp_path: Path) -> None:
    engine = small_engine(num_hidden_layers=2, num_experts=4)
    error = refused(tmp_path, engine, replace(BRIEF, rank=5))
    assert "A rank of 5 for router" in str(error)
    assert error.remedy == "Give a rank of at most 4"


def test_a_router_without_one_matrix(tmp_path: Path) -> None:
    engine = engine_of()
    engine.routers = tuple(replace(router, width=None) for router in engine.routers)
    error = refused(tmp_path, engine)
    assert "has not one matrix with a row for each expert" in str(error)
    assert "--method mascing" in error.remedy


# ---------------------------------------------------------------------- page and terminal


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_report_renders(finished: Finished, objective: str) -> None:
    results = read(results_of(finished(objective)), SteerResults)
    hidden, shown = (Reader(render(page(results, show_text=show))).words for show in (False, True))
    for words in (hidden, shown):
        assert "surrogate was" not in words
        assert "Circuits of" not in words
        assert "σ lowered" not in words
        assert "conditional, learnt through the model" in words
        assert "None" not in words
        assert "nan" not in words.split()
    assert hidden != shown


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_terminal_has_room(finished: Finished, objective: str) -> None:
    job, results = read_results(results_of(finished(objective)))
    out = StringIO()
    Console(file=out, width=80).print(table(job.work.summary(results)))
    lines = out.getvalue().rstrip().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 20
    step = results_of(finished(objective))["chosen"]["step"]
    (mask,) = [line for line in lines if line.startswith("Mask: ")]
    assert re.fullmatch(rf"Mask: conditional, rank 2, step {step}, α [0-9.]+, both\.", mask.strip())
    (absent,) = [line for line in lines if line.startswith("Not run: ")]
    assert absent.strip() == "Not run: 5 of 6 other ways."
