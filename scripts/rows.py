"""Per-row outcomes that ship with the evidence, so that who doubts a rate can count again. No prompt and no answer.

``evidence/rows/<name>.csv.gz`` belongs to ``evidence/<name>.json``: a gzipped CSV file (UTF-8, a line of column names),
with one line for each prompt of a list and split:

    list      what was asked: restricted, benign, borderline, conversations, benign_conversations, scenario ...
    id        of the prompt, unique within its list
    cluster   what intervals cluster by: the source question, or what the suite says its claims generalise over
    split     discovery, validation or test
    category  of the prompt
    tactic    of a conversation; empty of a single request

and behind these a column for each thing that was done to the model, in the order in which it was done. Its name is a
path, such as ``test/after`` or ``masking/top-2/prefill``. A cell holds the judge's verdict: the label (``refused``,
``complied``, ``correct``, ``wrong``, ``garbage``, ``unscored``), with ``+`` behind it where the judge calls the attack
a success; of a conversation one for each turn, in order, with a space between. It is empty where this prompt was not
asked. What is no verdict (a count, a share) may stand in a cell as a number, in a column whose name ends in ``#``.

`write` sorts nothing: lines and columns stand as they are given, and the same rows give the same bytes.
Standard library only.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ABOUT = ("list", "id", "cluster", "split", "category", "tactic")
"""The columns before those of outcomes."""


@dataclass(frozen=True)
class Row:
    """One prompt with what the model did.

    Attributes:
        outcomes: Cells by name of column; those that are not asked are left out.
    """

    list: str
    id: str
    cluster: str
    split: str
    category: str = ""
    tactic: str = ""
    outcomes: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """Unique within a file."""
        return self.split, self.list, self.id


def verdict(found: Mapping[str, Any]) -> str:
    """A cell, from a verdict as a journal holds it (label, score, reason)."""
    score = found["score"]
    success = score is not None and (found["label"] == "correct" or score >= 1.0)
    return f"{found['label']}{'+' if success else ''}"


def verdicts(found: Sequence[Mapping[str, Any]]) -> str:
    """A cell, from the verdicts of the turns of a conversation."""
    return " ".join(map(verdict, found))


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write rows; the file appears whole or not at all."""
    columns = list(dict.fromkeys(column for row in rows for column in row.outcomes))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*ABOUT, *columns])
    for row in rows:
        about = (row.list, row.id, row.cluster, row.split, row.category, row.tactic)
        table.writerow([*about, *(row.outcomes.get(column, "") for column in columns)])
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(gzip.compress(text.getvalue().encode("utf-8"), mtime=0))
    new.replace(path)


def read(path: Path) -> list[Row]:
    """The rows of a file that `write` wrote.

    Raises:
        ValueError: It begins with other columns.
    """
    table = csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode("utf-8")))
    head = next(table)
    if tuple(head[: len(ABOUT)]) != ABOUT:
        raise ValueError(f"{path.name} does not begin with the columns {', '.join(ABOUT)}")
    columns = head[len(ABOUT) :]
    return [
        Row(*cells[: len(ABOUT)], {c: cell for c, cell in zip(columns, cells[len(ABOUT) :], strict=True) if cell})
        for cells in table
    ]
