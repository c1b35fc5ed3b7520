"""What an evaluation is given, and `Evaluate`: its parameters, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from pointsman.jobs.parameters import Count, Formerly, Metavar, Positive, check
from pointsman.jobs.steer.plan import LARGEST_SEED

if TYPE_CHECKING:
    from pointsman.steering.artefact import Steering


@dataclass(frozen=True)
class EvaluateInputs:
    """What an evaluation is given beside the model.

    Attributes:
        steering: Folder or hub id of a steering, or the folder of a run that found one.
        scenario: A scenario by name, or a YAML file; the one that the steering was made for if left out.
        utility_tasks: Folder with task files of your own for --utility. They are code, and lm-eval runs it.
    """

    steering: Annotated[str, Metavar("FOLDER")]
    scenario: Annotated[str, Metavar("NAME|FILE")] | None = None
    utility_tasks: Annotated[Path, Metavar("FOLDER")] | None = None


@dataclass(frozen=True)
class Evaluate:
    """What an evaluation does.

    Attributes:
        seed: Of splits, and of the choice of prompts; None for the one that the steering was learnt with.
        limit: Most prompts of each kind to test; None for all.
        moved_prompts: Prompts of each kind that are read with and without the mask, to show which experts it moves for
            which words; 0 for none.
        latency_rounds: Timed rounds with and without the mask; 0 for none.
        answer_loss: Measure how much less probable a routing makes the model's own answers to benign requests.
        utility: Tasks of lm-eval to solve as well, by name, to see what the routing costs; empty for none.
        utility_limit: Documents of each of these tasks at most; None for all.
        utility_chat: Ask them in the model's chat template.
        max_new_tokens: Length of answers; None for the scenario's.
        wrong_withstands: Count a conversation as withstood whose request is answered with wrong content.
    """

    seed: Annotated[int, Ge(0), Le(LARGEST_SEED)] | None = None
    limit: Positive | None = 100
    moved_prompts: Annotated[Count, Formerly(0)] = 50
    latency_rounds: Count = 5
    answer_loss: Annotated[bool, Formerly(False)] = False
    utility: Annotated[tuple[Annotated[str, Metavar("NAME[,NAME]")], ...], Formerly(())] = ()
    utility_limit: Annotated[Positive | None, Formerly(100)] = 100
    utility_chat: Annotated[bool, Formerly(False)] = False
    max_new_tokens: Positive | None = None
    wrong_withstands: Annotated[bool, Formerly(True)] = False

    def __post_init__(self) -> None:
        check(self)

    def seed_for(self, steering: Steering) -> int:
        """The seed; the one that the steering was learnt with if none was given."""
        if self.seed is not None:
            return self.seed
        known = steering.about.get("split_seed")
        return known if type(known) is int and known >= 0 else 0  # not a bool, nor whatever else a file may hold
