"""What routings take from the model's own answers, in nats."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.methods.answer_loss import MARGIN, AnswerLoss
from pointsman.report import text
from pointsman.report.blocks import Cell, Column, Finding, Reading, Row, Section, Table, Value
from pointsman.runs.answer_loss import AnswersUnder


def section(found: Sequence[AnswersUnder]) -> Section:
    """A row for each routing."""
    worst = max(found, key=lambda under: under.own.mean.mean or 0.0)
    rows = [Row([under.name, *_cells(under.own), *_cells(under.right)]) for under in found]
    lost = f"more than {MARGIN} nats"
    columns = [Column("Routing"), Column("Own answers, nats a token", "rate"), Column(f"Own, {lost}", "rate")]
    columns += [Column("Right answers, nats a token", "rate"), Column(f"Right, {lost}", "rate")]
    caption = "Mean log-probability a token lost against no routing, by answer; 95 % intervals over source questions."
    return Section(
        "own-answers",
        "What its answers lose",
        ["How much less probable a routing makes the untouched model’s answers to benign requests, and right ones."],
        [
            Finding(f"The most is lost under {worst.name}: {text.full(worst.own.mean)} nats a token of own answers."),
            Table(columns, rows, caption, "stacked"),
            Reading(
                "Zero where the routing leaves an answer as probable as it was; no judge is asked.",
                "a prefill mask is read as harmless by this alone: only what is said under it shows what it does.",
            ),
        ],
    )


def _cells(loss: AnswerLoss | None) -> list[Value | Cell]:
    return [None, None] if loss is None else [text.full(loss.mean), loss.lost]
