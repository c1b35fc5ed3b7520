"""Prompts and answers, for the eyes of their owner."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pointsman.report import text
from pointsman.report.blocks import Block, Cell, Column, Details, Page, Row, Section, Table, Text
from pointsman.report.sections.cost import stage_name
from pointsman.runs.run import COMPLETIONS

FINDINGS_END = ("cost", "read")
"""Sections that no longer tell findings: answers stand before the first of them."""


def with_answers(page: Page, completions: Iterable[Mapping[str, Any]] | None) -> Page:
    """The page with the records of its run, or with what to say where it has none."""
    place = next((n for n, s in enumerate(page.sections) if s.id in FINDINGS_END), len(page.sections))
    return replace(page, sections=[*page.sections[:place], section(completions, page.stages), *page.sections[place:]])


def section(completions: Iterable[Mapping[str, Any]] | None, stages: Mapping[str, str]) -> Section:
    """Every prompt, answer and verdict; `stages` are names of stages."""
    records = list(completions or ())
    rows = [_row(record, stages) for record in records if "response" in record]
    blocks: list[Block] = []
    if rows:
        columns = [Column("Stage"), Column("Behaviour"), Column("Verdict"), Column("Prompt", "words")]
        table = Table([*columns, Column("Answer", "words")], rows, "Every prompt, answer and verdict.")
        blocks.append(Details(f"Show {len(rows)} answers (model output, may be harmful)", [table]))
    else:
        none = f"Not shown: this run folder has no {COMPLETIONS}."
        blocks.append(Text(none if completions is None else f"{COMPLETIONS} holds no answers."))
    torn = len(records) - len(rows)
    if torn:
        blocks.append(Text(f"{text.many(torn, 'line')} of {COMPLETIONS} could not be read."))
    return Section("answers", "Prompts and answers", ["As asked and as generated, unedited."], blocks)


def _row(record: Mapping[str, Any], stages: Mapping[str, str]) -> Row:
    stage, name, category, label = (text.show(record.get(key)) for key in ("stage", "id", "category", "label"))
    return Row(
        [
            stage_name(stage, stages),
            Cell(name, beneath=category),
            Cell(label, beneath=str(record.get("reason") or "")),
            _spoken(record.get("prompt", "")),
            _spoken(record["response"]),
        ]
    )


def _spoken(prompt: Any) -> str:
    """A prompt or a conversation as text."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence):
        return "\n".join(
            f"{turn.get('role', 'user')}: {turn.get('content', '')}" if isinstance(turn, Mapping) else str(turn)
            for turn in prompt
        )
    return json.dumps(prompt, ensure_ascii=False)
