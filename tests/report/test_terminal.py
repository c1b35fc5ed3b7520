"""A table in the terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from pointsman.report.blocks import Cell, Column, Row, Table
from pointsman.report.terminal import table


def written(block: Table, width: int = 60) -> str:
    out = StringIO()
    Console(file=out, width=width).print(table(block))
    return out.getvalue()


def test_a_table_is_text_and_neither_markup_nor_escape_codes() -> None:
    hostile = "[red]x[/red] [/] \x1b]0;gotcha\x07"
    said = written(Table([Column(hostile)], [Row([hostile]), Row([Cell(hostile)])], hostile, title=hostile), 100)
    assert said.count("[red]x[/red] [/] \ufffd]0;gotcha\ufffd") == 5
    assert "\x1b" not in said


def test_numbers_stand_at_the_right() -> None:
    said = written(Table([Column("Rate"), Column("n", "number")], [Row(["a", 1]), Row(["b", 100]), Row(["c", None])]))
    lines = [line.rstrip() for line in said.splitlines()]
    assert lines[-3:] == ["a        1", "b      100", "c"]
