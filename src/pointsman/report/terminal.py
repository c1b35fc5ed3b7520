"""A table in the terminal."""

from __future__ import annotations

import rich.table
from rich import box
from rich.text import Text

from pointsman.report.blocks import Cell, Table
from pointsman.report.text import clean_text


def table(block: Table) -> rich.table.Table:
    """A `Table` whose cells are words, for rich to print: what it says is no markup, since names come from outside."""
    made = rich.table.Table(
        title=Text(clean_text(block.title), style="bold"),
        caption=Text(clean_text(block.caption)),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding="compact" in block.style,
        title_justify="left",
        caption_justify="left",
    )
    for column in block.columns:
        made.add_column(
            Text(clean_text(column.head)), justify="right" if column.kind == "number" else "left", no_wrap=True
        )
    for row in block.rows:
        said = (shown.value if isinstance(shown, Cell) else shown for shown in row.cells)
        style = "bold" if row.top else ""
        made.add_row(*(Text("" if cell is None else clean_text(str(cell)), style) for cell in said))
    return made
