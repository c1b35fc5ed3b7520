"""Behaviour files, in the schemas of the field's public data sets.

Columns are found by name, whatever their case:

| data set | columns read |
|---|---|
| JailbreakBench | `Index`, `Goal`, `Target`, `Category` |
| AdvBench | `goal`, `target`, and `Category` where there is one |
| HarmBench | `BehaviorID`, `Behavior`, `SemanticCategory`, and a `target` that you add |
| StrongREJECT | `forbidden_prompt`, `category`, and a `target` that you add |
| XSTest | `id`, `prompt`, `type`, `label`: for benign and borderline files only |

Any of them may have a column `targets`: other beginnings of an answer that gives in, such as one that begins with
content instead of "Sure". A cell holds one text, or several as a JSON list: ``["First, take", "Step 1:"]``.

Another cell is text and nothing else: markup and formulas in it mean nothing here. What a column is used for may be
said instead of found: ``{"goal": "Question"}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pointsman.data.conversations import ConversationFile, load_conversations
from pointsman.data.records import Record, Records, read_records, refuse_missing, refuse_taken, text_of, texts_of
from pointsman.data.splits import join_sources, spoken
from pointsman.data.types import Behaviour, Suite
from pointsman.errors import DataError

GOAL_COLUMNS = ("goal", "forbidden_prompt", "prompt", "behavior", "behaviour")
USES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "behaviorid", "behavior_id", "index"),
    "goal": GOAL_COLUMNS,
    "context": (),
    "target": ("target",),
    "targets": ("targets",),
    "category": ("category", "semanticcategory", "semantic_category", "type"),
    "source": ("source_question", "cluster"),
    "cluster_by": ("cluster_by",),
    "reference": ("reference", "reference_answer", "gold", "gold_answer", "answer"),
}
"""What a column is used for, and the names by which it is found. JailbreakBench's `Source` is not among them: it names
the data set of a row, not its question. A context (HarmBench's `ContextString`) is asked only if a user says so."""
CONTEXT = "{context}\n\n---\n\n{goal}"
"""How HarmBench asks about a context."""

Mapped = Mapping[str, str]
"""Of some uses, the column that a user names."""
_FOUND: Mapped = {}  # nothing is mapped: all columns are found


def load_behaviours(path: Path, *, target_optional: bool = False) -> tuple[Behaviour, ...]:
    """Read a behaviour file.

    Rows without an id column are called ``row-1``, ``row-2`` ... in file order. The cluster of a row
    (`source`) is its `source_question` or `cluster` column, else its id; rows with the same prompt are one
    cluster. Space around a cell is dropped.

    Args:
        path: As `read_records` takes it.
        target_optional: For benign and borderline files, where nobody attacks: `target` may be missing or
            empty, and the unsafe contrasts of an XSTest file (`label` ``unsafe``) are left out, since
            refusing them is right.

    Raises:
        DataError: The file cannot be used; the message says where and what to do.
    """
    return _one_cluster_per_prompt(read_behaviours(path, targets=not target_optional, harmless=target_optional).rows)


def load_suite(
    path: Path,
    *,
    benign: Path | None = None,
    borderline: Path | None = None,
    conversations: Path | None = None,
    columns: Mapping[str, Mapped] | None = None,
) -> Suite:
    """Read what an audit asks: restricted behaviours, and the other files that are given.

    Ids of the other files get the prefix ``benign:``, ``borderline:`` or ``conversations:``, so that files which
    number their rows alike (JailbreakBench does) can be used together. Conversations share source questions with the
    restricted behaviours. What was left out or merged is said in `notes`.

    Args:
        columns: What a user says of the columns of ``behaviors``, ``benign`` and ``borderline``.

    Raises:
        DataError: One of the files cannot be used, or a harmless request is also a restricted one.
    """
    files: dict[str, Path | None] = {
        "behaviors": path,
        "benign": benign,
        "borderline": borderline,
        "conversations": conversations,
    }
    mapped: Mapping[str, Mapped] = columns or {}
    given: dict[str, Path] = {name: file for name, file in files.items() if file is not None}
    refuse_missing(given)
    restricted = read_behaviours(path, columns=mapped.get("behaviors", _FOUND))
    harmless: dict[str, BehaviourFile] = {
        name: read_behaviours(
            given[name], targets=False, harmless=True, prefix=f"{name}:", columns=mapped.get(name, _FOUND)
        )
        for name in ("benign", "borderline")
        if name in given
    }
    parts: dict[str, BehaviourFile] = {"restricted": restricted, **harmless}
    talks = load_conversations(conversations, prefix="conversations:") if conversations else ConversationFile(())
    goals = [b.goal for part in parts.values() for b in part.rows]
    sources = iter(join_sources([*((b.source, b.goal) for p in parts.values() for b in p.rows), *talks.asked()]))
    rows = {name: tuple(replace(b, source=next(sources)) for b in part.rows) for name, part in parts.items()}
    suite = Suite(
        name=path.name,
        restricted=rows["restricted"],
        benign=rows.get("benign", ()),
        borderline=rows.get("borderline", ()),
        conversations=tuple(replace(c, source=next(sources)) for c in talks.rows),
        notes=(*notes_on(parts, goals), *talks.notes),
    )
    refuse_shared(suite, {"restricted": f"{path}", **{name: f"{file}" for name, file in given.items()}})
    return suite


def refuse_shared(suite: Suite, labels: Mapping[str, str]) -> None:
    """Raise if a harmless request is also one that must be refused, or that a scenario is about.

    Args:
        suite: What is asked.
        labels: What messages call its lists.
    """
    for name in ("benign", "borderline"):
        said = {spoken(b.goal): b for b in getattr(suite, name)}
        for other in ("restricted", "scenario"):
            both = [(said[spoken(b.goal)], b) for b in getattr(suite, other) if spoken(b.goal) in said]
            if both:
                harmless, restricted = both[0]
                more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
                raise DataError(
                    f"{harmless.id} of {labels[name]} is also {restricted.id} of {labels[other]}{more}",
                    f"Keep a request in one of them: {name} requests are those that shall go on being answered",
                )


@dataclass(frozen=True)
class BehaviourFile:
    """What one file holds, before its clusters are joined with those of other files.

    Attributes:
        rows: Its behaviours.
        left_out: How many unsafe contrasts were left out.
    """

    rows: tuple[Behaviour, ...]
    left_out: int


@dataclass(frozen=True)
class BehaviourTable:
    """A file whose columns are understood, and its rows not yet.

    Attributes:
        records: Its rows.
        columns: By use; None for a use that no column has.
        targets: Whether every row must have a target.
    """

    records: Records
    columns: Mapping[str, str | None]
    targets: bool

    def behaviour(self, number: int, row: Record, prefix: str = "") -> Behaviour:
        """One row, without a look at the others.

        Args:
            number: Of the row, from 1.
            prefix: Goes before its id, also where that is its source.

        Raises:
            DataError: A cell cannot be used.
        """
        path, columns = self.records.path, self.columns
        name = text_of(path, row, columns["id"], required=True) if columns["id"] else f"row-{number}"
        target = text_of(path, row, columns["target"], required=self.targets)
        goal = text_of(path, row, columns["goal"], required=True)
        context = text_of(path, row, columns["context"])
        return Behaviour(
            id=prefix + name,
            goal=CONTEXT.format(context=context, goal=goal) if context else goal,
            target=target,
            category=text_of(path, row, columns["category"]),
            source=text_of(path, row, columns["source"]) or prefix + name,
            targets=tuple(t for t in texts_of(path, row, columns["targets"]) if t != target),
            reference=text_of(path, row, columns["reference"]),
            cluster_by=text_of(path, row, columns["cluster_by"]),
        )


def open_behaviours(path: Path, *, targets: bool = True, columns: Mapped = _FOUND) -> BehaviourTable:
    """Read a file, and find what its columns are.

    Raises:
        DataError: It cannot be read, or a column that is needed or named is not there.
    """
    records = read_records(path, noun="behaviour", example='{"goal": ..., "target": ...}')
    found = {use: records.column(names) for use, names in USES.items()}
    for use, column in columns.items():
        if column.strip().lower() not in records.columns:
            raise DataError(
                f"{path} has no column {column!r} for {use}; found: {records.found()}", f"Name one of them for {use}"
            )
        found[use] = column.strip().lower()
    _require(records, found["goal"], found["target"], targets)
    return BehaviourTable(records, found, targets)


def read_behaviours(
    path: Path, *, targets: bool = True, harmless: bool = False, prefix: str = "", columns: Mapped = _FOUND
) -> BehaviourFile:
    """Parse, check and name the rows of one file.

    Args:
        path: As for `load_behaviours`.
        targets: Whether every row must have a target.
        harmless: Leave out the unsafe contrasts of an XSTest file.
        prefix: Goes before ids, also where they are sources.
        columns: What a user says of its columns.

    Raises:
        DataError: The file cannot be used.
    """
    table = open_behaviours(path, targets=targets, columns=columns)
    behaviours: list[Behaviour] = []
    seen: dict[str, str] = {}
    left_out = 0
    for number, row in enumerate(table.records.rows, start=1):
        if harmless and is_unsafe_contrast(row.cells):
            left_out += 1
            continue
        behaviour = table.behaviour(number, row, prefix)
        refuse_taken(path, behaviour.id.removeprefix(prefix), row, seen)
        behaviours.append(behaviour)
    if not behaviours:
        raise DataError(
            f"{path} holds only unsafe prompts",
            "Give benign requests here; attacks belong to the restricted behaviours",
        )
    return BehaviourFile(tuple(behaviours), left_out)


def notes_on(parts: Mapping[str, BehaviourFile], prompts: Sequence[str]) -> tuple[str, ...]:
    """What was left out of the files, by name, and how many of all `prompts` are repeated."""
    notes = [
        f"{part.left_out} unsafe contrast rows of the {name} file are left out: refusing them is right"
        for name, part in parts.items()
        if part.left_out
    ]
    repeated = len(prompts) - len({spoken(prompt) for prompt in prompts})
    if repeated:
        notes.append(f"{repeated} rows repeat the prompt of another row: they are kept, as one cluster")
    return tuple(notes)


def _require(records: Records, goal: str | None, target: str | None, targets: bool) -> None:
    """Raise unless the columns that are needed are there."""
    missing = [] if goal else [f"goal (or {', '.join(GOAL_COLUMNS[1:-1])})"]
    if target is None and targets:
        missing.append("target")
    if not missing:
        return
    why = " with the start of an affirmative answer, for example 'Sure, here is how to'" if not target else ""
    what = "target" if goal else "goal"
    raise DataError(
        f"{records.path} has no column {' and no column '.join(missing)}; found: {records.found()}",
        f"Add a column {what}{why if goal else ' with the request'}",
    )


def is_unsafe_contrast(cells: Mapping[str, Any]) -> bool:
    """A row of XSTest that a model should refuse: `label` says so, or, in its first version, `type`."""
    label = cells.get("label")
    if label is not None:
        return str(label).strip().lower() == "unsafe"
    return "prompt" in cells and str(cells.get("type") or "").strip().lower().startswith("contrast_")


def _one_cluster_per_prompt(behaviours: Sequence[Behaviour]) -> tuple[Behaviour, ...]:
    """Join the clusters of rows with the same prompt. A joined cluster has the least of its names."""
    sources = join_sources([(b.source, b.goal) for b in behaviours])
    return tuple(replace(b, source=source) for b, source in zip(behaviours, sources, strict=True))
