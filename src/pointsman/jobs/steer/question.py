"""What a steering run asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointsman.data.scenario import Scenario
    from pointsman.data.types import Suite
    from pointsman.judges.types import Judge


@dataclass(frozen=True)
class SteerQuestion:
    """A scenario with the prompts that were read for it; and who judges the answers."""

    scenario: Scenario
    suite: Suite
    judge: Judge
