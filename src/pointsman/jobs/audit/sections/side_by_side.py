"""The two searches of routes side by side: what they find, what they take, what they find with as many forwards."""

from __future__ import annotations

from pointsman.jobs.audit.claims import which_finds_more
from pointsman.jobs.audit.results import AuditResults
from pointsman.jobs.audit.route_results import Budget, SearchCost, SideBySide
from pointsman.report import text
from pointsman.report.blocks import Bar, Cell, Column, Finding, Heading, Reading, Row, Section, Table
from pointsman.stats.paired import Comparison
from pointsman.stats.rates import Rate

BUDGETS: dict[Budget, str] = {
    "guided_median": "what Guided takes, median",
    "guided_most": "the most that Guided takes",
    "fsour_median": "what F-SOUR takes, median",
    "fsour_most": "the most that F-SOUR takes",
}


def section(results: AuditResults, both: SideBySide) -> Section:
    """Both searches on the same prompts, with all that they took and at equal forwards."""
    found = which_finds_more(both)
    return Section(
        "side_by_side",
        "Two searches side by side",
        ["F-SOUR draws the sets that it tries; Guided lets one backward pass say which to try. The same prompts."],
        [
            Finding(f"{found[0].upper()}{found[1:]}."),
            _whole(results, both),
            Heading("With as many forwards", tag=True),
            _at_equal_forwards(both),
            Reading(
                "A forward is one routing scored on one row. A backward counts as two; the pass through all experts by "
                "the weights that a token meets in it; restarts that failed are counted with the one that succeeded. "
                "Answers and verdicts are not counted: a search has one for every restart.",
                "the two differ in forwards only: those of F-SOUR begin where its candidates differ, and are shorter. "
                "Hold the seconds against each other as well.",
            ),
        ],
    )


def _whole(results: AuditResults, both: SideBySide) -> Table:
    def row(name: str, asr: Rate, cost: SearchCost, less: Comparison | None = None) -> Row:
        numbers = [text.count(cost.forwards), text.count(cost.most_forwards), text.show(cost.pairs)]
        return Row([name, Bar.of(asr, "attack"), asr, less, *numbers, text.duration(cost.seconds)])

    searches = results.route_searches
    rows = [
        row("Guided", searches["Guided"].asr, both.guided),
        row("F-SOUR, all restarts", searches["F-SOUR"].asr, both.fsour, both.difference),
    ]
    columns = [Column("Search"), Column.bars("ASR, 0 to 100 %"), *Column.rates("ASR", "Guided − this, points")]
    columns += Column.numbers("Forwards, median", "at most", "Pairs", "Time a prompt")
    caption = "Shares of prompts with 95 % intervals; medians over prompts, answers included in the time."
    return Table(columns, rows, caption, "stacked")


def _at_equal_forwards(both: SideBySide) -> Table:
    rows = [
        Row([Cell(text.count(at.forwards), beneath=BUDGETS[at.budget]), at.guided, at.fsour, at.difference])
        for at in both.budgets
    ]
    columns = [Column("Forwards a prompt, at most"), *Column.rates("Guided", "F-SOUR", "Guided − F-SOUR, points")]
    caption = "Shares of prompts that the search opens with at most so many forwards, restarts together."
    return Table(columns, rows, caption, "stacked")
