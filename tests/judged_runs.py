"""Finished runs to be judged again: copies of the golden ones, whose judge comes with them."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parent / "golden"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the runs ``audit`` and ``evaluate``; the package of their judge is installed."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("audit", "evaluate", "prompts", "plugin"):
        shutil.copytree(GOLDEN / name, folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder / "plugin")
    yield folder
    sys.modules.pop("golden_world", None)


def rows_of(sheet: Path) -> list[dict[str, str]]:
    """A sheet as a spreadsheet would read it; the column of labels is called so."""
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{("label" if name.startswith("label") else name): cell for name, cell in row.items()} for row in rows]


def fill(sheet: Path, filled: Path, label: Callable[[dict[str, str]], str]) -> Path:
    """A sheet as people would fill it in."""
    rows = rows_of(sheet)
    with filled.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": label(row)} for row in rows)
    return filled
