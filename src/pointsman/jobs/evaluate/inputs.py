"""What an evaluation is given: a steering, and a scenario to try it on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pointsman.errors import RunError, UsageError
from pointsman.jobs.evaluate.plan import Evaluate
from pointsman.jobs.evaluate.question import EvaluateQuestion
from pointsman.jobs.parameters import Metavar
from pointsman.jobs.steer import inputs as steering_run
from pointsman.runs.files import known_hash, reading_manifest, typed
from pointsman.runs.steering import learnt_on, read_steering

if TYPE_CHECKING:
    from pointsman.data.types import Suite
    from pointsman.runs.run import Run
    from pointsman.steering.artefact import Steering


@dataclass(frozen=True)
class EvaluateInputs:
    """What an evaluation is given beside the model.

    Attributes:
        steering: Folder or hub id of a steering, or the folder of a run that found one.
        scenario: A scenario by name, or a YAML file; the one that the steering was made for if left out.
    """

    steering: Annotated[str, Metavar("FOLDER")]
    scenario: Annotated[str, Metavar("NAME|FILE")] | None = None


def ask(inputs: EvaluateInputs, plan: Evaluate, note: Callable[[str], None]) -> tuple[EvaluateQuestion, Evaluate]:
    """Read the steering, then the scenario on the splits that the steering was learnt on unless the plan says others.

    Raises:
        UsageError: The steering was made for prompts that do not come with Pointsman.
    """
    from pointsman.data.scenario import scenario_names

    steering = read_steering(inputs.steering)
    name = inputs.scenario or str(steering.about.get("scenario", ""))
    remedy = "Give the scenario's file with --scenario FILE"
    if inputs.scenario is None and name not in scenario_names():
        raise UsageError(
            f"{inputs.steering} was made for the scenario {name or 'of no name'}, which does not come with Pointsman",
            remedy,
        )
    learnt, seed = replace(plan, seed=None).seed_for(steering), plan.seed_for(steering)
    if seed != learnt:
        note(
            f"this steering was learnt on the splits of seed {learnt}: where prompts have no splits of their own, it "
            "may have been learnt on what is tested now"
        )
    asked = steering_run.ask(steering_run.SteerInputs(name), seed)
    made_on = steering.about.get("suite")
    if inputs.scenario is None and made_on != asked.suite.name:
        raise UsageError(
            f"{inputs.steering} was made on the prompts {made_on}, and the scenario {name} that comes with Pointsman "
            f"asks {asked.suite.name}",
            remedy,
        )
    if seed == learnt:
        _note_on_prompts(inputs.steering, made_on, asked.suite, note)
    question = EvaluateQuestion(steering, asked.scenario, asked.suite, asked.judge, inputs.steering)
    return question, replace(plan, seed=seed)


def _note_on_prompts(named: str, made_on: object, suite: Suite, note: Callable[[str], None]) -> None:
    """Say whether prompts that are tested are among those that the steering was learnt or chosen on."""
    from pointsman.data.objective import FILES
    from pointsman.data.splits import by_split, spoken

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
    from pointsman.runs.provenance import shareable

    local = Path(question.named).expanduser().exists()
    return {
        "steering": {"name": shareable(question.named), "local": local, "sha256": _hash(question.steering)},
        **steering_run.config(question.scenario, question.suite, question.judge),
    }


def place(question: EvaluateQuestion) -> dict[str, str]:
    """Where the steering lies on this machine, if it does."""
    folder = Path(question.named).expanduser()
    return {"steering": str(folder.resolve())} if folder.exists() else {}


def ask_again(run: Run, plan: Evaluate, note: Callable[[str], None]) -> EvaluateQuestion:
    """What a run asks, from its manifest; the steering is named before it is read.

    Raises:
        RunError: The steering is not there or not what it was, or the manifest does not say; or as of a steering run.
    """
    with reading_manifest(run):
        name, then = steering_of(run), run.config["steering"]["sha256"]
    asked = steering_run.ask_again(run, plan.seed or 0, note)
    note(f"reading the steering that this run names: {name}")
    steering = read_steering(name)
    if _hash(steering) != then:
        raise RunError(
            f"The steering {name} has changed since {run.folder} began",
            "Put the old one back, or start a new run in another folder",
        )
    return EvaluateQuestion(steering, asked.scenario, asked.suite, asked.judge, name)


def steering_of(run: Run) -> str:
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


def _hash(steering: Steering) -> str:
    """Of all that decides what it does."""
    rows = "".join(row.tobytes().hex() for row in steering.matrix)
    return hashlib.sha256(f"{rows}{steering.to_json()}".encode()).hexdigest()
