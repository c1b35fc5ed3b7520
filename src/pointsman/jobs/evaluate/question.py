"""What an evaluation asks."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman.data.scenario import Scenario
from pointsman.data.types import Suite
from pointsman.judges.types import Judge
from pointsman.steering.artefact import Steering


@dataclass(frozen=True)
class EvaluateQuestion:
    """A steering that is given, a scenario with its prompts; and who judges the answers."""

    steering: Steering
    scenario: Scenario
    suite: Suite
    judge: Judge
