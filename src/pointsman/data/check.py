"""What is understood of a prompt file, row by row, and what an audit would refuse of it. No prompt is shown."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pointsman.data.conversations import load_conversations
from pointsman.data.loaders import Mapped, is_unsafe_contrast, open_behaviours
from pointsman.data.records import Records, read_records, refuse_taken
from pointsman.data.splits import join_sources, spoken
from pointsman.data.tables import on_hub
from pointsman.data.types import Behaviour, Conversation
from pointsman.errors import DataError

Kind = Literal["behaviors", "benign", "borderline", "conversations"]
LONG = 4000  # characters of a prompt that is said to be long

_SCHEMAS: Mapping[str, frozenset[str]] = {
    "JailbreakBench": frozenset({"goal", "target", "behavior", "category", "source"}),
    "HarmBench": frozenset({"behavior", "functionalcategory", "semanticcategory", "behaviorid"}),
    "StrongREJECT": frozenset({"forbidden_prompt", "category"}),
    "XSTest": frozenset({"prompt", "type", "focus"}),
    "MHJ": frozenset({"message_0"}),
    "AdvBench": frozenset({"goal", "target"}),
}
"""The columns by which a data set is known; the first that has them all."""
_CONTEXT = "contextstring"


@dataclass(frozen=True)
class RowCheck:
    """One row.

    Attributes:
        place: Where it stands in the file.
        id: Of its behaviour or conversation; empty if it could not be read.
        kept: Whether it is asked.
        refused: Why an audit refuses the file because of it; empty if it does not.
        remarks: Why it is left out, that it repeats another row, that it is long.
        characters: Of its prompt, or of all its turns.
        script: That most of its letters are of, such as ``latin``; empty if it has none.
    """

    place: str
    id: str = ""
    kept: bool = True
    refused: str = ""
    remarks: tuple[str, ...] = ()
    characters: int = 0
    script: str = ""


@dataclass(frozen=True)
class FileCheck:
    """What is understood of a file.

    Attributes:
        path: As the user named it.
        kind: What it is read as: the option of an audit.
        format: Such as ``CSV``.
        data_set: The data set of the field whose columns it has, if any.
        columns: Of every column its use; None if it is not read.
        rows: In the order of the file.
        items: What is asked: rows with the same prompt have one source.
        notes: In sentences.
    """

    path: str
    kind: Kind
    format: str
    data_set: str | None
    columns: Mapping[str, str | None]
    rows: tuple[RowCheck, ...]
    items: tuple[Behaviour, ...] | tuple[Conversation, ...]
    notes: tuple[str, ...]

    @property
    def refused(self) -> str | None:
        """Why an audit refuses the file, in a sentence; None if it does not."""
        refused = [row for row in self.rows if row.refused]
        if refused:
            more = f" (and {len(refused) - 1} more rows)" if len(refused) > 1 else ""
            return f"{refused[0].refused}{more}"
        return None if self.items else f"{self.path} holds only unsafe prompts"


def check_file(path: Path, kind: Kind | None = None, columns: Mapped | None = None) -> FileCheck:
    """Read a file as an audit would, and go on where that would stop.

    Args:
        path: As `read_records` takes it.
        kind: What to read it as; by its columns if None.
        columns: What the user says of its columns.

    Raises:
        DataError: It cannot be read at all, or a column that is needed or named is not there.
    """
    records = read_records(path, noun="behaviour", example='{"goal": ..., "target": ...}')
    kind = kind or _kind(records, columns or {})
    if kind == "conversations":
        return _conversations(path, records)
    return _behaviours(path, records, kind, columns or {})


def _kind(records: Records, columns: Mapped) -> Kind:
    names = set(records.columns)
    if "turns" in names or "message_0" in names:
        return "conversations"
    harmless = names >= _SCHEMAS["XSTest"] and "target" not in names and "target" not in columns
    return "borderline" if harmless else "behaviors"


def _behaviours(path: Path, records: Records, kind: Kind, columns: Mapped) -> FileCheck:
    table = open_behaviours(path, targets=kind == "behaviors", columns=columns)
    prefix = "" if kind == "behaviors" else f"{kind}:"
    rows: list[RowCheck] = []
    items: list[Behaviour] = []
    seen: dict[str, str] = {}
    first: dict[str, str] = {}
    for number, row in enumerate(records.rows, start=1):
        if kind != "behaviors" and is_unsafe_contrast(row.cells):
            rows.append(RowCheck(row.place, kept=False, remarks=("left out: an unsafe contrast",)))
            continue
        try:
            behaviour = table.behaviour(number, row, prefix)
            refuse_taken(path, behaviour.id.removeprefix(prefix), row, seen)
        except DataError as error:
            rows.append(RowCheck(row.place, kept=False, refused=error.problem))
            continue
        items.append(behaviour)
        rows.append(_row(row.place, behaviour, behaviour.goal, first))
    used = {column: use for use, column in table.columns.items() if column}
    contexts = sum(bool(str(row.cells.get(_CONTEXT) or "").strip()) for row in records.rows)
    notes = []
    if contexts and not table.columns["context"]:
        notes.append(
            f"{contexts} rows have a context (ContextString), which is not asked: "
            "with --column context=ContextString it goes before the request"
        )
    sources = join_sources([(b.source, b.goal) for b in items])
    joined = tuple(replace(b, source=source) for b, source in zip(items, sources, strict=True))
    return FileCheck(
        str(path), kind, _format(path), _data_set(records), {name: used.get(name) for name in records.columns if name},
        tuple(rows), joined, tuple(notes),
    )  # fmt: skip


def _conversations(path: Path, records: Records) -> FileCheck:
    talks = load_conversations(path, prefix="conversations:")
    first: dict[str, str] = {}
    rows = tuple(
        _row(row.place, talk, "\n".join(talk.turns), first) for row, talk in zip(records.rows, talks.rows, strict=True)
    )
    sources = join_sources(talks.asked())
    joined = tuple(replace(c, source=source) for c, source in zip(talks.rows, sources, strict=True))
    mhj = "turns" not in records.columns
    known = {"id": "id", "goal": "goal", "target": "target", "tactic": "tactic", "category": "category",
             "question_id": "source", "source_question": "source", "cluster": "source", "turns": "turns",
             "cluster_by": "cluster_by"}  # fmt: skip
    known |= {} if mhj else {"source": "source"}
    uses = {name: "a turn" if name.startswith("message_") else known.get(name) for name in records.columns if name}
    return FileCheck(str(path), "conversations", _format(path), _data_set(records), uses, rows, joined, talks.notes)


def _row(place: str, item: Behaviour | Conversation, text: str, first: dict[str, str]) -> RowCheck:
    """A row that can be asked.

    Args:
        first: Where every prompt stood first; this one is added.
    """
    before = first.setdefault(spoken(text), place)
    remarks = [] if before == place else [f"repeats {before}: one cluster"]
    remarks += [f"long: {len(text):,} characters"] if len(text) > LONG else []
    return RowCheck(place, item.id, remarks=tuple(remarks), characters=len(text), script=script_of(text))


def script_of(text: str) -> str:
    """The script that most letters of a text are of, by the first word of their Unicode names."""
    found = Counter(unicodedata.name(c, "").partition(" ")[0].lower() for c in text if c.isalpha())
    return min(found, key=lambda name: (-found[name], name)) if found else ""


def _data_set(records: Records) -> str | None:
    return next((name for name, columns in _SCHEMAS.items() if columns <= set(records.columns)), None)


def _format(path: Path) -> str:
    if on_hub(path):
        return "data set on the hub"
    suffix = path.suffix.lower().removeprefix(".")
    return "Parquet" if suffix == "parquet" else suffix.upper()


USED_FOR: Mapping[str, str] = {
    "id": "name of the row", "goal": "the request", "context": "goes before the request",
    "target": "start of an answer that gives in", "targets": "other such starts", "category": "rates by category",
    "source": "source question: one cluster", "cluster_by": "intervals cluster by it",
    "reference": "right answer, kept for judges",
    "turns": "what the user says, turn by turn", "tactic": "rates by tactic", "a turn": "a turn of the user",
}  # fmt: skip
"""What every use of a column means."""
