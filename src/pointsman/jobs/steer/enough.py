"""Whether the prompts of a scenario can suffice to steer: what is certain before any model has answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pointsman.data.scenario import Scenario
from pointsman.data.splits import by_split, cluster
from pointsman.data.types import Suite
from pointsman.errors import DataError
from pointsman.jobs.steer.plan import Contrast, Steer

FEWEST_SOURCES = 8
"""Source questions of contexts to learn from: a surrogate holds every fifth out, from the third on, and needs two."""
_LEARNT_FROM = {"defend": ("conversations", "restricted"), "allow": ("scenario", "restricted", "benign")}
_MEASURED_ON: Mapping[str, Sequence[str]] = {
    "benign": ("benign",), "benign_conversations": ("benign_conversations",), "over_refusal": ("benign", "borderline"),
    "held": ("restricted",),
}  # fmt: skip
"""Of every limit on a loss or a rise, the lists that it is measured on."""


def refuse_too_few(scenario: Scenario, suite: Suite, contrast: Contrast = Steer.contrast) -> None:
    """Refuse prompts from which no surrogate can be trained, whatever the model says to them.

    Args:
        contrast: Whether benign requests are learnt from as well.

    Raises:
        DataError: Their discovery split has too few source questions.
    """
    learnt_from = [name for name in _LEARNT_FROM[scenario.objective] if name != "benign" or contrast == "benign"]
    lists = [by_split(getattr(suite, name), "discovery") for name in learnt_from]
    sources = {cluster(item) for items in lists for item in items}
    if len(sources) < FEWEST_SOURCES:
        raise DataError(
            f"Too few contexts to train a surrogate and to test it: at most {len(sources)} source questions in the "
            f"discovery split, and {FEWEST_SOURCES} are needed",
            "Give more source questions, of which some fall and some do not",
        )


def limits_too_fine(scenario: Scenario, suite: Suite, most: int | None) -> list[str]:
    """Sentences on limits that a single prompt of the validation split exceeds.

    Args:
        most: Prompts of each kind that are asked there; None for all.
    """
    found = []
    for name, lists in _MEASURED_ON.items():
        items = [item for part in lists for item in by_split(getattr(suite, part), "validation")[:most]]
        held = [item for item in items if name != "held" or scenario.holds(item.category)]
        limit, n = asdict(scenario.limits)[name], len(held)
        if n and limit * n < 1:
            found.append(
                f"limits.{name} is {100 * limit:g} points and is measured on {n} validation prompts, of which one is "
                f"{100 / n:.1f} points: a single change breaks it"
                + (f"; give {math.ceil(1 / limit - 1e-9)} or more, or a wider limit" if limit else "")
            )
    return found
