"""Behaviour files: CSV, JSONL or a JSON list, in the schemas of the field's public data sets.

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

Another cell is text and nothing else: markup and formulas in it mean nothing here.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pointsman.data.types import Behaviour, Suite
from pointsman.errors import DataError

GOAL_COLUMNS = ("goal", "forbidden_prompt", "prompt", "behavior", "behaviour")
TARGET_COLUMNS = ("target",)
OTHER_TARGETS_COLUMNS = ("targets",)
CATEGORY_COLUMNS = ("category", "semanticcategory", "semantic_category", "type")
ID_COLUMNS = ("id", "behaviorid", "behavior_id", "index")
SOURCE_COLUMNS = ("source_question", "cluster")
"""JailbreakBench's `Source` is not among them: it names the data set of a row, not its question."""

_SUFFIXES = (".csv", ".jsonl", ".json")


@dataclass(frozen=True)
class _Row:
    """One record: where it stands in the file, for messages, and its cells by lower-case column name."""

    place: str
    cells: Mapping[str, Any]


def load_behaviours(path: Path, *, target_optional: bool = False) -> tuple[Behaviour, ...]:
    """Read a behaviour file.

    Rows without an id column are called ``row-1``, ``row-2`` ... in file order. The cluster of a row
    (`source`) is its `source_question` or `cluster` column, else its id; rows with the same prompt are one
    cluster. Space around a cell is dropped.

    Args:
        path: A ``.csv``, ``.jsonl`` or ``.json`` (list of objects) file in UTF-8.
        target_optional: For benign and borderline files, where nobody attacks: `target` may be missing or
            empty, and the unsafe contrasts of an XSTest file (`label` ``unsafe``) are left out, since
            refusing them is right.

    Raises:
        DataError: The file cannot be used; the message says where and what to do.
    """
    return _one_cluster_per_prompt(_read(path, target_optional=target_optional).behaviours)


def load_suite(path: Path, *, benign: Path | None = None, borderline: Path | None = None) -> Suite:
    """Read what an audit asks: restricted behaviours, and benign and borderline requests if there are any.

    Ids of the benign and borderline files get the prefix ``benign:`` and ``borderline:``, so that files which
    number their rows alike (JailbreakBench does) can be used together. What was left out or merged is said in
    `notes`.

    Raises:
        DataError: One of the files cannot be used.
    """
    restricted = _read(path, target_optional=False)
    harmless = {
        name: _read(file, target_optional=True, prefix=f"{name}:")
        for name, file in (("benign", benign), ("borderline", borderline))
        if file is not None
    }
    parts = {"restricted": restricted, **harmless}
    notes = [
        f"{part.left_out} unsafe contrast rows of the {name} file are left out: refusing them is right"
        for name, part in parts.items()
        if part.left_out
    ]
    everything = [b for part in parts.values() for b in part.behaviours]
    repeated = len(everything) - len({_spoken(b.goal) for b in everything})
    if repeated:
        notes.append(f"{repeated} rows repeat the prompt of another row: they are kept, as one cluster")
    merged = iter(_one_cluster_per_prompt(everything))
    rows = {name: tuple(next(merged) for _ in part.behaviours) for name, part in parts.items()}
    return Suite(
        name=path.name,
        restricted=rows["restricted"],
        benign=rows.get("benign", ()),
        borderline=rows.get("borderline", ()),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _File:
    behaviours: tuple[Behaviour, ...]
    left_out: int


def _read(path: Path, *, target_optional: bool, prefix: str = "") -> _File:
    """Parse, check and name the rows of one file. `prefix` goes before ids, also where they are sources."""
    rows = _parse(path)
    if not rows:
        raise DataError(f"{path} holds no rows", "Give a file with at least one behaviour")
    columns = list(dict.fromkeys(name for row in rows for name in row.cells))
    goal = _column(GOAL_COLUMNS, columns)
    target = _column(TARGET_COLUMNS, columns)
    _require(path, columns, goal, target, target_optional)
    assert goal is not None
    ids = _column(ID_COLUMNS, columns)
    category = _column(CATEGORY_COLUMNS, columns)
    source = _column(SOURCE_COLUMNS, columns)
    others = _column(OTHER_TARGETS_COLUMNS, columns)

    behaviours: list[Behaviour] = []
    seen: dict[str, str] = {}
    left_out = 0
    for number, row in enumerate(rows, start=1):
        if target_optional and _is_unsafe_contrast(row.cells):
            left_out += 1
            continue
        name = _text(path, row, ids, required=True) if ids else f"row-{number}"
        if name in seen:
            raise DataError(
                f"{path} uses the id {name!r} twice ({seen[name]} and {row.place})",
                "Give every row an id of its own",
            )
        seen[name] = row.place
        aim = _text(path, row, target, required=not target_optional)
        behaviours.append(
            Behaviour(
                id=prefix + name,
                goal=_text(path, row, goal, required=True),
                target=aim,
                category=_text(path, row, category),
                source=_text(path, row, source) or prefix + name,
                targets=tuple(t for t in _texts(path, row, others) if t != aim),
            )
        )
    if not behaviours:
        raise DataError(f"{path} holds only unsafe prompts", "Give benign requests here; attacks go to --behaviors")
    return _File(tuple(behaviours), left_out)


def _require(path: Path, columns: Sequence[str], goal: str | None, target: str | None, optional: bool) -> None:
    """Raise unless the columns that are needed are there."""
    missing = [] if goal else [f"goal (or {', '.join(GOAL_COLUMNS[1:-1])})"]
    if target is None and not optional:
        missing.append("target")
    if not missing:
        return
    found = ", ".join(name for name in columns if name) or "none"
    why = " with the start of an affirmative answer, for example 'Sure, here is how to'" if not target else ""
    what = "target" if goal else "goal"
    raise DataError(
        f"{path} has no column {' and no column '.join(missing)}; found: {found}",
        f"Add a column {what}{why if goal else ' with the request'}",
    )


def _column(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first of `names` that the file has."""
    return next((name for name in names if name in columns), None)


def _text(path: Path, row: _Row, column: str | None, *, required: bool = False) -> str:
    """A cell as text, without the space around it; empty if it is missing and not required."""
    value = row.cells.get(column) if column else None
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise DataError(f"{path}, {row.place}: {column} is not text", f"Write {column} as a string")
    text = "" if value is None else str(value).strip()
    if required and not text:
        raise DataError(f"{path}, {row.place}: {column} is empty", f"Fill in {column}, or remove the row")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{path}, {row.place}: {column} holds half a character (a lone surrogate)",
            "Save the file again as UTF-8",
        ) from None
    return text


def _texts(path: Path, row: _Row, column: str | None) -> tuple[str, ...]:
    """A cell of several texts, each once: a list, a string that is a JSON list, or a string that is one text."""
    if column is None:
        return ()
    value = row.cells.get(column)
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(
                f"{path}, {row.place}: {column} begins like a list and is not JSON",
                'Write it as ["First, take", "Step 1:"], or as one text',
            ) from None
    if not isinstance(value, list):
        text = _text(path, row, column)
        return (text,) if text else ()
    each = (_text(path, _Row(row.place, {column: text}), column, required=True) for text in value)
    return tuple(dict.fromkeys(each))


def _is_unsafe_contrast(cells: Mapping[str, Any]) -> bool:
    """A row of XSTest that a model should refuse: `label` says so, or, in its first version, `type`."""
    label = cells.get("label")
    if label is not None:
        return str(label).strip().lower() == "unsafe"
    return "prompt" in cells and str(cells.get("type") or "").strip().lower().startswith("contrast_")


def _spoken(prompt: str) -> str:
    """What two copies of a prompt have in common: everything but case and spacing."""
    return " ".join(prompt.split()).casefold()


def _one_cluster_per_prompt(behaviours: Sequence[Behaviour]) -> tuple[Behaviour, ...]:
    """Join the clusters of rows with the same prompt. A joined cluster has the least of its names."""
    parent: dict[str, str] = {}

    def root(source: str) -> str:
        while (above := parent.setdefault(source, source)) != source:
            parent[source] = parent[above]
            source = above
        return source

    first: dict[str, str] = {}
    for behaviour in behaviours:
        low, high = sorted((root(behaviour.source), root(first.setdefault(_spoken(behaviour.goal), behaviour.source))))
        parent[high] = low
    return tuple(replace(b, source=root(b.source)) for b in behaviours)


def _parse(path: Path) -> list[_Row]:
    """The records of a file, by its suffix."""
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError(f"{path} is a folder", "Name one .csv, .jsonl or .json file in it")
    if not path.exists():
        raise DataError(f"{path} does not exist", "Check the path of the behaviour file")
    if suffix not in _SUFFIXES:
        raise DataError(
            f"{path} has the unknown suffix {path.suffix!r}",
            f"Use a file that ends in {', '.join(_SUFFIXES)}",
        )
    text = _decode(path)
    if not text.strip():
        raise DataError(f"{path} is empty", "Give a file with at least one behaviour")
    records = {".csv": _csv, ".jsonl": _jsonl, ".json": _json}[suffix]
    return [_Row(place, _lower_columns(path, place, cells)) for place, cells in records(path, text)]


def _decode(path: Path) -> str:
    """The file's text; a byte order mark is dropped."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})", "Save it again as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "Check its permissions") from None


def _lower_columns(path: Path, place: str, cells: Mapping[str, Any]) -> dict[str, Any]:
    """Cells by lower-case column name; two columns that differ in case only are an error."""
    lower: dict[str, Any] = {}
    for name, value in cells.items():
        key = name.strip().lower()
        if key in lower:
            raise DataError(f"{path}, {place}: there are two columns {key!r}", "Rename or remove one of them")
        lower[key] = value
    return lower


def _csv(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a CSV file with a header."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            place, line = f"line {line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = cells
                named = [name.strip().lower() for name in header if name.strip()]
                for name in named:
                    if named.count(name) > 1:
                        raise DataError(
                            f"{path}, {place}: there are two columns {name!r}", "Rename or remove one of them"
                        )
                continue
            if len(cells) > len(header):
                raise DataError(
                    f"{path}, {place}: {len(cells)} cells for {len(header)} columns",
                    "Put cells that contain a comma into double quotes",
                )
            yield place, {name: cell for name, cell in zip_longest(header, cells) if name.strip()}
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: malformed CSV ({error})", "Close the quotes, or save it as CSV again"
        ) from None


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a JSONL file: one object a line; empty lines are skipped."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"line {number}"
            yield place, _object(path, place, _loads(path, place, line))


def _json(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a JSON file that is a list of objects."""
    values = _loads(path, None, text)
    if not isinstance(values, list):
        raise DataError(f"{path} is not a list", "Write a JSON list of objects, or JSONL with one object a line")
    for number, value in enumerate(values, start=1):
        place = f"item {number}"
        yield place, _object(path, place, value)


def _loads(path: Path, place: str | None, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too long"
        if place is None:
            place = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "whole file"
        raise DataError(
            f"{path}, {place}: malformed JSON ({reason})", "Correct it; JSONL has one whole object a line"
        ) from None


def _object(path: Path, place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {place}: not an object", 'Write it as {"goal": ..., "target": ...}')
    return value
