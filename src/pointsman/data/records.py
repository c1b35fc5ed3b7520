"""Files of records: CSV, TSV, JSONL, a JSON list of objects, Parquet, and data sets on the hub; their cells as text.

Every refusal names file and row.

Cells of a CSV file are separated by commas, semicolons or tabs: by whichever its header has most of.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unicodedata import category

from pointsman.data.tables import hub_rows, on_hub, parquet_rows
from pointsman.errors import DataError

_SUFFIXES = (".csv", ".jsonl", ".json", ".tsv", ".parquet")
_LARGEST_CELL = 2**31 - 1  # characters of a cell of CSV: contexts and conversations are longer than Python's 131,072
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_INVISIBLE = ("Cc", "Cf")  # categories of characters that nobody sees, such as a zero-width space
_NAMED_DELIMITER = re.compile(r"sep=([,;\t])\r?\n")  # the line that Excel writes and reads before a header


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
        path: A ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` (list of objects) file in UTF-8, a ``.parquet`` file, or a
            data set on the hub (`data.tables`).
        noun: What a row is, for messages, for example ``"behaviour"``.
        example: How an object is written, for messages.

    Raises:
        DataError: The file cannot be used; the message says where and what to do.
    """
    if on_hub(path):
        return _records(path, noun, _numbered(hub_rows(str(path))))
    suffix = path.suffix.lower()
    refuse_unreadable(path, noun)
    if suffix not in _SUFFIXES:
        raise DataError(
            f"{path} has the unknown suffix {path.suffix!r}",
            f"Use a file that ends in {', '.join(_SUFFIXES)}",
        )
    if suffix == ".parquet":
        return _records(path, noun, _numbered(parquet_rows(path)))
    text = decode(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}, line {line}: not text (it has a NUL character)", "Save it again as UTF-8 text")
    if not text.strip():
        raise DataError(f"{path} is empty", f"Give a file with at least one {noun}")
    records = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json}[suffix]
    return _records(path, noun, records(path, text, example))


def _records(path: Path, noun: str, found: Iterable[tuple[str, Mapping[str, Any]]]) -> Records:
    rows = tuple(Record(place, _lower_columns(path, place, cells)) for place, cells in found)
    if not rows:
        raise DataError(f"{path} holds no rows", f"Give a file with at least one {noun}")
    return Records(path, rows, tuple(dict.fromkeys(name for row in rows for name in row.cells)))


def _numbered(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def refuse_unreadable(path: Path, noun: str) -> None:
    """Raise unless there is a file."""
    try:
        if path.is_dir():
            raise DataError(
                f"{path} is a folder", f"Name one {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file in it"
            )
        if not path.exists():
            raise DataError(f"{path} does not exist", f"Check the path of the {noun} file")
        if not path.is_file():
            raise DataError(f"{path} is not a file", f"Give a {noun} file on disk")
    except (OSError, ValueError) as error:  # such as a name that is too long, or a folder that nobody may enter
        raise DataError(f"{path} cannot be read: {reason(error)}", f"Check the path of the {noun} file") from None


def refuse_missing(files: Mapping[str, Path]) -> None:
    """Raise if several of the files do not exist: one message names them all.

    Args:
        files: By what messages call them.
    """
    missing = [f"{label} ({path})" for label, path in files.items() if not _exists(path)]
    if len(missing) > 1:
        raise DataError(f"{len(missing)} files do not exist: {', '.join(missing)}", "Check their paths")


def refuse_taken(path: Path, name: str, row: Record, seen: dict[str, str]) -> None:
    """Raise if another row has this id; else remember where it stands."""
    if name in seen:
        raise DataError(
            f"{path} uses the id {name!r} twice ({seen[name]} and {row.place})", "Give every row an id of its own"
        )
    seen[name] = row.place


def _exists(path: Path) -> bool:
    try:
        return on_hub(path) or path.exists()
    except (OSError, ValueError):
        return False


def reason(error: Exception) -> str:
    """Why a file cannot be read, in the system's words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def text_of(path: Path, row: Record, column: str | None, *, required: bool = False) -> str:
    """A cell as text, without the space around it; empty if it is missing and not required."""
    value = row.cells.get(column) if column else None
    unreal = isinstance(value, float) and not math.isfinite(value)  # what some tables write for nothing
    if isinstance(value, bool) or unreal or not isinstance(value, str | int | float | None):
        raise DataError(f"{path}, {row.place}: {column} is not text", f"Write {column} as a string")
    text = "" if value is None else str(value).strip()
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{path}, {row.place}: {column} holds half a character (a lone surrogate)",
            "Save the file again as UTF-8",
        ) from None
    if required and all(c.isspace() or category(c) in _INVISIBLE for c in text):
        raise DataError(f"{path}, {row.place}: {column} is empty", f"Fill in {column}, or remove the row")
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


def decode(path: Path, *, most: int | None = None) -> str:
    """The file's text; a byte order mark is dropped.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        DataError: It cannot be read, is too large, or is not UTF-8 text; the message names the line.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(-1 if most is None else most + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "Check its permissions") from None
    if most is not None and len(raw) > most:
        raise DataError(f"{path} has more than {most // 1024} KiB", "Check that it is the file you meant")
    wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        where = "" if wide else f", line {line}"
        raise DataError(
            f"{path}{where}: not UTF-8 ({'it is UTF-16' if wide else f'byte {error.start}'})", "Save it again as UTF-8"
        ) from None
    return text


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
    named = _NAMED_DELIMITER.match(text)
    csv.field_size_limit(_LARGEST_CELL)
    delimiter = named[1] if named else _delimiter(text)
    reader = csv.reader(io.StringIO(text[named.end() if named else 0 :], newline=""), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    first = 2 if named else 1
    line = first
    try:
        for cells in reader:
            place, line = f"line {line}", reader.line_num + first
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = cells
                names = [name.strip().lower() for name in header if name.strip()]
                for name in names:
                    if names.count(name) > 1:
                        raise DataError(
                            f"{path}, {place}: there are two columns {name!r}", "Rename or remove one of them"
                        )
                continue
            if len(cells) > len(header):
                raise DataError(
                    f"{path}, {place}: {len(cells)} cells for {len(header)} columns",
                    f"Put cells that contain a {_DELIMITERS[delimiter]} into double quotes",
                )
            yield place, {name: cell for name, cell in zip_longest(header, cells) if name.strip()}
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: malformed CSV ({error})", "Close the quotes, or save it as CSV again"
        ) from None


def _delimiter(text: str) -> str:
    """What separates the cells of the header: of two that separate as many, the comma."""

    def cells(delimiter: str) -> int:
        try:
            rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
            header = next((row for row in rows if any(cell.strip() for cell in row)), [])
        except csv.Error:
            return 0
        return len([cell for cell in header if cell.strip()])

    return max(_DELIMITERS, key=cells)


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
