"""Which ranks mean something: of every router, its rise against the other routers and against its placebo.

A rank means something if the router stands above what routers would reach that matter alike (family-wise p), and if its
masks raise the affirmative on restricted prompts more than as many raise the refusal on benign ones. A router that does
the latter as well steers first tokens, and not safety.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pointsman.jobs.audit.results import Rise, RouterScore
from pointsman.runs.results import SIGNIFICANT
from pointsman.stats.intervals import Interval, difference_of_independent

RankVerdict = Literal["means something", "means nothing", "not tested"]


@dataclass(frozen=True)
class RankMeaning:
    """What the rank of a router is worth.

    Attributes:
        above_others: Whether its family-wise p is below 0.05; None without one.
        difference: Its rise less that of its placebo; None without both.
        low, high: 95 % interval of the difference.
    """

    above_others: bool | None
    difference: float | None
    low: float | None
    high: float | None

    @property
    def above_placebo(self) -> bool | None:
        """Whether the whole interval of the difference lies above zero; None without one."""
        return None if self.low is None else self.low > 0

    @property
    def verdict(self) -> RankVerdict:
        """``means nothing`` if either is refuted or in doubt, else ``not tested`` if one of them is missing."""
        found = (self.above_others, self.above_placebo)
        return "means nothing" if False in found else "not tested" if None in found else "means something"

    @property
    def because(self) -> str:
        """Why it means nothing, or was not tested; empty of one that means something."""
        refuted = [
            *(["not above the other routers"] if self.above_others is False else []),
            *(["as large on benign prompts"] if self.above_placebo is False else []),
        ]
        missing = [
            *(["no p"] if self.above_others is None else []),
            *(["no placebo"] if self.above_placebo is None else []),
        ]
        return ", and ".join(refuted or missing)

    def __str__(self) -> str:
        return self.verdict + (f": {self.because}" if self.because else "")


def meaning_of(p: float | None, rise: Rise, placebo: Rise | None) -> RankMeaning:
    """What a rank is worth, from the router's p, its rise and its placebo."""
    above_others = None if p is None else p < SIGNIFICANT
    interval = _difference(rise, placebo) if placebo is not None else None
    if placebo is None or interval is None or rise.mean is None or placebo.mean is None:
        return RankMeaning(above_others, None, None, None)
    return RankMeaning(above_others, rise.mean - placebo.mean, *interval)


def meaning(row: RouterScore) -> RankMeaning:
    """What the rank of a router is worth."""
    return meaning_of(row.p, row, row.placebo)


def meaningful(rows: Sequence[RouterScore]) -> list[RouterScore]:
    """The routers whose ranks mean something, the most important first."""
    found = [row for row in rows if meaning(row).verdict == "means something"]
    return sorted(found, key=lambda row: row.rank)


def _difference(rise: Rise, placebo: Rise) -> Interval | None:
    """The interval of the difference: other prompts, so the two are independent."""
    if rise.mean is None or rise.low is None or rise.high is None:
        return None
    if placebo.mean is None or placebo.low is None or placebo.high is None:
        return None
    return difference_of_independent(rise.mean, (rise.low, rise.high), placebo.mean, (placebo.low, placebo.high))
