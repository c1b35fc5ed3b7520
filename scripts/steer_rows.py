"""What the model did with every prompt of a steering run, or of an evaluation, from its journal, as `rows.Row`.

Columns: ``test/before`` (and ``discovery/before``, ``validation/before``) without any mask, ``validation/ID`` under a
candidate, ``test/after`` under the chosen mask, ``test/steermoe``, ``test/random`` and on under its rivals,
``test/seed-1`` under the mask of another seed, ``test/upper_bound``. With ``/again`` behind it: the last turn alone,
generated again after the unsteered context of a conversation that fell (`dsr_context`); empty where it had not fallen.
``gap/MATRIX#`` is 1 where the model was turned at alpha 1 on validation, and 0 where it was not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rows
from rows import Row

from pointsman.runs.run import Run

Found = Mapping[str, Any]
_LISTS = "conversations|scenario|restricted|benign|borderline|benign_conversations"
_ANSWERS = re.compile(rf"(?P<stage>.+)/(?P<list>{_LISTS}|again)/(?P<first>\d+)")
_GAP = re.compile(r"(?P<column>gap/.+)/(?P<first>\d+)")
_DIGEST = re.compile(r"/[0-9a-f]{12}$")


class _Table:
    """Rows under way, by split, list and id."""

    def __init__(self) -> None:
        self._about: dict[tuple[str, str, str], Found] = {}
        self._cells: dict[tuple[str, str, str], dict[str, str]] = {}

    def put(self, split: str, name: str, item: Found, column: str, cell: str) -> None:
        key = (split, name, item["id"])
        self._about.setdefault(key, item)
        self._cells.setdefault(key, {})[column] = cell

    def also(self, split: str, name: str, id: str, column: str, cell: str) -> None:
        """A cell of a prompt that has others already."""
        self._cells[split, name, id][column] = cell

    def ids(self, split: str, name: str) -> list[str]:
        return [id for of, list_, id in self._about if (of, list_) == (split, name)]

    def rows(self) -> list[Row]:
        return [
            Row(name, id, item["source"], split, item["category"], item.get("tactic", ""), self._cells[split, name, id])
            for (split, name, id), item in self._about.items()
        ]


def rows_of(folder: Path) -> list[Row]:
    """All rows of a finished steering run or evaluation."""
    with Run.open(folder, read_only=True) as run:
        steps: dict[str, Any] = {key: run.recall(key) for key in run.keys()}  # noqa: SIM118 (no mapping)
    table = _Table()
    again: list[tuple[str, int, Found]] = []
    for key, value in steps.items():
        if not (unit := _ANSWERS.fullmatch(key)):
            continue
        split, column = _place(unit["stage"])
        if unit["list"] == "again":
            again.append((column, int(unit["first"]), value))
        for item in value.get("played", ()):
            table.put(split, unit["list"], item, column, rows.verdicts(item["verdicts"]))
        for item in value.get("attempts", ()):
            table.put(split, unit["list"], item, column, rows.verdict(item["verdict"]))
    talks = table.ids("test", "conversations")
    for column, first, value in again:
        for id, found in zip(talks[first:], value["again"], strict=False):  # a unit is a part of them
            if found is not None:
                table.also("test", "conversations", id, f"{column}/again", rows.verdict(found))
    if any(_GAP.fullmatch(key) for key in steps):
        _take_gap(table, steps, folder / "artefacts" / "contexts.jsonl")
    return table.rows()


def _place(stage: str) -> tuple[str, str]:
    """The split and the column of a stage: ``base/test`` is ``test/before``; digests of masks are left out."""
    if stage.startswith("base/"):
        split = stage.removeprefix("base/")
        return split, f"{split}/before"
    return stage.partition("/")[0], _DIGEST.sub("", stage)


def _take_gap(table: _Table, steps: Mapping[str, Any], contexts: Path) -> None:
    """Contexts that should be turned, in their order; the journal has them without ids."""
    defends = bool(table.ids("validation", "conversations"))
    name = "conversations" if defends else "scenario"
    known = set(table.ids("validation", name))
    lines = map(json.loads, contexts.read_text(encoding="utf-8").splitlines())
    to_turn = [c["id"] for c in lines if c["split"] == "validation" and c["label"] == 1 and c["id"] in known]
    for key, value in steps.items():
        if unit := _GAP.fullmatch(key):
            for id, unsafe in zip(to_turn[int(unit["first"]) :], value["unsafe"], strict=False):
                turned = unsafe is not None and unsafe != defends
                table.also("validation", name, id, f"{unit['column']}#", str(int(turned)))
