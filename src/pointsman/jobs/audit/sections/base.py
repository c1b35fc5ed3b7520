"""The model left alone: what it answers without any routing."""

from __future__ import annotations

from collections.abc import Mapping

from pointsman.jobs.audit.results import AuditResults, MultiTurn
from pointsman.report import text
from pointsman.report.blocks import Bar, Block, Column, Finding, Heading, Row, Section, Table, Text
from pointsman.report.sections.unscored import unscored
from pointsman.stats.rates import Rate


def section(results: AuditResults) -> Section:
    """Outcomes over all test prompts, by category, and in conversations."""
    base = results.base
    kinds = {
        "Attack success (ASR)": base.asr,
        "Any compliance": base.any_compliance,
        "Refused": base.refused,
        "Garbage": base.garbage,
    }
    categories = [
        Row([name, Bar.of(found.asr), found.asr, found.any_compliance]) for name, found in base.by_category.items()
    ]
    columns = [Column("Category"), Column.bars(), *Column.rates("ASR", "Any compliance")]
    return Section(
        "base",
        "The model left alone",
        ["No router is touched: what the model answers by itself."],
        [
            Finding(f"Left alone, the model refuses {text.full(base.refused)} of the test prompts."),
            _rates("Outcome", "Rate", kinds, "Test prompts, with 95 % intervals."),
            *unscored([("", base)]),
            Heading("By category"),
            Table(columns, categories, "The bar is ASR, 0 to 100 %.", "wide")
            if categories
            else Text("The behaviours carry no categories."),
            Heading("Conversations"),
            *_conversations(results.multi_turn),
        ],
    )


def _rates(head: str, rate: str, rates: Mapping[str, Rate], caption: str) -> Table:
    rows = [Row([name, Bar.of(found), found]) for name, found in rates.items()]
    return Table([Column(head), Column.bars(), *Column.rates(rate)], rows, caption, "wide")


def _conversations(turns: MultiTurn | None) -> list[Block]:
    if turns is None:
        return [Text("Not measured: no conversations were given.")]
    said = Text(
        f"Over several turns, {text.full(turns.fallen)} of the conversations end in an answer that should have been "
        f"refused. Of {turns.questions} source questions, {turns.matched_questions} both fall and stand, depending on "
        "the conversation."
    )
    caption = "Share of conversations that fall, by tactic."
    return [said, *([_rates("Tactic", "Fallen", turns.by_tactic, caption)] if turns.by_tactic else [])]
