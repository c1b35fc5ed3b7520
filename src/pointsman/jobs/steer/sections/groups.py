"""Where a mask helps: before and after by category, tactic and held category."""

from __future__ import annotations

from collections.abc import Mapping

from pointsman.jobs.steer.results import GroupGain, SteerResults
from pointsman.jobs.steer.sections import drawings
from pointsman.jobs.steer.wording import wording_for
from pointsman.report.blocks import Block, Column, Heading, Legend, Reading, Row, Section, Table
from pointsman.stats.rates import Rate

Rates = Mapping[str, Rate]


def section(results: SteerResults) -> Section | None:
    """None where no group was measured."""
    wording, before, after = wording_for(results), results.test.before, results.test.after
    parts = [
        (f"{wording.gain} by category", "Category", _gains(before.by_category), _gains(after.by_category)),
        (f"{wording.gain} by tactic", "Tactic", _gains(before.by_tactic), _gains(after.by_tactic)),
        (f"{wording.held}, by category", "Category", before.held_by_category or {}, after.held_by_category or {}),
    ]
    tables: list[Block] = []
    for title, head, old, new in parts:
        if old or new:
            tables += [Heading(title)] if tables else []
            tables.append(_table(title, head, old, new))
    if not tables:
        return None
    reading = Reading(
        "The lower mark of a row is that with the mask.",
        "the gain comes from one group alone, or a held group moves: then the mask has opened, or shut, more than it "
        "should.",
    )
    aside = "Test split, group by group. Groups are small: mind the intervals."
    return Section("groups", "Where it helps", [aside], [Legend(drawings.BEFORE_OVER_AFTER), *tables, reading])


def _gains(groups: Mapping[str, GroupGain] | None) -> Rates:
    return {name: group.gain for name, group in (groups or {}).items()}


def _table(title: str, head: str, before: Rates, after: Rates) -> Table:
    columns = [Column(head), Column("0 to 100 %", "bar"), *Column.rates("Without", "With")]
    rows = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        rows.append(Row([name, drawings.before_over_after(old, new), old, new]))
    caption = f"{title}, with 95 % intervals."
    return Table(columns, rows, caption, "stacked wider")
