"""What a steering run is given: a scenario. An evaluation is given one as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pointsman.errors import RunError
from pointsman.jobs.parameters import Metavar
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.runs.files import PUT_BACK, digest, files_json, judge_again, judge_json, located, reading_manifest

if TYPE_CHECKING:
    from pointsman.data.scenario import Scenario
    from pointsman.data.types import Suite
    from pointsman.judges.types import Judge
    from pointsman.runs.run import Run


@dataclass(frozen=True)
class SteerInputs:
    """What a steering run is given beside the model.

    Attributes:
        scenario: A scenario that comes with Pointsman (`scenario list`) or a YAML file (`scenario init`).
    """

    scenario: Annotated[str, Metavar("NAME|FILE")]


def ask(inputs: SteerInputs, seed: int) -> SteerQuestion:
    """Read a scenario and its prompts, and make its judge.

    Args:
        seed: Of the splits, where prompts have none of their own.
    """
    from pointsman.data.scenario import load_scenario
    from pointsman.judges.making import make_judge

    scenario = load_scenario(inputs.scenario)
    suite = scenario.read(seed)
    return SteerQuestion(scenario, suite, make_judge(suite.judge))


def config(scenario: Scenario, suite: Suite, judge: Judge) -> dict[str, Any]:
    """Scenario, prompts and judge for the manifest, with the paths of files as they may be shared."""
    from pointsman.runs.provenance import shareable

    data = scenario.to_json()
    if scenario.files:
        data["prompts"] = {key: shareable(str(path)) for key, path in scenario.files.items()}
    return {
        "scenario": data,
        "prompts": {"digest": digest(suite), "files": files_json(scenario.files)},
        "judge": judge_json(judge),
    }


def ask_again(run: Run, seed: int, note: Callable[[str], None]) -> SteerQuestion:
    """Scenario, prompts and judge of a run, from its manifest.

    Raises:
        RunError: A file, the prompts or the judge are not what they were, or the manifest does not say.
    """
    from pointsman.data.scenario import Scenario

    with reading_manifest(run):
        data, prompts = run.config["scenario"], run.config["prompts"]
        if data["prompts"].get("suite") is None:
            known = prompts.get("files", {})
            named = {key: path for key, path in data["prompts"].items() if path is not None}
            files = {key: known.get(key, {"path": path}) for key, path in named.items()}
            data = {**data, "prompts": {key: str(path) for key, path in located(run, files).items()}}
        scenario = Scenario.from_json(data)
        judge = judge_again(run, note)
    suite = scenario.read(seed)
    if digest(suite) != prompts.get("digest"):
        raise RunError(f"The prompts of {scenario.name} have changed since {run.folder} began", PUT_BACK)
    return SteerQuestion(scenario, suite, judge)
