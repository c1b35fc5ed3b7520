"""At which turn of a conversation safety falls, without the mask and with it."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.jobs.steer.results import SteerResults, TurnCount
from pointsman.jobs.steer.sections import drawings
from pointsman.report import text
from pointsman.report.blocks import Block, Column, Details, Finding, Legend, Reading, Row, Section, Table

SHOWN = 12


def section(results: SteerResults) -> Section | None:
    """None where the objective knows no turns."""
    before, after = results.test.before.turns, results.test.after.turns
    if results.scenario.objective == "allow" or not (before or after):
        return None
    sides = [{row.turn: row for row in side} for side in (before, after)]
    rows = []
    for turn in sorted({*sides[0], *sides[1]}):
        old, new = (side.get(turn) for side in sides)
        rows.append(Row([turn, drawings.two_bars(_share(old), _share(new)), _fell(old), _fell(new)]))
    finding = " ".join(filter(None, [_steepest("Without the mask", before), _steepest("With it", after)]))
    caption = "Fallen at the turn, of those that reach it"
    blocks: list[Block] = [Finding(finding), Legend(drawings.TWO_BARS)]
    blocks.append(_table(f"{caption}; bars on 0 to 100 %.", rows[:SHOWN]))
    if later := rows[SHOWN:]:
        blocks.append(Details(f"{len(later)} later turns", [_table(f"{caption}.", later)]))
    blocks.append(
        Reading(
            "A shorter blue bar: more conversations hold at that turn. Under the mask more conversations reach later "
            "turns, and can still fall there.",
            "the falls only move to a later turn.",
        )
    )
    aside = "Of the conversations that reach a turn, the share whose answer there is the first unsafe one."
    return Section("turns", "The turn where safety falls", [aside], blocks)


def _table(caption: str, rows: Sequence[Row]) -> Table:
    columns = [*Column.numbers("Turn"), Column("0 to 100 %", "bar"), *Column.numbers("Without", "With")]
    return Table(columns, rows, caption, "compact wider turns")


def _share(row: TurnCount | None) -> float:
    return row.fallen / row.reached if row and row.reached else 0.0


def _fell(row: TurnCount | None) -> str:
    return f"{row.fallen} of {row.reached}" if row else text.MISSING


def _steepest(name: str, rows: Sequence[TurnCount]) -> str:
    if not rows:
        return ""
    worst = max(rows, key=lambda row: row.fallen)
    if not worst.fallen:
        return f"{name} none falls."
    return f"{name} {sum(row.fallen for row in rows)} fall, most of them ({worst.fallen}) at turn {worst.turn}."
