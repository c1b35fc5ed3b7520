"""``data check``: what is understood of a prompt file, before anything is loaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointsman.cli.options import JsonOption
from pointsman.cli.output import narrow_table, one_line, say
from pointsman.errors import DataError

if TYPE_CHECKING:
    from pointsman.data.check import FileCheck, RowCheck

app = typer.Typer(
    help="Prompt files: what is understood of them, and what they suffice for.",
    rich_markup_mode="rich",
    no_args_is_help=False,
)
_MOST_NAMES = 8  # categories and scripts in a cell
_MOST_ROWS = 20  # rows with remarks; --rows shows all


class Kind(StrEnum):
    behaviors = "behaviors"
    benign = "benign"
    borderline = "borderline"
    conversations = "conversations"


@app.callback()
def data() -> None:
    """Makes a group of the one verb."""


@app.command("check")
def check(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="CSV, TSV, JSONL, JSON, Parquet, or hub:owner/name.", show_default=False),
    ],
    kind: Annotated[
        Kind | None,
        typer.Option("--as", help="As which option of an audit; by its columns if left out.", show_default=False),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="USE=NAME", help="What a column is used for: goal=Question; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the splits.")] = 0,
    rows: Annotated[bool, typer.Option("--rows", help="Show every row, not only those with remarks.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say row by row what is understood of a prompt file. No prompt is shown, and no model is loaded.

    Exits with 2 where an audit would refuse the file.

    [bold]Examples[/bold]

    pointsman data check harmful.csv

    pointsman data check mine.tsv --column goal=Question --column target=Begin

    pointsman data check hub:JailbreakBench/JBB-Behaviors:behaviors:benign --as benign --json
    """
    from pointsman.data.check import check_file
    from pointsman.jobs.audit.columns import mapped_columns

    mapped = mapped_columns(column or (), ("behaviors",)).get("behaviors", {})
    found = check_file(file, None if kind is None else kind.value, mapped)
    splits, refused = _splits(found, seed)
    if as_json:
        _print_json(found, seed, splits, refused)
    else:
        _print(found, splits, refused, rows)
    if refused:
        say(f"pointsman: an audit refuses {found.path}: {refused}.")
        raise typer.Exit(DataError.exit_code)


def _splits(found: FileCheck, seed: int) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Prompts and source questions of every split, by job; whether that suffices, in words; why an audit refuses."""
    from pointsman.data.splits import cluster, split_together
    from pointsman.jobs.audit.plan import Audit
    from pointsman.jobs.audit.splitting import FEWEST_BENIGN, divided, divided_benign
    from pointsman.jobs.steer.enough import FEWEST_SOURCES

    refused, plan = found.refused, Audit(seed=seed)
    items: Any = found.items
    made: dict[str, dict[str, Any]] = {}
    audited: Sequence[Any] = items
    if not refused:
        try:
            if found.kind == "behaviors":
                audited = divided(items, plan)
            elif found.kind == "benign":
                audited = divided_benign(items, plan)
        except DataError as error:
            refused = str(error).rstrip(".")
    if not refused:
        made["audit"] = _counts(audited)
        tested = sum(item.split in (None, "test") for item in audited)
        said = f"{tested} tested" + ("" if tested >= 100 else ": fewer than 100, so intervals are wide")
        if found.kind == "benign" and all(item.split is None for item in audited):
            said += f"; fewer than {FEWEST_BENIGN} source questions: no placebo"
        if found.kind == "conversations":
            said += "; those of source questions that routers are ranked on are left out"
        made["audit"]["enough"] = said
        try:
            chosen = split_together({found.kind: items}, seed)
            made["steer"] = _counts([replace(item, split=chosen[cluster(item)]) for item in items])
            there = made["steer"]["discovery"]["sources"]
            few = f"{there} source questions to learn from; with those of its other files {FEWEST_SOURCES} are needed"
            made["steer"]["enough"] = few if there < FEWEST_SOURCES else "enough to learn from"
        except DataError as error:
            made["steer"] = {"enough": f"too few: {error.problem}"}
    return made, refused


def _counts(items: Sequence[Any]) -> dict[str, Any]:
    from pointsman.data.splits import SPLITS, cluster

    own = {split: [i for i in items if i.split == split or (i.split is None and split == "test")] for split in SPLITS}
    return {s: {"prompts": len(some), "sources": len({cluster(i) for i in some})} for s, some in own.items()}


def _facts(found: FileCheck) -> dict[str, Any]:
    from pointsman.data.splits import cluster

    rows = found.rows
    return {
        "rows": len(rows),
        "kept": sum(row.kept for row in rows),
        "left out": sum(not row.kept and not row.refused for row in rows),
        "refused": sum(bool(row.refused) for row in rows),
        "repeated": sum(any(r.startswith("repeats") for r in row.remarks) for row in rows),
        "long": sum(any(r.startswith("long") for r in row.remarks) for row in rows),
        "longest": max((row.characters for row in rows), default=0),
        "sources": len({cluster(item) for item in found.items}),
        "categories": dict(Counter(item.category for item in found.items if item.category).most_common()),
        "scripts": dict(Counter(row.script for row in rows if row.script).most_common()),
        "references": sum(bool(getattr(item, "reference", "")) for item in found.items),
    }


def _print_json(found: FileCheck, seed: int, splits: dict[str, Any], refused: str | None) -> None:
    said = {
        "schema": "pointsman.data-check/1", "ok": refused is None, "refused": refused, "file": found.path,
        "kind": found.kind, "format": found.format, "data_set": found.data_set, "columns": dict(found.columns),
        "seed": seed, **_facts(found), "splits": splits, "notes": list(found.notes),
    }  # fmt: skip
    said = {key.replace(" ", "_"): value for key, value in said.items()}
    print(json.dumps({**said, "each_row": [asdict(row) for row in found.rows]}, indent=2))


def _print(found: FileCheck, splits: dict[str, dict[str, Any]], refused: str | None, every: bool) -> None:
    from pointsman.data.check import USED_FOR

    known = f", columns of {found.data_set}" if found.data_set else ""
    print(one_line(f"{found.path}: {found.format}{known}; read as --{found.kind}"))
    narrow_table(
        ("column", "used for"),
        [(name, "not read" if use is None else f"{use}: {USED_FOR[use]}") for name, use in found.columns.items()],
    )
    facts = _facts(found)
    for name in ("categories", "scripts"):
        facts[name] = _named(facts[name])
    narrow_table(("", ""), [(name, f"{value:,}" if isinstance(value, int) else value) for name, value in facts.items()])
    if splits:
        narrow_table(
            ("job", "discovery", "validation", "test", "enough?"),
            [(job, *(_cell(each.get(s)) for s in ("discovery", "validation", "test")), each["enough"])
             for job, each in splits.items()],
        )  # fmt: skip
        print("prompts (source questions)")
    shown = [row for row in found.rows if every or row.refused or row.remarks]
    if shown:
        most = len(shown) if every else _MOST_ROWS
        narrow_table(
            ("row", "id", "characters", "understood"),
            [(row.place, row.id, f"{row.characters:,}" if row.id else "", _understood(row)) for row in shown[:most]],
        )
        if len(shown) > most:
            print(f"... and {len(shown) - most} more rows with remarks; --rows shows every row")
    for note in found.notes:
        print(one_line(f"Note: {note.rstrip('.')}."))
    if not refused:
        print("An audit takes this file.")


def _understood(row: RowCheck) -> str:
    return row.refused or "; ".join(row.remarks) or "kept"


def _cell(count: dict[str, int] | None) -> str:
    return f"{count['prompts']} ({count['sources']})" if count else ""


def _named(counts: dict[str, int]) -> str:
    names = [f"{name} {count}" for name, count in list(counts.items())[:_MOST_NAMES]]
    more = len(counts) - _MOST_NAMES
    return ", ".join(names) + (f" and {more} more" if more > 0 else "") or "none"
