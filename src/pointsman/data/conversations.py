"""Conversation files: what users say turn by turn; the model's own answers come between the turns.

Two schemas, told apart by their columns, whatever their case:

| schema | columns read |
|---|---|
| plain | `turns` (a list of texts), `id`, `goal`, `target`, `tactic`, `category`, `source`, `cluster_by` |
| MHJ | `message_0`, `message_1` ... (each JSON with `role` and `body`), `question_id`, `tactic` |

MHJ are the Multi-Turn Human Jailbreaks (arXiv 2408.15221). Such a file may have the plain schema's other columns
too, except `source`, which names something else there. Both come as CSV, JSONL or a JSON list of objects.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointsman.data.records import Record, Records, read_records, refuse_taken, text_of
from pointsman.data.types import Conversation
from pointsman.errors import DataError

_MESSAGE = re.compile(r"message_(\d+)")
_PLAIN_SOURCES = ("source", "source_question", "cluster")
_MHJ_SOURCES = ("source_question", "cluster")
_NOT_USERS = ("assistant", "system")
_EXAMPLE = '{"id": ..., "turns": [..., ...]}'


@dataclass(frozen=True)
class ConversationFile:
    """What one file holds.

    Attributes:
        rows: Its conversations. Where the file states no goal, `goal` is the last turn.
        with_goal: Ids of those whose goal the file states.
        notes: What was left out or assumed, in sentences.
    """

    rows: tuple[Conversation, ...]
    with_goal: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def asked(self) -> list[tuple[str, str]]:
        """Of every conversation its source, and what it asks for: its goal if the file states one, else its turns."""
        return [(c.source, c.goal if c.id in self.with_goal else "\n".join(c.turns)) for c in self.rows]


def load_conversations(path: Path, *, prefix: str = "", question_prefix: str = "") -> ConversationFile:
    """Read a conversation file.

    Rows without an id column are called ``row-1``, ``row-2`` ... in file order. The source question of a row is its
    `source` (plain schema), `source_question` or `cluster`; else its `question_id`; else its id. Space around a text
    is dropped. Only what users say is read: messages of assistants and system prompts are counted in `notes`.

    Args:
        path: As `read_records` takes it.
        prefix: Goes before ids, also where they are sources.
        question_prefix: Goes before a `question_id`.

    Raises:
        DataError: The file cannot be used; the message says where and what to do.
    """
    records = read_records(path, noun="conversation", example=_EXAMPLE)
    messages = _message_columns(records)
    ids, questions = records.column(("id",)), records.column(("question_id",))
    sources = records.column(_MHJ_SOURCES if messages else _PLAIN_SOURCES)

    rows: list[Conversation] = []
    with_goal: set[str] = set()
    seen: dict[str, str] = {}
    others: Counter[str] = Counter()
    for number, row in enumerate(records.rows, start=1):
        name = text_of(path, row, ids, required=True) if ids else f"row-{number}"
        refuse_taken(path, name, row, seen)
        turns = _said(path, row, messages, others) if messages else _turns(path, row)
        question = text_of(path, row, questions)
        goal = text_of(path, row, records.column(("goal",)))
        if goal:
            with_goal.add(prefix + name)
        rows.append(
            Conversation(
                id=prefix + name,
                turns=turns,
                goal=goal or turns[-1],
                target=text_of(path, row, records.column(("target",))),
                tactic=text_of(path, row, records.column(("tactic",))),
                category=text_of(path, row, records.column(("category",))),
                source=text_of(path, row, sources) or (question_prefix + question if question else prefix + name),
                cluster_by=text_of(path, row, records.column(("cluster_by",))),
            )
        )
    return ConversationFile(tuple(rows), frozenset(with_goal), _notes(path, others, len(rows) - len(with_goal)))


def _notes(path: Path, others: Counter[str], without_goal: int) -> tuple[str, ...]:
    notes = []
    if others:
        counts = " and ".join(f"{others[role]} {role}" for role in _NOT_USERS if others[role])
        notes.append(
            f"{path.name}: {counts} messages are left out: the model's own answers come between the user's turns"
        )
    if without_goal:
        notes.append(f"{path.name}: {without_goal} conversations state no goal: their last turn stands for it")
    return tuple(notes)


def _message_columns(records: Records) -> tuple[str, ...]:
    """Columns of the MHJ schema by their number; none if the file is in the plain schema.

    Raises:
        DataError: The file is in neither schema, or in both.
    """
    numbered = sorted((int(found[1]), name) for name in records.columns if (found := _MESSAGE.fullmatch(name)))
    plain = "turns" in records.columns
    if plain and numbered:
        raise DataError(
            f"{records.path} has a column turns and columns {numbered[0][1]} ...", "Keep one of them for what users say"
        )
    if not plain and not numbered:
        raise DataError(
            f"{records.path} has no column turns and no columns message_0, message_1 ...; found: {records.found()}",
            f"Write {_EXAMPLE} with what the user says, or give a file with MHJ's columns",
        )
    return tuple(name for _, name in numbered)


def _turns(path: Path, row: Record) -> tuple[str, ...]:
    """The user turns of a row of the plain schema: a list, or a cell that is a JSON list."""
    value = row.cells.get("turns")
    remedy = 'Write it as ["first turn", "second turn"]'
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{path}, {row.place}: turns is text and not a JSON list", remedy) from None
    if value is None or value in ("", []) or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{path}, {row.place}: there is no user turn", "Give at least one turn, or remove the row")
    if not isinstance(value, list):
        raise DataError(f"{path}, {row.place}: turns is not a list", remedy)
    return tuple(
        text_of(path, Record(row.place, {f"turn {i}": turn}), f"turn {i}", required=True)
        for i, turn in enumerate(value, start=1)
    )


def _said(path: Path, row: Record, columns: tuple[str, ...], others: Counter[str]) -> tuple[str, ...]:
    """The user turns of a row of the MHJ schema; messages of others are counted in `others`."""
    turns: list[str] = []
    for column in columns:
        value = row.cells.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        message = _message(path, row.place, column, value)
        role = str(message.get("role", "")).strip().lower()
        if role in _NOT_USERS:
            others[role] += 1
        elif role == "user":
            body = Record(row.place, {f"the body of {column}": message.get("body")})
            turns.append(text_of(path, body, f"the body of {column}", required=True))
        else:
            raise DataError(
                f"{path}, {row.place}: {column} has the role {role[:40]!r}", "Use user, assistant or system"
            )
    if not turns:
        raise DataError(f"{path}, {row.place}: there is no user turn", "Give at least one turn, or remove the row")
    return tuple(turns)


def _message(path: Path, place: str, column: str, value: Any) -> dict[str, Any]:
    """One message: an object, or a cell that is one in JSON."""
    remedy = 'Write it as {"role": "user", "body": "..."}'
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too long"
            raise DataError(f"{path}, {place}: {column} is malformed JSON ({reason})", remedy) from None
    if not isinstance(value, dict):
        raise DataError(f"{path}, {place}: {column} is not an object", remedy)
    return value
