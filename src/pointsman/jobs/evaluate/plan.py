"""`Evaluate`: the parameters of an evaluation, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pointsman.errors import UsageError


@dataclass(frozen=True)
class Evaluate:
    """What an evaluation does.

    Attributes:
        seed: Of splits and of the choice of prompts.
        limit: At most this many of each kind of prompt on the test split; None for all.
        latency_rounds: Timed rounds of generation with and without the mask; 0 for none.
        max_new_tokens: Answer length; None for the scenario's.
    """

    seed: int = 0
    limit: int | None = None
    latency_rounds: int = 5
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}", f"Give {name.replace('_', '-')} of at least 1, or leave it out")
        for name in ("seed", "latency_rounds"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name.replace('_', '-')} is {getattr(self, name)}", "Give 0 or more")


def evaluate_config(plan: Evaluate, **options: Any) -> dict[str, Any]:
    """Everything that decides the results, as JSON, for the run's manifest."""
    return {**options, **asdict(plan)}
