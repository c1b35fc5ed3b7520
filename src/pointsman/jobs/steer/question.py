"""What a steering run asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pointsman.data.scenario import Scenario
from pointsman.data.types import Suite
from pointsman.judges.types import Judge
from pointsman.runs.bench import Question


class ScenarioQuestion(Question, Protocol):
    """What a steering run and the evaluation of a steering have in common."""

    @property
    def scenario(self) -> Scenario: ...


@dataclass(frozen=True)
class SteerQuestion:
    """A scenario with the prompts that were read for it; and who judges the answers."""

    scenario: Scenario
    suite: Suite
    judge: Judge
