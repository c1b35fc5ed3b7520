"""The table that the command line prints at the end of a steer run: it fits a screen of 80 x 24."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from pointsman.report.common import ARMS
from pointsman.report.steer.outcomes import BROKEN, KEPT, OPEN, limited
from pointsman.report.steer.words import Words, method_name, settings_text, words_of
from pointsman.report.values import MISSING, Node, Rate, labels

Cells = tuple[str, str, str, str, str, str]

SHORT = {
    "benign": "benign",
    "benign_conversations": "multi-turn benign",
    "over_refusal": "over-refusal",
    "garbage": "garbage",
    "held": "others refused",
}


def steer_table(node: Node) -> Table:
    """What the headline says, what it costs against its limits, and other methods beside it; all on test.

    Raises:
        RunError: The results are incomplete.
    """
    words = words_of(node)
    marks = " · ".join(labels(node))
    title = f"{node['model']['name'].text()} · {node['scenario']['name'].text()} · {node['threat_model'].text()}"
    table = Table(
        title=Text(f"{title} · {marks}" if marks else title, style="bold"),
        caption=Text("\n".join(_caption(node))),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("Rate", no_wrap=True)
    table.add_column("before", no_wrap=True)
    table.add_column("after", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("difference", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    for number, cells in enumerate(_rows(node, words)):
        # Text, never markup: names come from outside.
        table.add_row(
            *(Text(cell, style="bold" if number == 0 and column < 3 else "") for column, cell in enumerate(cells))
        )
    return table


def _caption(node: Node) -> list[str]:
    said = []
    chosen = node.get("chosen")
    if chosen is not None:
        size = circuit.get("size") if (circuit := node.get("circuit")) else None
        entries = f", {size.text()} experts" if size else ""
        said.append(f"Mask: {method_name(chosen)}, {settings_text(chosen)}{entries}.")
        flag = chosen.get("admissible")
        if flag is not None and not flag.truth():
            said.append("No mask kept every limit on validation.")
    said.append("Test split: % [95 %]; differences in points, from no mask or that method.")
    marks = labels(node)
    if marks:
        warnings = {"testbed": "Testbed: says nothing of a real model.", "small n": "Small n: read the intervals."}
        said.append(" ".join(warnings[mark] for mark in marks))
    return said


def _rates(before: Rate | None, after: Rate | None) -> tuple[str, str, str]:
    old = MISSING if before is None else before.number
    if after is None:
        return old, MISSING, ""
    return old, f"{after.number} {after.interval}".strip(), str(after.n)


def _rows(node: Node, words: Words) -> list[Cells]:
    test, compared = node["test"], node.get("comparisons")
    before, after = test["before"]["gain"].rate(), test["after"]["gain"].rate()
    gained = compared.get("gain") if compared else None
    rise = gained.difference().short if gained else MISSING
    rows: list[Cells] = [(words.gain.lower(), *_rates(before, after), rise, "")]
    for row in limited(node, words):
        change = row.difference if row.difference != MISSING else ""
        mark = {KEPT: "kept", BROKEN: "OVER", OPEN: ""}.get(row.verdict, "kept?")
        limit = f"≤ {100 * row.limit:g} {mark}".rstrip() if row.limit is not None else ""
        rows.append((SHORT[row.key], *_rates(row.before, row.after), change, limit))
    for arm, key in (("steermoe", "vs_steermoe"), ("random", "vs_random"), ("surrogate_only", "vs_surrogate_only")):
        other, found = test.get(arm), compared.get(key) if compared else None
        if other is None:
            rows.append((ARMS[arm], "", "not run", "", "", ""))
            continue
        _, share, n = _rates(None, other["gain"].rate())
        rows.append((ARMS[arm], "", share, n, found.difference().short if found else "", ""))
    return rows
