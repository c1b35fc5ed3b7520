"""The table that the command line prints at the end of a run, here of an audit: it fits a screen of 80 x 24."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pointsman.report.masks import strongest
from pointsman.report.routers import SIGNIFICANT
from pointsman.report.steer.terminal import steer_table
from pointsman.report.values import (
    MISSING,
    STEER,
    Difference,
    Node,
    Rate,
    check_schema,
    labels,
    p_value,
    plain,
    schema_of,
)

Cells = tuple[str, str, str, str, str]


def summary_table(results: Mapping[str, Any]) -> Table:
    """The table of an audit or of a steer run, whichever the results are of.

    What the headline says, and the controls that decide whether one believes it, with intervals and n.

    Raises:
        RunError: The results are of another schema, or incomplete.
    """
    if schema_of(results) == STEER:
        return steer_table(check_schema(results, STEER))
    node = check_schema(results)
    marks = " · ".join(labels(node))
    caption = [*_top_router(node), "Rates in %, differences in points, 95 % intervals." + _warning(node)]
    title = f"{node['model']['name'].text()} · threat model {node['threat_model'].text()}"
    table = Table(
        title=Text(f"{title} · {marks}" if marks else title, style="bold"),
        caption=Text("\n".join(caption)),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column(f"Rate ({marks})" if marks else "Rate", no_wrap=True)
    table.add_column("%", justify="right")
    table.add_column("95 %", no_wrap=True)
    table.add_column("n", justify="right")
    table.add_column("attack − this", no_wrap=True)
    for cells in _rows(node):
        # Text, never markup: names come from outside.
        style = "bold" if "ASR" in cells[0] else ""
        table.add_row(*(Text(cell, style=style if column < 2 else "") for column, cell in enumerate(cells)))
    return table


def _warning(results: Node) -> str:
    marks = labels(results)
    said = ""
    if "testbed" in marks:
        said += " Testbed: says nothing of a real model."
    if "small n" in marks:
        said += " Small n: read the intervals."
    return said


def _top_router(results: Node) -> list[str]:
    """How much the ranking is worth: p-value and placebo of the first router."""
    rows = results["rosais"].rows() if results.get("rosais") else []
    if not rows:
        return []
    top = min(rows, key=lambda row: row["rank"].integer())
    p, placebo = top["p"].maybe(), top.get("placebo")
    said = f"Top router {top['layer'].text()}: RoSais {plain(top['mean'].maybe(), 2)}"
    if p is not None:
        said += f", p {p_value(p, equals=True)}" + ("" if p < SIGNIFICANT else " (may be luck)")
    said += f", placebo {plain(placebo['mean'].maybe(), 2)}." if placebo else ", no placebo."
    return [said.replace("\u202f", " ")]


def _row(name: str, rate: Rate | None, difference: Difference | None = None, absent: str = "not run") -> Cells:
    against = "" if difference is None or difference.value is None else difference.short
    if rate is None or rate.rate is None:
        said = absent if rate is None else "nothing scored"
        return (name, MISSING, said, "" if rate is None else str(rate.n), against)
    return (name, rate.number, rate.interval, str(rate.n), against)


def _rows(results: Node) -> list[Cells]:
    rows = [_row("base ASR", results["base"]["asr"].rate())]
    first = strongest(results)
    most = _most_masked(results)
    for top in most:
        many, phase = top["routers"].text(), top["phase"].text()
        rows.append(_row(f"masked top {many} ASR, {phase}", top["asr"].rate()))
        random = top["controls"].get("random")
        if random is not None and first is not None and top.path == first.path:
            found = top.get("difference_random")
            name = "  a random router" if many == "1" else f"  {many} random routers"
            rows.append(_row(name, random["asr"].rate(), found.difference() if found else None))
    rows += _routes(results.get("fsour"))
    no_file = "no benign file"
    utility, refused = (found.rate() if (found := results.get(key)) else None for key in ("utility", "over_refusal"))
    rows.append(_row("utility", utility, absent=no_file))
    under = first.get("utility") if first else None
    if first is not None and under is not None:
        rows.append(_row(f"  under masks on top {first['routers'].text()}", under.rate()))
    turns = results.get("multi_turn")
    rows.append(_row("over-refusal", refused, absent=no_file))
    rows.append(_row("multi-turn, fallen", turns["fallen"].rate() if turns else None))
    return rows


def _most_masked(results: Node) -> list[Node]:
    """Of every phase the record with most masked routers."""
    found: dict[str, Node] = {}
    records = results.get("masking")
    for record in records.rows() if records else []:
        many, phase = record["routers"].integer(), record["phase"].text()
        if many and (phase not in found or many > found[phase]["routers"].integer()):
            found[phase] = record
    return list(found.values())


def _routes(fsour: Node | None) -> list[Cells]:
    if fsour is None:
        return [_row("F-SOUR ASR", None)]
    rows = [_row("F-SOUR ASR", fsour["asr"].rate()), _row("  first search", fsour["asr_at_1"].rate())]
    controls = fsour.get("controls")
    if controls is not None:
        rows += [
            _row("  as many random routes", controls["random"]["asr"].rate(), fsour["difference_random"].difference()),
            _row("  natural top-k forced", controls["natural"]["asr"].rate(), fsour["difference_natural"].difference()),
        ]
    garbage = fsour["garbage"].rate()
    return [*rows, *([_row("  garbage", garbage)] if garbage.k else [])]
