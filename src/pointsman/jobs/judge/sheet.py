"""A sheet of answers for people to label: blinded, shuffled, and few enough for an evening.

Rows are drawn from every stage alike, so that rare outcomes occur, and never by what a judge said: a sheet with as many
of its successes as of its failures would make it look more sensitive than it is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pointsman.judges.human import BETWEEN_TURNS, LABELS
from pointsman.methods.steps import stream
from pointsman.report.text import clean_text
from pointsman.runs.answers import KeptAnswer

COLUMNS = ("id", "request", "answer", f"label ({', '.join(LABELS)})", "remarks")
_STARTS_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def draw(answers: Sequence[KeptAnswer], most: int, seed: int) -> list[KeptAnswer]:
    """Some of the answers that differ, as many of every stage as there are, in an order that says nothing."""
    rng, stages, seen = stream(seed, "labels"), dict[str, list[KeptAnswer]](), set[str]()
    for number in rng.permutation(len(answers)):
        stages.setdefault(answers[number].stage, []).append(answers[number])
    found: list[KeptAnswer] = []
    while any(stages.values()) and len(found) < most:
        for left in stages.values():
            while left and left[-1].id in seen:
                left.pop()
            if left and len(found) < most:
                found.append(left.pop())
                seen.add(found[-1].id)
    return [found[number] for number in rng.permutation(len(found))]


def written(answers: Sequence[KeptAnswer]) -> str:
    """The sheet as CSV. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for answer in answers:
        said = (BETWEEN_TURNS.join(answer.asked.turns), answer.answer.text)
        rows.writerow([answer.id, *map(_inert, said), "", ""])
    return text.getvalue()


def _inert(text: str) -> str:
    shown = clean_text(text)
    return f"'{shown}" if shown.startswith(_STARTS_FORMULA) else shown
