"""What an evaluation asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointsman.data.scenario import Scenario
    from pointsman.data.types import Suite
    from pointsman.judges.types import Judge
    from pointsman.runs.task_folder import TaskFolder
    from pointsman.steering.artefact import Steering


@dataclass(frozen=True)
class EvaluateQuestion:
    """A steering that is given, a scenario with its prompts; and who judges the answers.

    Attributes:
        named: The steering as the user named it: a folder, or a hub id.
        task_folder: Task files for lm-eval, of the user.
    """

    steering: Steering
    scenario: Scenario
    suite: Suite
    judge: Judge
    named: str = ""
    task_folder: TaskFolder | None = None
