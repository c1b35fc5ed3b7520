"""What a steering run asks: a scenario. An evaluation asks one as well."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pointsman.data.scenario import Scenario, load_scenario
from pointsman.data.types import Suite
from pointsman.errors import RunError
from pointsman.jobs.job import Note
from pointsman.jobs.steer.enough import refuse_too_few
from pointsman.jobs.steer.plan import Steer, SteerInputs
from pointsman.judges.making import make_judge
from pointsman.judges.types import Judge
from pointsman.runs.files import (
    PUT_BACK,
    digest,
    files_json,
    judge_again,
    judge_json,
    judge_places,
    located,
    places,
    reading_manifest,
)
from pointsman.runs.provenance import shareable
from pointsman.runs.run import Run
from pointsman.runs.task_folder import TaskFolder, task_config
from pointsman.runs.tasks import refuse_unknown_tasks


class ScenarioQuestion(Protocol):
    """What a steering run and the evaluation of a steering have in common: a `Question` about a scenario."""

    @property
    def suite(self) -> Suite: ...

    @property
    def judge(self) -> Judge: ...

    @property
    def scenario(self) -> Scenario: ...

    @property
    def task_folder(self) -> TaskFolder | None: ...

    @property
    def wrong_withstands(self) -> bool: ...


@dataclass(frozen=True)
class SteerQuestion:
    """A scenario with the prompts that were read for it; and who judges the answers.

    Attributes:
        task_folder: Task files for lm-eval, of the user.
        wrong_withstands: Of the plan.
    """

    scenario: Scenario
    suite: Suite
    judge: Judge
    task_folder: TaskFolder | None = None
    wrong_withstands: bool = False


def ask(model: str, inputs: SteerInputs, plan: Steer, note: Note) -> tuple[SteerQuestion, Steer]:
    """Read a scenario and its prompts, and make its judge.

    Raises:
        DataError: A file cannot be used, or the prompts are too few to steer with, whatever the model says to them.
    """
    question = ask_scenario(inputs.scenario, plan.seed, inputs.utility_tasks)
    refuse_unknown_tasks(plan, question.task_folder)
    refuse_too_few(question.scenario, question.suite)
    return replace(question, wrong_withstands=plan.wrong_withstands), plan


def ask_scenario(name: str, seed: int, utility_tasks: Path | None = None) -> SteerQuestion:
    """A scenario, by name or file, with its prompts and its judge.

    Args:
        seed: Of the splits, where prompts have none of their own.
        utility_tasks: Folder with task files of the user.
    """
    scenario = load_scenario(name)
    suite = scenario.read(seed)
    return SteerQuestion(scenario, suite, make_judge(suite.judge), TaskFolder.read(utility_tasks))


def config(question: ScenarioQuestion) -> dict[str, Any]:
    """Scenario, prompts and judge for the manifest, with the paths of files as they may be shared."""
    scenario = question.scenario
    data = scenario.to_json()
    if scenario.files:
        data["prompts"] = {key: shareable(str(path)) for key, path in scenario.files.items()}
    return {
        "scenario": data,
        "prompts": {"digest": digest(question.suite), "files": files_json(scenario.files)},
        "judge": judge_json(question.judge),
        **task_config(question.task_folder),
    }


def local(question: ScenarioQuestion) -> dict[str, Any]:
    """Where the files of the scenario, and of its judge, lie on this machine."""
    return {"files": places(question.scenario.files), **judge_places(question.judge)}


def ask_again(run: Run, plan: Steer, note: Note) -> SteerQuestion:
    """Scenario, prompts and judge of a run, from its manifest; raises as `ask_scenario_again`."""
    return replace(ask_scenario_again(run, plan.seed, note), wrong_withstands=plan.wrong_withstands)


def ask_scenario_again(run: Run, seed: int, note: Note) -> SteerQuestion:
    """Scenario, prompts and judge of a run, from its manifest.

    Raises:
        RunError: A file, the prompts or the judge are not what they were, or the manifest does not say.
    """
    with reading_manifest(run):
        data, prompts = run.config["scenario"], run.config["prompts"]
        if data["prompts"].get("suite") is None:
            known = prompts.get("files", {})
            named = {key: path for key, path in data["prompts"].items() if path is not None}
            files = {key: known.get(key, {"path": path}) for key, path in named.items()}
            data = {**data, "prompts": {key: str(path) for key, path in located(run, files).items()}}
        scenario = Scenario.from_json(data)
        judge, tasks = judge_again(run, note), TaskFolder.again(run)
    suite = scenario.read(seed)
    if digest(suite) != prompts.get("digest"):
        raise RunError(f"The prompts of {scenario.name} have changed since {run.folder} began", PUT_BACK)
    return SteerQuestion(scenario, suite, judge, tasks)
