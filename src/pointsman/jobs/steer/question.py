"""What a steering run asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pointsman.data.scenario import Scenario
    from pointsman.data.types import Suite
    from pointsman.judges.types import Judge
    from pointsman.runs.task_folder import TaskFolder


class ScenarioQuestion(Protocol):
    """What a steering run and the evaluation of a steering have in common: a `Question` about a scenario."""

    @property
    def suite(self) -> Suite: ...

    @property
    def judge(self) -> Judge: ...

    @property
    def scenario(self) -> Scenario: ...


@dataclass(frozen=True)
class SteerQuestion:
    """A scenario with the prompts that were read for it; and who judges the answers.

    Attributes:
        task_folder: Task files for lm-eval, of the user.
    """

    scenario: Scenario
    suite: Suite
    judge: Judge
    task_folder: TaskFolder | None = None
