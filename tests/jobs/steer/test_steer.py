"""A steering run as a whole, on a small untrained engine whose answers are judged at random: both objectives."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines import small_engine
from pointsman.cli.manifest import plan_of
from pointsman.data.scenario import Grid, Limits, Scenario
from pointsman.data.splits import SPLITS
from pointsman.data.types import Suite
from pointsman.engine.hf import HFEngine
from pointsman.errors import BadLogits, DataError, PromptTooLong, UsageError, WrongModel
from pointsman.jobs.evaluate.perform import perform as perform_evaluate
from pointsman.jobs.evaluate.plan import Evaluate
from pointsman.jobs.evaluate.question import EvaluateQuestion
from pointsman.jobs.finished import read_results, write_report
from pointsman.jobs.parameters import plain
from pointsman.jobs.steer.claims import conclude
from pointsman.jobs.steer.limits import KINDS
from pointsman.jobs.steer.outcome import MEASURES
from pointsman.jobs.steer.perform import perform as perform_steer
from pointsman.jobs.steer.plan import RIVALS, Contrast, Steer
from pointsman.jobs.steer.played import BEGUN
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.jobs.steer.results import SteerResults
from pointsman.jobs.steer.traces import user_span
from pointsman.methods.mascing import SteeringMatrix
from pointsman.methods.surrogate import FittedSurrogate
from pointsman.routing.store import TraceStore
from pointsman.runs.bench import Bench
from pointsman.runs.results import dump, read
from pointsman.runs.run import FORECAST, Run
from pointsman.steering.artefact import Steering
from works import ManyJudge, OneJudge, stop

OBJECTIVES = ("defend", "allow")
BRIEF = Steer(
    method="mascing",
    limit=5,
    learn=20,
    validate=5,
    surrogate_seeds=1,
    through_steps=3,
    finalists=1,
    random_draws=1,
    latency_rounds=0,
)
PLANS = {
    "defend": replace(BRIEF, surrogate_seeds=2, method_seeds=2, latency_rounds=1),
    "allow": replace(BRIEF, upper_bound=True, through_starts=("zero", "surrogate"), latency_rounds=1),
}
GRIDS = {
    "defend": Grid((0.0, 1e-3), (0.5, 1.0), ("prefill", "both")),
    "allow": Grid((1e-4,), (0.5, 1.0, 1.5, 2.0, 4.0), ("prefill",)),
}


def scenario(objective: str = "defend", **changes: Any) -> Scenario:
    usual: dict[str, Any] = dict(
        name="tiny", suite={"defend": "testbed-steering", "allow": "testbed-mature"}[objective], judge="testbed",
        grid=GRIDS[objective], max_new_tokens=2, limits=Limits(garbage=1.0),
    )  # fmt: skip
    return Scenario(objective=objective, **{**usual, **changes})  # type: ignore[arg-type]


@cache
def suite_of(objective: str) -> Suite:
    """Of few source questions, so that some conversations are of one question and one tactic."""
    suite = scenario(objective).read(0)
    goals: dict[str | None, dict[str, None]] = {}
    for c in suite.conversations:
        goals.setdefault(c.split, {}).setdefault(c.goal)
    few = {goal for of in goals.values() for goal in list(of)[:6]}
    return replace(
        suite, conversations=tuple(c for c in suite.conversations if c.goal in few and c.tactic in ("drift", "story"))
    )


def engine_of(seed: int = 0) -> HFEngine:
    return small_engine(seed=seed, num_hidden_layers=2)


def perform(
    folder: Path,
    objective: str = "defend",
    plan: Steer | None = None,
    *,
    stop_after: int | None = None,
    judge: Any = None,
    engine: HFEngine | None = None,
    suite: Suite | None = None,
    what: Scenario | None = None,
) -> dict[str, Any]:
    """Do a run, or what is left of it; stopped as if by Ctrl-C after so many units."""
    what, plan = what or scenario(objective), plan or PLANS[objective]
    with Run.create(folder, "steer", {"model": "tiny", **plain(plan)}) as run:
        if stop_after is not None:
            stop(run, stop_after)
        question = SteerQuestion(what, suite or suite_of(objective), judge or ManyJudge())
        return dump(perform_steer(plan, Bench(engine or engine_of(), question, run, command="pointsman x")))


def evaluate(engine: HFEngine, steering: Steering, objective: str, plan: Evaluate, run: Run) -> dict[str, Any]:
    question = EvaluateQuestion(steering, scenario(objective), suite_of(objective), ManyJudge())
    return dump(perform_evaluate(plan, Bench(engine, question, run)))


CLOCKS = ("seconds", "seconds_per_answer", "created", "latency", "commit")
"""What two runs need not share: clocks, and the state of the checkout, which may change while tests run."""


def comparable(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves, without clocks: results and artefacts."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in CLOCKS}
        return [strip(v) for v in value] if isinstance(value, list) else value

    artefacts = folder / "artefacts"
    files = {
        str(p.relative_to(artefacts)): p.read_bytes()
        for p in sorted(artefacts.rglob("*"))
        if p.is_file() and "traces" not in str(p)
    }
    return {"results": strip(json.loads((folder / "results.json").read_text())), **files}


Finished = Callable[[str], Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The folder of a run that nobody stopped, made once for each objective."""

    @cache
    def of(objective: str) -> Path:
        folder = tmp_path_factory.mktemp(f"steer-{objective}") / "run"
        perform(folder, objective)
        return folder

    return of


def results_of(folder: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)  # type: ignore[no-any-return]


def is_rate(value: Any, n: int | None = None) -> None:
    assert {"k", "n", "rate", "low", "high", "method", "clusters"} <= set(value)
    assert n is None or value["n"] == n
    if value["n"]:
        assert 0 <= value["low"] <= value["rate"] <= value["high"] <= 1
        assert value["rate"] == pytest.approx(value["k"] / value["n"])


def arm_of(mask: dict[str, Any]) -> str:
    """Which of the rivals a mask would be, if it were not chosen."""
    if mask["method"] == "mascing":
        return {"surrogate": "surrogate_only", "on_policy": "on_policy"}[mask["refinement"]]
    return str(mask["method"])


# ---------------------------------------------------------------------- what it writes


@pytest.mark.versions
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_results_hold_all_that_was_promised(finished: Finished, objective: str) -> None:
    results, defends = results_of(finished(objective)), objective == "defend"
    assert set(results) >= {
        "schema", "headline", "seed", "small_n", "threat_model", "scenario", "suite", "judge", "model", "notes",
        "splits", "contexts", "surrogate", "gap", "candidates", "baseline_validation", "chosen", "circuit", "test",
        "comparisons", "overfit", "upper_bound", "latency", "seeds", "artefact", "cost", "provenance",
    }  # fmt: skip
    assert (results["schema"], results["job"]) == ("pointsman.results/1", "steer")
    assert (results["threat_model"], results["small_n"]) == ("T3", True)
    assert results["scenario"]["objective"] == objective
    assert set(results["scenario"]["limits"]) == set(asdict(Limits()))
    for split in SPLITS:
        sizes, contexts = results["splits"][split], results["contexts"][split]
        is_rate(contexts["fallen"], sizes["conversations" if defends else "scenario"])
        assert contexts["played"] == contexts["fallen"]["n"]
        assert {"by_turn", "by_tactic", "matched_pairs", "label1", "label0"} <= set(contexts)
        assert bool(sizes["conversations"]) == defends != bool(sizes["scenario"])
    assert results["contrast"] == (None if defends else "target")
    surrogate = results["surrogate"]
    assert {"contexts", "accuracy", "auroc", "calibration", "matched", "length_only", "seeds"} <= set(surrogate)
    assert {"value", "low", "high", "n"} <= set(surrogate["auroc"])
    assert [s["seed"] for s in surrogate["seeds"]] == ([0, 1] if defends else [0])
    assert {row["refinement"] for row in results["gap"]} == {"surrogate", "on_policy", "through_model"}
    for row in results["gap"]:
        is_rate(row["model_turned"])
        assert (row["surrogate_turned"] is None) == (row["refinement"] == "through_model")
    n = results["splits"]["validation"]["conversations" if defends else "scenario"]
    for c in results["candidates"]:
        assert {"id", "method", "refinement", "lambda", "alpha", "phase", "stage", "entries", "norm1", "chosen",
                "admissible", "broken", "seconds_per_answer", *MEASURES} <= set(c)  # fmt: skip
        is_rate(c["gain"], n if c["stage"] == "fine" else None)
        if c["stage"] == "fine":
            assert c["admissible"] == (not c["broken"])
            assert all(c[part] is not None for part in MEASURES)
    is_rate(results["overfit"]["validation"], n)
    assert (results["upper_bound"] is None) == defends == bool(results["seeds"])
    if not defends:
        is_rate(results["upper_bound"]["gain"])
        through = [c for c in results["candidates"] if c["refinement"] == "through_model"]
        assert {c["start"] for c in through} == {"zero", "surrogate"}
    assert set(results["test"]) == {"before", "after", *RIVALS}
    for name, outcome in results["test"].items():
        if outcome is None:
            assert name in (arm_of(results["chosen"]), "conditional")
            continue
        rates = {"gain", "garbage", "benign", "benign_conversations", "over_refusal", "held", "any_compliance"}
        rates |= {"dsr_replay", "dsr_context"} if defends else {"gsr"}
        for rate in rates:
            is_rate(outcome[rate])
        assert outcome["gain"] == outcome["dsr_replay" if defends else "gsr"]
        assert (outcome["gsr"] is None) == defends == bool(outcome["turns"])
        for group in ("by_category", *(("by_tactic",) if defends else ())):
            assert sum(g["gain"]["k"] for g in outcome[group].values()) == outcome["gain"]["k"]
            assert sum(g["gain"]["n"] for g in outcome[group].values()) == outcome["gain"]["n"]
        assert sum(g["k"] for g in outcome["held_by_category"].values()) == outcome["held"]["k"]
    latency = results["latency"]
    assert latency["rounds"] == 1
    assert 0 < latency["low"] <= latency["ratio"] <= latency["high"]
    assert results["provenance"]["command"] == "pointsman x"
    stages = {s["stage"] for s in results["cost"]["stages"]}
    assert {"base/discovery", "screen", "validation", "test", "through_model", "on_policy"} <= stages


@pytest.mark.versions
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_numbers_agree_with_each_other(finished: Finished, objective: str) -> None:
    results = results_of(finished(objective))
    (chosen,) = [c for c in results["candidates"] if c["chosen"]]
    assert {k: chosen[k] for k in results["chosen"] if k in chosen} == {
        k: v for k, v in results["chosen"].items() if k in chosen
    }
    assert chosen["method"] in ("mascing", "through_model")
    fine = [c for c in results["candidates"] if c["stage"] == "fine" and c["method"] in ("mascing", "through_model")]
    within = [c for c in fine if c["admissible"]]
    assert chosen["admissible"] == bool(within)
    assert not within or chosen["gain"]["rate"] == max(c["gain"]["rate"] for c in within)
    ids = [c["id"] for c in results["candidates"] if c["stage"] == "fine"]
    assert len(set(ids)) == len(ids)
    matrix = [np.array(row) for row in results["circuit"]["matrix"]]
    entries = results["circuit"]["entries"]
    assert len(entries) == results["circuit"]["size"] == chosen["entries"] == sum(int((r != 0).sum()) for r in matrix)
    assert all(matrix[e["layer"]][e["expert"]] == e["value"] != 0 for e in entries)
    assert [abs(e["value"]) for e in entries] == sorted((abs(e["value"]) for e in entries), reverse=True)
    assert min(abs(e["value"]) for e in entries) > 0.1
    assert results["circuit"]["layers"] == pytest.approx([np.abs(r).sum() for r in matrix])
    assert chosen["norm1"] == pytest.approx(chosen["alpha"] * sum(results["circuit"]["layers"]))
    assert results["circuit"]["possible"] == 16
    assert len(results["circuit"]["sigma"]) == 2
    before, after = results["test"]["before"], results["test"]["after"]
    for part in MEASURES:
        difference = results["comparisons"][part]["difference"]
        assert difference == pytest.approx(after[part]["rate"] - before[part]["rate"])
    for name in RIVALS:
        other, found = results["test"][name], results["comparisons"][f"vs_{name}"]
        assert (found is None) == (other is None)
        assert found is None or found["difference"] == pytest.approx(after["gain"]["rate"] - other["gain"]["rate"])
    for name in RIVALS:
        assert (results["test"][name] is None) == (name in (arm_of(chosen), "conditional"))
    assert results["overfit"] == {"validation": chosen["gain"], "test": after["gain"]}
    if results["seeds"]:
        first, second = results["seeds"]
        assert (first["seed"], second["seed"]) == (0, 1)
        assert {part: first[part] for part in MEASURES} == {part: after[part] for part in MEASURES}
        assert results["circuit"]["stability"]["jaccard"][0][0] == 1
        assert 0 <= results["circuit"]["stability"]["mean"] <= 1
    typed = read(results, SteerResults)
    assert typed == conclude(typed)
    assert dump(typed) == results
    broken = [limit["measure"] for limit in results["limits"] if limit["verdict"] == "broken"]
    assert broken == results["broken_on_test"] == after["broken"]
    assert [limit["measure"] for limit in results["limits"]] == list(KINDS)
    assert len({claim["id"] for claim in results["claims"]}) == len(results["claims"]) == 9 + bool(results["seeds"])
    assert f"(n = {after['gain']['n']})" in results["headline"]


def test_without_a_mask_the_contexts_fall_again(finished: Finished) -> None:
    """Alpha 0 goes through the same pipeline: in float64 the same words come, so the paper's rate is 1 - fallen."""
    results = results_of(finished("defend"))
    fallen = results["contexts"]["test"]["fallen"]
    assert results["test"]["before"]["dsr_context"]["k"] == fallen["n"] - fallen["k"]
    assert fallen["k"] > 0
    assert results["test"]["before"]["dsr_replay"]["k"] <= fallen["n"] - fallen["k"]
    assert results["test"]["before"]["turns"] == results["contexts"]["test"]["by_turn"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_of_the_test_split_is_learnt_or_chosen_from(finished: Finished, objective: str) -> None:
    folder = finished(objective)
    contexts = [json.loads(line) for line in (folder / "artefacts/contexts.jsonl").read_text().splitlines()]
    sources = {split: {c["source"] for c in contexts if c["split"] == split} for split in SPLITS}
    assert all(sources.values())
    for a, b in (("discovery", "validation"), ("discovery", "test"), ("validation", "test")):
        assert not sources[a] & sources[b]
    suite = suite_of(objective)
    split_of = {i.id: i.split for name in ("conversations", "restricted", "benign", "scenario")
                for i in getattr(suite, name)}  # fmt: skip
    for name in ("discovery", "on-policy-0-1", "under-0-1"):
        for id_ in TraceStore.open(folder / f"artefacts/traces-{name}").ids:
            known = id_.removeprefix("goal of ").partition(" @")[0]
            assert split_of[known] == "discovery", (name, id_)
    said = [json.loads(line) for line in (folder / "artefacts/completions.jsonl").read_text().splitlines()]
    assert {c["stage"].split("/")[1] for c in said} == {"before", "after"}
    text = (folder / "results.json").read_text()
    assert all(c["prompt"] not in text for c in said)


def test_every_turn_of_a_conversation_is_kept(finished: Finished) -> None:
    folder = finished("defend")
    rows = [json.loads(line) for line in (folder / "artefacts/conversations.jsonl").read_text().splitlines()]
    said = {(c["stage"], c["id"]): c for c in map(json.loads, (folder / "artefacts/completions.jsonl").open())}
    turns = {c.id: list(c.turns) for c in suite_of("defend").conversations}
    assert {row["stage"].split("/")[1] for row in rows} == {"before", "after"}
    for row in (row for row in rows if row["id"] in turns):
        assert [turn["asked"] for turn in row["turns"]] == turns[row["id"]]
        decisive = row["turns"][-1 if row["fallen"] is None else row["fallen"]]
        kept = said[row["stage"], row["id"]]
        assert (decisive["said"], decisive["label"]) == (kept["response"], kept["label"])


def test_labels_are_those_of_the_scenario(finished: Finished) -> None:
    def of(objective: str) -> set[tuple[str, int, str]]:
        lines = (finished(objective) / "artefacts/contexts.jsonl").read_text().splitlines()
        kinds = {b.id: n for n in ("restricted", "benign", "scenario", "conversations")
                 for b in getattr(suite_of(objective), n)}  # fmt: skip
        found = set()
        for c in map(json.loads, lines):
            found.add((c["kind"], c["label"], kinds.get(c["id"].removesuffix(" @target"), "goal")))
        return found

    assert of("defend") <= {
        ("fallen", 1, "conversations"), ("withstood", 0, "conversations"), ("refused", 0, "restricted"),
        ("refused", 0, "goal"), ("answered", 1, "goal"),
    }  # fmt: skip
    assert of("allow") <= {
        ("refused", 1, "scenario"), ("answered", 0, "scenario"), ("refused", 1, "restricted"),
        ("affirmed", 0, "scenario"),
    }  # fmt: skip


ONE_WAY = Grid((1e-4,), (1.0,), ("prefill",), ("surrogate",))


@pytest.mark.parametrize(
    ("contrast", "often", "found"), [("topic", False, "target"), ("topic", True, "topic"), ("benign", True, "benign")]
)
def test_requests_are_held_against_answers_on_their_own_topic(
    tmp_path: Path, contrast: Contrast, often: bool, found: str
) -> None:
    """By the model where it answers enough of them, else by their own targets; the paper's contrast on demand."""
    judge = Stubborn(wrong="correct", garbage="correct") if often else ManyJudge()
    plan = replace(BRIEF, learn=40 if often else 20, contrast=contrast, random_draws=0, rivals=("steermoe",))
    results = perform(tmp_path / "run", "allow", plan, judge=judge, what=scenario("allow", grid=ONE_WAY))
    assert results["contrast"] == found
    suite, lines = suite_of("allow"), (tmp_path / "run/artefacts/contexts.jsonl").read_text().splitlines()
    targets, benign = {b.id: b.target for b in suite.scenario}, {b.id for b in suite.benign}
    contexts = [c for c in map(json.loads, lines) if c["split"] == "discovery"]
    answered = [c for c in contexts if c["label"] == 0]
    refused = {c["id"]: c for c in contexts if c["kind"] == "refused" and c["id"] in targets}
    assert refused
    assert {c["id"] in benign for c in answered} == ({True, False} if found == "benign" else {False})
    twins = [c for c in answered if c["kind"] == "affirmed"]
    assert len(twins) == (len(refused) if found == "target" else 0)
    for twin in twins:
        own = refused[twin["id"].removesuffix(" @target")]
        assert (twin["turns"], twin["source"], twin["response"]) == (own["turns"], own["source"], targets[own["id"]])
    assert {c.get("begun", 0) for c in contexts} == {BEGUN if found == "target" else 0}
    engine, store = engine_of(), TraceStore.open(tmp_path / "run/artefacts/traces-discovery")
    for c, length in zip(contexts, store.lengths, strict=True):
        begun = engine.encode_target(c["response"])[:BEGUN] if found == "target" and c["response"] else ()
        assert length == len(user_span(engine.encode(c["turns"]), "x")) + len(begun)
    write_report(tmp_path / "run")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_on_policy_what_is_traced_is_what_was_said_under_the_mask(finished: Finished, objective: str) -> None:
    """Where answers are traced with their requests; elsewhere nothing that was said is kept, nor needed."""
    folder, engine = finished(objective), engine_of()
    run, store = Run.open(folder, read_only=True), TraceStore.open(folder / "artefacts/traces-on-policy-0-1")
    keys = run.keys()
    units = [run.recall(key) for key in keys if key.startswith("on_policy/0/1/")]
    assert units
    assert {"said" in unit for unit in units} == {objective == "allow"}
    if objective == "defend":
        return
    contexts = [json.loads(line) for line in (folder / "artefacts/contexts.jsonl").read_text().splitlines()]
    own = [c for c in contexts if c["split"] == "discovery" and c["kind"] != "affirmed"]
    said = [text for unit in units for text in unit["said"]]
    assert len(own) == len(said)
    lengths = dict(zip(store.ids, store.lengths.tolist(), strict=True))
    again = 0
    for c, answer in zip(own, said, strict=True):
        if (length := lengths.get(f"{c['id']} @1")) is not None:
            begun = engine.encode_target(answer)[:BEGUN] if answer else ()
            assert length == len(user_span(engine.encode(c["turns"]), "x")) + len(begun)
            again += 1
    assert again


def test_manifests_of_older_runs_keep_what_was_done_then(tmp_path: Path) -> None:
    new = (
        "contrast", "init", "rivals", "searches", "method", "moved_prompts", "rank", "conditional_steps",
        "conditional_phase", "conditional_hold", "decay", "threshold",
    )  # fmt: skip
    old = {name: value for name, value in plain(BRIEF).items() if name not in new}
    with Run.create(tmp_path / "run", "steer", old) as run:
        plan = plan_of(run, Steer)
    assert (plan.contrast, plan.init, plan.searches) == ("benign", "zero", "joint")
    assert plan.rivals is not None
    assert set(plan.rivals) == {"surrogate_only", "steermoe", "random"}
    assert (plan.method, plan.moved_prompts) == ("mascing", 0)
    assert (BRIEF.contrast, BRIEF.init, BRIEF.searches) == ("topic", "zero", "each")
    assert set(BRIEF.asked) == set(RIVALS) - {"conditional"}


def test_every_way_is_searched_for_itself(tmp_path: Path) -> None:
    """What is tried of a way alone is tried of it beside others; a joint search makes but one of them stronger."""
    grid = Grid((1e-4,), (0.5, 1.0, 1.5, 2.0), ("prefill",), ("surrogate", "through_model"))
    plan = replace(BRIEF, rivals=(), random_draws=0, through_lambdas=(1e-2,))

    def tried(name: str, refinements: tuple[Any, ...], searches: Any) -> set[str]:
        what = scenario(grid=replace(grid, refinements=refinements), limits=Limits(1, 1, 1, 1, 1))
        results = perform(tmp_path / name, plan=replace(plan, searches=searches), what=what)
        return {c["id"] for c in results["candidates"] if c["stage"] == "fine"}

    both = tried("both", grid.refinements, "each")
    assert both == tried("one", grid.refinements[:1], "each") | tried("other", grid.refinements[1:], "each")
    assert tried("joint", grid.refinements, "joint") < both


def test_matrices_start_where_the_plan_says(tmp_path: Path) -> None:
    """At the paper's random start, they are those that the method finds from it, and no others."""
    plan = replace(BRIEF, init="paper", random_draws=0, rivals=())
    results = perform(tmp_path / "run", plan=plan, what=scenario(grid=ONE_WAY))
    assert {name: arm for name, arm in results["test"].items() if arm}.keys() == {"before", "after"}
    assert {c["method"] for c in results["candidates"]} == {"mascing"}
    run, artefacts = Run.open(tmp_path / "run", read_only=True), tmp_path / "run/artefacts"
    (known,) = run.recall("matrix/0")
    labels = [json.loads(line)["label"] for line in (artefacts / "contexts.jsonl").read_text().splitlines()]
    surrogate, store = (
        FittedSurrogate.load(artefacts / "surrogate-0.safetensors"),
        TraceStore.open(artefacts / "traces-discovery"),
    )
    turning = [n for n in range(len(store.ids)) if labels[n]]
    for init in ("paper", "zero"):
        method = SteeringMatrix(lambdas=(1e-4,), init=init)  # type: ignore[arg-type]
        (found,) = method.learn(surrogate, store, turning, 0, results["circuit"]["sigma"])
        same = all(np.allclose(a, b, rtol=0, atol=1e-4) for a, b in zip(found.raw, known["raw"], strict=True))
        assert same == (init == "paper")


def test_a_rival_that_is_not_asked_for_is_not_tried(tmp_path: Path) -> None:
    plan = replace(BRIEF, rivals=("steermoe_paired", "through_model"))
    grid = replace(GRIDS["allow"], alphas=(1.0,), refinements=("surrogate", "through_model"))
    results = perform(tmp_path / "run", "allow", plan, what=scenario("allow", grid=grid))
    asked = {name for name, arm in results["test"].items() if arm} - {"before", "after"}
    assert asked == {"steermoe_paired", "through_model"} - {arm_of(results["chosen"])}
    assert {c["method"] for c in results["candidates"]} == {"mascing", "through_model", "steermoe_paired"}
    journal = Run.open(tmp_path / "run", read_only=True).keys()
    pins = [c for c in results["candidates"] if c["method"] == "steermoe_paired" and c["stage"] == "coarse"]
    assert {(c["on"], c["off"]) for c in pins} == {(0, 2), (2, 0), (2, 2)}
    keys = [key for key in journal if key.startswith("activations")]
    assert len(keys) == 2
    assert all("/responses/" in key for key in keys)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_report_renders(finished: Finished, objective: str, tmp_path: Path) -> None:
    folder = shutil.copytree(finished(objective), tmp_path / "run")
    page = write_report(folder).read_text()
    assert "tiny" in page
    assert len(page) > 20_000
    job, results = read_results(results_of(folder))
    assert len(job.work.summary(results).rows) >= 5


# ---------------------------------------------------------------------- the artefact


@pytest.mark.versions
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_artefact_is_the_chosen_mask_and_for_this_checkpoint_alone(finished: Finished, objective: str) -> None:
    folder = finished(objective)
    results, steering = results_of(folder), Steering.from_pretrained(folder / "artefacts/steering")
    assert (steering.alpha, steering.phase) == (results["chosen"]["alpha"], results["chosen"]["phase"])
    for row, stored in zip(steering.matrix, results["circuit"]["matrix"], strict=True):
        assert row.tolist() == stored
    assert list(steering.sigma) == results["circuit"]["sigma"]
    assert steering.about["scenario"] == "tiny"
    names = {"mascing": "MASCing", "through_model": "learnt through the model"}
    assert steering.about["method"] == names[results["chosen"]["method"]]
    assert ("MASCing" in (folder / "artefacts/steering/README.md").read_text()) == (
        results["chosen"]["method"] == "mascing"
    )
    assert steering.about["measured"][0]["after"] == results["test"]["after"]["gain"]
    assert results["artefact"] == "artefacts/steering"
    engine, other = engine_of(), engine_of(seed=1)
    prompts = [engine.encode(["where"])]
    engine.generate(prompts, routing=steering, max_new_tokens=1)
    steering.check(engine.routers, engine.info.fingerprint)
    with pytest.raises(WrongModel):
        other.generate(prompts, routing=steering, max_new_tokens=1)
    with pytest.raises(WrongModel), Run.create(folder.parent / f"x{objective}", "evaluate", {}) as run:
        evaluate(other, steering, objective, Evaluate(limit=2), run)


@pytest.mark.versions
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_evaluating_the_artefact_gives_what_the_run_reported(
    finished: Finished, objective: str, tmp_path: Path
) -> None:
    folder = finished(objective)
    plan, known = Evaluate(limit=BRIEF.limit, latency_rounds=1), results_of(folder)
    steering = Steering.from_pretrained(folder / "artefacts/steering")

    def evaluate_in(place: Path, stop: int | None = None) -> dict[str, Any]:
        with Run.create(place, "evaluate", {"model": "tiny", **plain(plan)}) as run:
            if stop is not None:
                remember = run.remember
                left = [stop]

                def until(key: str, compute: Any) -> Any:
                    left[0] -= key not in run
                    if left[0] < 0:
                        raise KeyboardInterrupt
                    return remember(key, compute)

                run.remember = until  # type: ignore[method-assign]
            return evaluate(engine_of(), steering, objective, plan, run)

    evaluate_in(tmp_path / "run")
    found = results_of(tmp_path / "run")
    foretold = found["cost"]["predicted"]
    assert {stage["stage"] for stage in foretold["stages"]} == {"test", "moved"}
    assert found["moved"] == known["moved"]
    assert found["cost"]["forwards"] / 2 < foretold["forwards"] < found["cost"]["forwards"] * 2
    for name in ("before", "after"):
        shared = found["test"][name].keys() & known["test"][name].keys()
        assert shared >= {*MEASURES, "by_category", "held_by_category", "turns", "dsr_context", "unscored"}
        assert {k: found["test"][name][k] for k in shared} == {k: known["test"][name][k] for k in shared}
    assert found["broken_on_test"] == known["broken_on_test"]
    assert found["circuit"]["matrix"] == known["circuit"]["matrix"]
    assert found["chosen"]["norm1"] == pytest.approx(known["chosen"]["norm1"])
    assert found["splits"]["test"] == known["splits"]["test"]
    assert (found["job"], found["candidates"]) == ("evaluate", [])
    write_report(tmp_path / "run")
    job, results = read_results(found)
    assert job.work.summary(results).rows
    for units in (2, 7):
        with pytest.raises(KeyboardInterrupt):
            evaluate_in(tmp_path / "killed", units)
    evaluate_in(tmp_path / "killed")
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "run")


def test_masks_are_of_the_scenario_s_grid(tmp_path: Path) -> None:
    """Also where the phases that are learnt through the model are not those of the grid."""
    plan = replace(BRIEF, random_draws=0)
    results = perform(tmp_path / "run", plan=plan, what=scenario(grid=Grid((0.0,), (0.5, 1.5), ("decode",))))
    assert {c["phase"] for c in results["candidates"]} == {"decode"}
    assert {c["alpha"] for c in results["candidates"]} == {None, 0.5, 1.5}
    assert {row["phase"] for row in results["gap"]} == {"decode"}
    assert {c["refinement"] for c in results["candidates"]} >= {"surrogate", "on_policy", "through_model"}
    assert Steering.from_pretrained(tmp_path / "run/artefacts/steering").phase == "decode"
    assert results["test"]["random"] is None
    assert results["comparisons"]["vs_random"] is None
    assert (results["seeds"], results["upper_bound"], results["latency"]) == (None, None, None)


# ---------------------------------------------------------------------- being killed


@pytest.mark.parametrize(
    ("objective", "parts"),
    [("defend", 4), *(pytest.param(o, 40, marks=pytest.mark.slow) for o in OBJECTIVES)],
)
def test_a_run_killed_again_and_again_gives_the_same(
    finished: Finished, tmp_path: Path, objective: str, parts: int
) -> None:
    """After every so many units, until there is nothing left to kill."""
    folder, kills = tmp_path / "run", 0
    units = len(Run.open(finished(objective), read_only=True).keys())
    while True:
        try:
            perform(folder, objective, stop_after=units // parts)
            break
        except KeyboardInterrupt:
            kills += 1
            assert not (folder / "results.json").exists()
            assert kills < 2 * parts
    assert kills >= parts - 1
    assert comparable(folder) == comparable(finished(objective))


def test_a_run_killed_while_it_writes_its_end_gives_the_same(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished("defend"), tmp_path / "run")
    wanted = comparable(folder)

    def killed(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    for owner, name in ((Steering, "save_pretrained"), (Run, "write_results"), (Run, "write_text")):
        (folder / "results.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "artefacts/steering", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            with pytest.raises(KeyboardInterrupt):
                perform(folder)
        assert not (folder / "results.json").exists()
    perform(folder)
    assert comparable(folder) == wanted


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_new_run_is_foretold(finished: Finished, objective: str, tmp_path: Path) -> None:
    shutil.copytree(finished(objective), tmp_path / "run")
    cost = json.loads((tmp_path / "run/results.json").read_text())["cost"]
    predicted, found = cost["predicted"], {stage["stage"] for stage in cost["stages"]}
    assert {stage["stage"] for stage in predicted["stages"]} == found - ({"goals"} if objective == "allow" else set())
    assert all(stage["forwards"] > 0 and stage["tokens"] > 0 for stage in predicted["stages"])
    assert cost["forwards"] / 2 < predicted["forwards"] < cost["forwards"] * 2
    assert cost["forwards"] <= predicted["upper"]["forwards"]
    assert cost["tokens"] <= predicted["upper"]["tokens"]
    assert perform(tmp_path / "run", objective)["cost"]["predicted"] == predicted  # as its journal has it


def test_a_forecast_is_said_and_never_added_to_a_run_that_began_without(tmp_path: Path) -> None:
    question, plan = SteerQuestion(scenario(), suite_of("defend"), ManyJudge()), PLANS["defend"]

    def said(folder: str, units: int) -> str:
        sentences: list[str] = []
        with Run.create(tmp_path / folder, "steer", {}) as run:
            stop(run, units)
            with pytest.raises(KeyboardInterrupt):
                perform_steer(plan, Bench(engine_of(), question, run, say=sentences.append))
        return " ".join(sentences)

    first = said("new", 2)
    assert re.search(
        r"About .* \(at most .*\): [0-9,]+ forwards of .*; surrogates, latency and tasks come on top", first
    )
    again = said("new", 0)
    assert "The whole run: about " in again
    assert first.split("forwards of")[1] == again.split("forwards of")[1]
    with Run.create(tmp_path / "old", "steer", {}) as run:
        run.remember("sigma", list)
    assert "forwards of" not in said("old", 1)
    assert FORECAST not in Run.open(tmp_path / "old", read_only=True)


def test_lost_artefacts_are_made_again(finished: Finished, tmp_path: Path) -> None:
    folder = shutil.copytree(finished("defend"), tmp_path / "run")
    wanted = comparable(folder)
    (folder / "results.json").unlink()
    for name in ("surrogate-0.safetensors", "surrogate-on-policy-1-0.safetensors"):
        (folder / "artefacts" / name).unlink()
    (folder / "artefacts/surrogate-1.safetensors").write_bytes(b"torn")
    for lost in folder.glob("artefacts/traces-*"):
        shutil.rmtree(lost)
    perform(folder)
    assert comparable(folder) == wanted


def test_traces_of_something_else_are_refused(finished: Finished, tmp_path: Path) -> None:
    folder = shutil.copytree(finished("defend"), tmp_path / "run")
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "artefacts/traces-discovery")
    shutil.copytree(folder / "artefacts/traces-on-policy-0-1", folder / "artefacts/traces-discovery")
    with pytest.raises(DataError, match="holds the traces of other contexts"):
        perform(folder)


# ---------------------------------------------------------------------- what cannot be steered


class Stubborn(ManyJudge):
    """At random, but never this."""

    def __init__(self, **instead: str) -> None:
        self.instead = instead

    def one(self, *arguments: Any) -> Any:
        verdict = super().one(*arguments)
        label = self.instead.get(verdict.label, verdict.label)
        return replace(verdict, label=label, score=1.0 if label == "correct" else 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objective", "judge", "said"),
    [
        ("defend", OneJudge("refused"), "falls in no conversation of the discovery split: tiny has nothing to defend"),
        ("defend", OneJudge("garbage"), "falls in no conversation of the discovery split"),
        ("defend", OneJudge("correct"), "never refuses on the discovery split"),
        ("defend", Stubborn(refused="wrong"), "never refuses on the discovery split"),
        ("defend", OneJudge("unscored"), "The judge many scored none of"),
        ("allow", OneJudge("correct"), "refuses no scenario request of the discovery split: tiny has nothing to open"),
        ("allow", OneJudge("garbage"), "refuses no scenario request"),
        ("allow", OneJudge("refused"), "never answers on the discovery split"),
        ("allow", Stubborn(correct="wrong"), "never answers on the discovery split"),
        ("allow", OneJudge("unscored"), "The judge many scored none of"),
    ],
)  # fmt: skip
def test_a_model_that_gives_nothing_to_learn_from(tmp_path: Path, objective: str, judge: Any, said: str) -> None:
    with pytest.raises(DataError) as refused:
        perform(tmp_path / "run", objective, BRIEF, judge=judge)
    assert said in str(refused.value)
    assert refused.value.remedy


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("learn", [1, 2, 4])
def test_too_few_contexts_are_one_clear_error(tmp_path: Path, objective: str, learn: int) -> None:
    with pytest.raises(DataError, match=r"(?i)too few contexts|nothing to|never "):
        perform(tmp_path / "run", objective, replace(BRIEF, learn=learn))


def test_a_grid_that_leaves_nothing_says_so(tmp_path: Path) -> None:
    what = scenario(grid=Grid((1e6,), (1.0,), ("both",), ("surrogate",)))
    with pytest.raises(DataError, match="Every steering matrix was zero after the cut"):
        perform(tmp_path / "run", plan=BRIEF, what=what)


def test_nan_logits_are_refused_where_they_come(tmp_path: Path) -> None:
    engine = engine_of()
    word = engine.tokenizer("the")["input_ids"][0]
    with torch.no_grad():
        engine.model.model.embed_tokens.weight[word] = torch.nan
    with pytest.raises(BadLogits):
        perform(tmp_path / "run", plan=BRIEF, engine=engine)


def test_a_prompt_beyond_the_context_is_found_before_anything_runs(tmp_path: Path) -> None:
    suite = suite_of("defend")
    long = tuple(replace(c, turns=("where " * 200, *c.turns)) for c in suite.conversations)
    with pytest.raises(PromptTooLong):
        perform(tmp_path / "run", plan=BRIEF, suite=replace(suite, conversations=long))
    assert Run.open(tmp_path / "run", read_only=True).keys() == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limit": 0}, "limit is 0"), ({"learn": 0}, "learn is 0"), ({"validate": -1}, "validate is -1"),
        ({"through_steps": 0}, "through-steps"), ({"max_new_tokens": 0}, "max-new-tokens"),
        ({"surrogate_seeds": 0}, "surrogate-seeds is 0"), ({"method_seeds": 0}, "method-seeds is 0"),
        ({"rounds": 0}, "rounds is 0"), ({"finalists": 0}, "finalists is 0"), ({"seed": -1}, "seed is -1"),
        ({"random_draws": -1}, "random-draws is -1"), ({"latency_rounds": -1}, "latency-rounds is -1"),
        ({"through_lambdas": (float("nan"),)}, "through-lambda is nan"), ({"through_lambdas": (-1.0,)}, "is -1"),
        ({"through_lambdas": (float("inf"),)}, "is inf"), ({"through_holds": (2.0, 0.0)}, "through-hold is 0"),
        ({"through_holds": (float("nan"),)}, "through-hold is nan"),
        ({"through_starts": ()}, "no through-start"),
        ({"through_holds": (1.0, 1.0)}, "through-hold names a value twice"),
        ({"lesson_tokens": 0}, "lesson-tokens"),
    ],
)  # fmt: skip
def test_plans_out_of_range(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Steer(**changes)
    assert said in str(refused.value)


@pytest.mark.parametrize("changes", [{"limit": 0}, {"max_new_tokens": 0}, {"seed": -1}, {"latency_rounds": -1}])
def test_evaluations_out_of_range(changes: Mapping[str, int]) -> None:
    with pytest.raises(UsageError):
        Evaluate(**changes)
