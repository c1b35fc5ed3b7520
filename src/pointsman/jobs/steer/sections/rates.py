"""The columns of what several outcomes gained and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pointsman.jobs.steer.results import OutcomeRates
from pointsman.jobs.steer.wording import Wording
from pointsman.report import text
from pointsman.report.blocks import Cell, Column

MEASURES = ("gain", "garbage", "benign", "benign_conversations", "over_refusal", "held")


@dataclass(frozen=True)
class RateColumns:
    """Of those measures that any of the outcomes has.

    Attributes:
        measures: Their keys.
        columns: With their n, where it is the same for all outcomes.
    """

    measures: Sequence[str]
    columns: Sequence[Column]

    @staticmethod
    def of(outcomes: Sequence[OutcomeRates], wording: Wording) -> RateColumns:
        """The columns for these outcomes."""
        measures = [key for key in MEASURES if any(getattr(outcome, key) for outcome in outcomes)]
        columns = []
        for key in measures:
            sizes = {rate.n for outcome in outcomes if (rate := getattr(outcome, key))}
            beneath = text.rows(sizes.pop()) if len(sizes) == 1 else ""
            columns.append(Column(wording.measure(key), "rate", beneath=beneath))
        return RateColumns(measures, columns)

    def cells(self, outcome: OutcomeRates, broken: Sequence[str] = (), *, unit: bool = True) -> list[Cell]:
        """The rates of one of them; those that break their limit are emphasised."""
        return [
            Cell(getattr(outcome, key), classes="hit" if key in broken else "", bare=bool(column.beneath), unit=unit)
            for key, column in zip(self.measures, self.columns, strict=True)
        ]
