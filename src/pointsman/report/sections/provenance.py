"""What it takes to get the numbers of a page again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

from pointsman.report import text
from pointsman.report.blocks import Block, Definitions, Details, Finding, Heading, Section, Text
from pointsman.report.sections import head
from pointsman.runs.results import Results

Entries = list[tuple[str, str]]


def entries(facts: Any, leave_out: Collection[str] = (), before: str = "") -> Entries:
    """The fields of a dataclass, as they are shown."""
    shown = (f.name for f in fields(facts) if f.name not in leave_out)
    return [(f"{before}{text.readable(name)}", text.show(getattr(facts, name))) for name in shown]


def section(results: Results, run: Entries, others: Sequence[tuple[str, Entries]]) -> Section:
    """Versions and machine, and every setting.

    Args:
        run: Settings of the run, behind suite, judge and seed.
        others: Further groups of settings, by title.
    """
    groups = [
        ("Model", entries(results.model, ("resumes", *(() if results.model.thinking else ("thinking",))))),
        ("Run", [("suite", results.suite), ("judge", head.judge(results.judge)), ("seed", str(results.seed)), *run]),
        *others,
    ]
    settings: list[Block] = []
    for title, found in groups:
        settings += [Heading(title), Definitions(found)]
    reused = results.model.resumes or ""
    said = f"{reused[:1].upper()}{reused[1:]}. This decides how long a search takes, and changes no result."
    return Section(
        "provenance",
        "Provenance and settings",
        ["What it takes to get these numbers again."],
        [
            *([Finding(said)] if reused else []),
            *map(Text, results.notes),
            Definitions(entries(results.provenance)),
            Details("Every setting", settings),
        ],
        tag=False,
    )
