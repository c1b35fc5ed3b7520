"""What an evaluation asks: what a steering that is given does on a scenario."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pointsman.data.objective import FILES
from pointsman.data.scenario import Scenario, scenario_names
from pointsman.data.splits import by_split, spoken
from pointsman.data.types import Suite
from pointsman.errors import RunError, UsageError
from pointsman.jobs.evaluate.plan import Evaluate, EvaluateInputs
from pointsman.jobs.job import Note
from pointsman.jobs.steer import question as steer
from pointsman.judges.types import Judge
from pointsman.runs.files import known_hash, reading_manifest, typed
from pointsman.runs.provenance import shareable
from pointsman.runs.run import Run
from pointsman.runs.steering import learnt_on, read_steering
from pointsman.runs.task_folder import TaskFolder
from pointsman.runs.tasks import refuse_unknown_tasks
from pointsman.steering.artefact import Steering


@dataclass(frozen=True)
class EvaluateQuestion:
    """A steering that is given, a scenario with its prompts; and who judges the answers.

    Attributes:
        named: The steering as the user named it: a folder, or a hub id.
        task_folder: Task files for lm-eval, of the user.
        wrong_withstands: Of the plan.
    """

    steering: Steering
    scenario: Scenario
    suite: Suite
    judge: Judge
    named: str = ""
    task_folder: TaskFolder | None = None
    wrong_withstands: bool = False


def ask(model: str, inputs: EvaluateInputs, plan: Evaluate, note: Note) -> tuple[EvaluateQuestion, Evaluate]:
    """Read the steering, then the scenario on the splits that the steering was learnt on unless the plan says others.

    Raises:
        UsageError: The steering was made for prompts that do not come with Pointsman.
    """
    steering = read_steering(inputs.steering)
    name = inputs.scenario or str(steering.about.get("scenario", ""))
    remedy = "Give the scenario's file with --scenario FILE"
    if inputs.scenario is None and name not in scenario_names():
        raise UsageError(
            f"{inputs.steering} was made for the scenario {name or 'of no name'}, which does not come with Pointsman",
            remedy,
        )
    its_seed, seed = replace(plan, seed=None).seed_for(steering), plan.seed_for(steering)
    for other in _seeds_of_sum(steering.about) - {seed}:
        note(
            f"this steering is a sum, and a part of it was learnt on the splits of seed {other}: where prompts have no "
            f"splits of their own, it may have been learnt on what is tested now, with seed {seed}"
        )
    if seed != its_seed:
        note(
            f"this steering was learnt on the splits of seed {its_seed}: where prompts have no splits of their own, it "
            "may have been learnt on what is tested now"
        )
    asked = steer.ask_scenario(name, seed, inputs.utility_tasks)
    refuse_unknown_tasks(plan, asked.task_folder)
    made_on = steering.about.get("suite")
    if inputs.scenario is None and made_on != asked.suite.name:
        raise UsageError(
            f"{inputs.steering} was made on the prompts {made_on}, and the scenario {name} that comes with Pointsman "
            f"asks {asked.suite.name}",
            remedy,
        )
    if seed == its_seed:
        _note_on_prompts(inputs.steering, made_on, asked.suite, note)
    question = EvaluateQuestion(
        steering, asked.scenario, asked.suite, asked.judge, inputs.steering, asked.task_folder, plan.wrong_withstands
    )
    return question, replace(plan, seed=seed)


def _note_on_prompts(named: str, made_on: object, suite: Suite, note: Note) -> None:
    """Say whether prompts that are tested are among those that the steering was learnt or chosen on."""
    known = learnt_on(named)
    tested = {spoken(item.goal) for name in FILES for item in by_split(getattr(suite, name), "test")}
    if known is None and made_on != suite.name:
        note(
            f"{named} was made on the prompts {made_on}, and {suite.name} is asked: whether it was learnt on what is "
            "tested now cannot be known without the folder of the run that found it"
        )
    elif known and known & tested:
        note(
            f"{len(known & tested)} of {len(tested)} requests that are tested are among those that this steering was "
            "learnt or chosen on: its gain is too good to be true"
        )


def config(question: EvaluateQuestion) -> dict[str, Any]:
    """The steering by what it does, and what a steering run's manifest says of its scenario."""
    local = Path(question.named).expanduser().exists()
    return {
        "steering": {"name": shareable(question.named), "local": local, "sha256": _hash(question.steering)},
        **steer.config(question),
    }


def local(question: EvaluateQuestion) -> dict[str, Any]:
    """Where the scenario's files lie on this machine, and the steering, if it does."""
    folder = Path(question.named).expanduser()
    return {**steer.local(question), **({"steering": str(folder.resolve())} if folder.exists() else {})}


def ask_again(run: Run, plan: Evaluate, note: Note) -> EvaluateQuestion:
    """What a run asks, from its manifest; the steering is named before it is read.

    Raises:
        RunError: The steering is not there or not what it was, or the manifest does not say; or as of a steering run.
    """
    with reading_manifest(run):
        name, then = steering_named(run), run.config["steering"]["sha256"]
    asked = steer.ask_scenario_again(run, plan.seed or 0, note)
    note(f"reading the steering that this run names: {name}")
    steering = read_steering(name)
    if _hash(steering) != then:
        raise RunError(
            f"The steering {name} has changed since {run.folder} began",
            "Put the old one back, or start a new run in another folder",
        )
    return EvaluateQuestion(
        steering, asked.scenario, asked.suite, asked.judge, name, asked.task_folder, plan.wrong_withstands
    )


def steering_named(run: Run) -> str:
    """The steering that a run evaluates: where it lies now, or its hub id.

    Raises:
        RunError: It was a local folder, and is not there; or nothing says what it was.
        KeyError, TypeError, AttributeError: The manifest does not say.
    """
    saved = run.config["steering"]
    known_hash(run, f"the steering {saved['name']}", saved.get("sha256"))
    named = typed(saved["name"], str, "the steering's name")
    place = typed(run.local().get("steering", named), str, "the steering's place")
    for name in (place, named):
        if Path(name).expanduser().exists():
            return str(name)
    if saved.get("local", False) or place != named:
        raise RunError(
            f"The steering {place}, which {run.folder} began with, is not there any more",
            f"Put it back, or resume in the folder where {named} leads to it",
        )
    return str(named)


def _seeds_of_sum(about: Mapping[str, Any]) -> set[int]:
    """Seeds of the splits that the parts of a sum were learnt on; none if it is no sum. The file may hold anything."""
    added = about.get("sum")
    parts = [part for part in added if isinstance(part, Mapping)] if isinstance(added, tuple) else []
    seeds = {part["split_seed"] for part in parts if type(part.get("split_seed")) is int}
    return seeds.union(*map(_seeds_of_sum, parts))


def _hash(steering: Steering) -> str:
    """Of all that decides what it does."""
    rows = "".join(row.tobytes().hex() for row in steering.matrix)
    return hashlib.sha256(f"{rows}{steering.to_json()}".encode()).hexdigest()
