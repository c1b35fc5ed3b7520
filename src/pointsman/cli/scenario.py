"""``scenario init``, ``scenario list`` and ``scenario check``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointsman.cli.options import JsonOption
from pointsman.cli.output import one_line, say, show, write_yaml

if TYPE_CHECKING:
    from pointsman.data.scenario import Scenario
    from pointsman.data.types import Suite

app = typer.Typer(
    help="Scenarios: what a model is steered to do, what it may cost, and on which prompts.",
    rich_markup_mode="rich",
    no_args_is_help=False,
)


class Template(StrEnum):
    testbed = "testbed"
    real = "real"


@app.command("init")
def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The scenario to begin from; `scenario list` shows them.")
    ] = "multi_turn_defence",
    template: Annotated[
        Template,
        typer.Option(help="testbed: runs as it is. real: for your model, with your files."),
    ] = Template.testbed,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="NAME.yaml if left out.", show_default=False)] = None,
) -> None:
    """Write a scenario as a YAML file with comments, to be edited. Nothing is overwritten.

    [bold]Examples[/bold]

    pointsman scenario init

    pointsman scenario init mature_content --template real --out fiction.yaml
    """
    from pointsman.data.records import decode
    from pointsman.data.scenario import scenario_text
    from pointsman.data.templates import template as real_template

    found = real_template(name) if template is Template.real else scenario_text(name)
    text = decode(found) if isinstance(found, Path) else found
    file = out or Path(f"{name}.yaml")
    write_yaml(file, text, "--out", name)
    print(one_line(str(file)))
    if template is Template.real:
        say(f"Fill in the files below prompts, then run `pointsman scenario check {file}`.")


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the registered scenarios."""
    from pointsman.data.scenario import load_scenario, scenario_names

    found = {name: load_scenario(name) for name in scenario_names()}
    if as_json:
        print(json.dumps({"schema": "pointsman.scenarios/1", "scenarios": [s.to_json() for s in found.values()]}))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("scenario", "objective", "prompts", "description"):
        table.add_column(title, overflow="fold")
    for name, scenario in found.items():
        cells = (name, scenario.objective, scenario.suite or "files", scenario.description)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    show(table)


@app.command("check")
def check(
    scenario: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, or a name.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the splits.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Read a scenario and its prompts, and print how many there are in each split. No model is loaded.

    Exits with 2 and one line if something is wrong, or if `steer` would refuse it whatever the model says.

    [bold]Examples[/bold]

    pointsman scenario check multi_turn_defence

    pointsman scenario check fiction.yaml --json
    """
    from pointsman.data.scenario import load_scenario
    from pointsman.jobs.steer.enough import (
        limits_too_fine,
        limits_without_margin,
        margin_on,
        refuse_too_few,
        validation_of,
    )
    from pointsman.jobs.steer.plan import Steer

    loaded = load_scenario(scenario)
    suite = loaded.read(seed)
    refuse_too_few(loaded, suite)
    usual = Steer()
    doubts = limits_too_fine(loaded, suite, usual.validate)
    if usual.confidence is not None:
        margin = margin_on(loaded, validation_of(suite, usual.validate, seed), usual.confidence)
        doubts += limits_without_margin(loaded, margin)
    if as_json:
        checked = {"schema": "pointsman.scenario-check/1", "ok": True, "scenario": loaded.to_json(), "seed": seed}
        print(json.dumps({**checked, "splits": _counts(suite), "notes": [*suite.notes, *doubts]}, indent=2))
        return
    print(one_line(f"{loaded.name}: objective {loaded.objective}, suite {suite.name}, judge {suite.judge}"))
    show(_table(_counts(suite)))
    for note in (*suite.notes, *doubts):
        print(one_line(f"Note: {note.rstrip('.')}."))
    print(f"{_plan(loaded)} Everything needed is in order.")


def _counts(suite: Suite) -> dict[str, dict[str, dict[str, int]]]:
    """Prompts and source questions of every list that is asked, by split."""
    from pointsman.data.objective import FILES
    from pointsman.data.splits import SPLITS, by_split, cluster

    counts: dict[str, dict[str, dict[str, int]]] = {}
    for split in SPLITS:
        counts[split] = {}
        for name in FILES:
            items: Any = by_split(getattr(suite, name), split)
            if getattr(suite, name):
                counts[split][name] = {"prompts": len(items), "sources": len({cluster(i) for i in items})}
    return counts


def _table(counts: dict[str, dict[str, dict[str, int]]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="prompts (source questions)", caption_justify="left")
    table.add_column("prompts")
    for split in counts:
        table.add_column(split, justify="right")
    for name in next(iter(counts.values())):
        cells = (counts[split][name] for split in counts)
        table.add_row(name, *(f"{cell['prompts']} ({cell['sources']})" for cell in cells))
    return table


def _plan(scenario: Scenario) -> str:
    """What validation will try, in a sentence."""
    grid = scenario.grid
    return (
        f"Validation chooses among {_number(grid.refinements, 'refinement')}, {_number(grid.lambdas, 'lambda')}, "
        f"{_number(grid.alphas, 'alpha')} and {_number(grid.phases, 'phase')}."
    )


def _number(values: Sequence[object], noun: str) -> str:
    return f"{len(values)} {noun}{'' if len(values) == 1 else 's'}"
