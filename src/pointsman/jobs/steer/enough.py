"""Whether the prompts of a scenario can suffice to steer: what is certain before any model has answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pointsman.data.objective import FILES
from pointsman.data.scenario import Scenario
from pointsman.data.splits import by_split, cluster, take
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.errors import DataError
from pointsman.jobs.steer.plan import Contrast, Steer
from pointsman.stats.bounds import rows_needed

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


# ---------------------------------------------------------------------- with what margin limits can be kept


@dataclass(frozen=True)
class LimitMargin:
    """How surely the validation split can show that a limit is kept.

    Attributes:
        of: Whether the bound counts ``clusters``, or ``rows`` as if they were independent, since there are too few
            clusters; None if there are too few rows as well: the point estimate alone counts.
        clusters, rows: That there are.
        needed: In how many nothing may be lost for the bound to lie within the limit; None if in no number.
    """

    measure: str
    of: Literal["clusters", "rows"] | None
    clusters: int
    rows: int
    needed: int | None


@dataclass(frozen=True)
class Margin:
    """With what confidence limits were to be kept on validation, in percent, and by what each of them is shown."""

    confidence: int
    limits: tuple[LimitMargin, ...]

    @property
    def shown(self) -> bool:
        """Whether a margin can be shown of any limit."""
        return any(one.of for one in self.limits)


def margin_of(measure: str, limit: float, clusters: Sequence[str], confidence: float) -> LimitMargin:
    """How surely rows of these clusters can show that a limit is kept, if nothing is lost at all."""
    needed, independent, rows = rows_needed(limit, confidence), len(set(clusters)), len(clusters)
    of: Literal["clusters", "rows"] | None = None
    if needed is not None and rows >= needed:
        of = "clusters" if independent >= needed else "rows"
    return LimitMargin(measure, of, independent, rows, needed)


def validation_of(suite: Suite, most: int | None, seed: int) -> dict[str, Sequence[Behaviour | Conversation]]:
    """What is asked on validation of a model that has room for all of it.

    Args:
        most: Prompts of each kind; None for all.
        seed: Of the choice.
    """
    found: dict[str, Sequence[Behaviour | Conversation]] = {}
    for name in FILES:
        there: tuple[Behaviour, ...] = by_split(getattr(suite, name), "validation")
        found[name] = take(there, len(there) if most is None else most, seed)
    return found


def margin_on(
    scenario: Scenario, validation: Mapping[str, Sequence[Behaviour | Conversation]], confidence: int
) -> Margin:
    """How surely validation can show that each limit is kept.

    Args:
        validation: What is asked there, by list.
        confidence: In percent.
    """
    of_scenario = "conversations" if scenario.objective == "defend" else "scenario"
    found = []
    for measure, lists in {**_MEASURED_ON, "garbage": (of_scenario,)}.items():
        items = [item for part in lists for item in validation[part]]
        clusters = [item.row_cluster for item in items if measure != "held" or scenario.holds(item.category)]
        if clusters:
            found.append(margin_of(measure, getattr(scenario.limits, measure), clusters, confidence / 100))
    return Margin(confidence, tuple(found))


def limits_without_margin(scenario: Scenario, margin: Margin) -> list[str]:
    """Sentences on limits whose margin does not count clusters, with how many would be needed."""
    limits = asdict(scenario.limits)
    return [_without(one, limits[one.measure], margin.confidence) for one in margin.limits if one.of != "clusters"]


def _without(one: LimitMargin, limit: float, confidence: int) -> str:
    about = f"limits.{one.measure} is {100 * limit:g} points"
    if one.needed is None:
        return f"{about}: no number of validation prompts can show that with margin, so its point estimate counts alone"
    needs = f"at {confidence} % confidence it takes {one.needed} source questions of which none loses anything"
    there = f"validation has {one.clusters}" + (f" ({one.rows} prompts)" if one.rows != one.clusters else "")
    instead = "its margin counts prompts as if they were independent" if one.of else "its point estimate counts alone"
    return f"{about}: {needs}, and {there}, so {instead}"
