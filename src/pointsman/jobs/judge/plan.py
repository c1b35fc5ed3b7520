"""What judging again is given, and its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from pointsman.jobs.parameters import Argument, Metavar, check


@dataclass(frozen=True)
class JudgeInputs:
    """What is judged again, and by whom.

    Attributes:
        run: Folder of a finished run.
        judge: Who judges; some judges take parameters.
    """

    run: Annotated[Path, Argument("RUN")]
    judge: Annotated[str, Metavar("NAME[:KEY=VALUE,...]")]


@dataclass(frozen=True)
class JudgeAgain:
    """How a run is judged again.

    Attributes:
        seed: Of the bootstraps.
        keep: Also keep the verdicts with the run, so that its report shows them.
    """

    seed: Annotated[int, Ge(0)] = 0
    keep: bool = True

    def __post_init__(self) -> None:
        check(self)
