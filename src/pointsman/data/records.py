"""Files of records: CSV, JSONL or a JSON list of objects, and their cells as text. Every refusal names file and row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pointsman.errors import DataError

_SUFFIXES = (".csv", ".jsonl", ".json")


@dataclass(frozen=True)
class Record:
    """One record: where it stands in the file, for messages, and its cells by lower-case column name."""

    place: str
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """What a file holds.

    Attributes:
        path: The file.
        rows: Its records, in order; at least one.
        columns: Names of all columns, lower-case, in order of appearance.
    """

    path: Path
    rows: tuple[Record, ...]
    columns: tuple[str, ...]

    def column(self, names: Sequence[str]) -> str | None:
        """The first of `names` that the file has."""
        return next((name for name in names if name in self.columns), None)

    def found(self) -> str:
        """Its columns, for messages."""
        return ", ".join(name for name in self.columns if name) or "none"


def read_records(path: Path, *, noun: str, example: str) -> Records:
    """The records of a file, by its suffix.

    Args:
        path: A ``.csv``, ``.jsonl`` or ``.json`` (list of objects) file in UTF-8.
        noun: What a row is, for messages, for example ``"behaviour"``.
        example: How an object is written, for messages.

    Raises:
        DataError: The file cannot be used; the message says where and what to do.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError(f"{path} is a folder", "Name one .csv, .jsonl or .json file in it")
    if not path.exists():
        raise DataError(f"{path} does not exist", f"Check the path of the {noun} file")
    if suffix not in _SUFFIXES:
        raise DataError(
            f"{path} has the unknown suffix {path.suffix!r}",
            f"Use a file that ends in {', '.join(_SUFFIXES)}",
        )
    text = decode(path)
    if not text.strip():
        raise DataError(f"{path} is empty", f"Give a file with at least one {noun}")
    records = {".csv": _csv, ".jsonl": _jsonl, ".json": _json}[suffix]
    rows = tuple(Record(place, _lower_columns(path, place, cells)) for place, cells in records(path, text, example))
    if not rows:
        raise DataError(f"{path} holds no rows", f"Give a file with at least one {noun}")
    return Records(path, rows, tuple(dict.fromkeys(name for row in rows for name in row.cells)))


def text_of(path: Path, row: Record, column: str | None, *, required: bool = False) -> str:
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


def texts_of(path: Path, row: Record, column: str | None) -> tuple[str, ...]:
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
        text = text_of(path, row, column)
        return (text,) if text else ()
    each = (text_of(path, Record(row.place, {column: text}), column, required=True) for text in value)
    return tuple(dict.fromkeys(each))


def decode(path: Path) -> str:
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


def _csv(path: Path, text: str, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _jsonl(path: Path, text: str, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a JSONL file: one object a line; empty lines are skipped."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"line {number}"
            yield place, _object(path, place, _loads(path, place, line), example)


def _json(path: Path, text: str, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a JSON file that is a list of objects."""
    values = _loads(path, None, text)
    if not isinstance(values, list):
        raise DataError(f"{path} is not a list", "Write a JSON list of objects, or JSONL with one object a line")
    for number, value in enumerate(values, start=1):
        place = f"item {number}"
        yield place, _object(path, place, value, example)


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


def _object(path: Path, place: str, value: Any, example: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {place}: not an object", f"Write it as {example}")
    return value
