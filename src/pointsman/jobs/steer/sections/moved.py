"""What the steering moves: which experts it makes the routers select, for which prompts and at which words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pointsman.data.objective import Objective
from pointsman.jobs.steer.moved import Group, GroupMoved, Moved, SwappedAt
from pointsman.jobs.steer.results import SteerResults
from pointsman.jobs.steer.sections import drawings
from pointsman.report import text
from pointsman.report.blocks import Block, Cell, Chart, Column, Finding, Heading, Reading, Row, Section, Table, Text
from pointsman.routing.intervention import Phase
from pointsman.stats.rates import Mean

NAMED = 3  # moves that are named in words
NAMES: dict[Objective, dict[Group, str]] = {
    "allow": {
        "scenario": "requests of the scenario",
        "restricted": "other restricted requests",
        "benign": "benign requests",
    },
    "defend": {"scenario": "conversations", "restricted": "restricted requests alone", "benign": "benign requests"},
}


def section(found: Moved, results: SteerResults, *, show_text: bool) -> Section:
    """Maps of all groups side by side, and tables of words (only with `show_text`) and of places."""
    names = NAMES[results.scenario.objective]
    changes = [found.change(group) for group in found.groups]
    most = max((float(np.abs(row).max()) for rows in changes for row in rows), default=0.0)
    blocks: list[Block] = [Finding(_finding(found, names, results.chosen.phase))]
    if most:
        blocks += [
            _maps(found, changes, most, names),
            Text(_largest(found, changes, names)),
            Heading("At which words"),
            *_words(found, names, show_text),
            Reading(
                "The first map strong and the others pale: the steering tells what the scenario is about from the "
                "rest. Maps alike: it moves whatever it reads, and if it tells anything apart, then at the words at "
                "which it swaps more than elsewhere.",
                "no word stands out: then it acts as a constant mask does. And routing that moves is no answer that "
                "changes: what the model says stands in the rates above.",
            ),
        ]
    aside = (
        "Routing mass of an expert: the share of all selections, at the tokens of the last user message, that fall on "
        "it. Prompts of the test split are read without the steering and under it."
    )
    return Section("moved", "What it moves", [aside], blocks)


def _finding(found: Moved, names: dict[Group, str], phase: Phase) -> str:
    swaps = any(group.swapped.mean for group in found.groups)
    if not swaps and phase == "decode":
        return "The steering acts while answers are written: at prompts, which this looks at, no expert is swapped."
    if not swaps:
        return "The steering swaps no expert at these prompts."
    said = [f"{_share(group.swapped)} at {names[group.group]}" for group in found.groups]
    return f"Of the experts that routers select, the steering swaps {text.listed(said)}."


def _share(mean: Mean) -> str:
    """``12.3 % [10.1, 14.5] (n = 50)``."""
    if mean.mean is None:
        return text.MISSING
    n = f"({text.rows(mean.n)})"
    if mean.low is None or mean.high is None:
        return f"{text.percent(mean.mean, 1)} {n}"
    low, high = max(mean.low, 0.0), min(mean.high, 1.0)
    return f"{text.percent(mean.mean, 1)} [{text.points(low)}, {text.points(high)}] {n}"


# ---------------------------------------------------------------------- the maps


def _maps(found: Moved, changes: Sequence[list[np.ndarray]], most: float, names: dict[Group, str]) -> Chart:
    masses = [(found.mass(group, group.without), found.mass(group, group.under)) for group in found.groups]

    def title(number: int, layer: int, expert: int) -> str:
        without, under = (float(mass[layer][expert]) for mass in masses[number])
        return f"layer {layer}, expert {expert}: {_move(without, under)}"

    maps = [
        drawings.ChangeMap(
            name=names[group.group].capitalize(),
            beneath=f"{text.many(group.swapped.n, 'prompt')}, {text.count(group.tokens)} tokens",
            matrix=[row.tolist() for row in change],
            label=f"{names[group.group].capitalize()}: changes of routing mass by layer and expert. "
            f"{_share(group.swapped)} of selected experts are swapped. {_strongest(found, group, change)}",
        )
        for group, change in zip(found.groups, changes, strict=True)
    ]
    least = drawings.faintest([one.matrix for one in maps], most)
    caption = (
        "Change of routing mass, in points of each layer’s mass. Rows are MoE layers from the first on, columns "
        f"experts; all maps have one scale, and changes below {text.percent(least)} of the largest are "
        "blank."
    )
    return Chart(drawings.change_maps(maps, most, least, title), caption, drawings.change_legend(most))


def _largest(found: Moved, changes: Sequence[list[np.ndarray]], names: dict[Group, str]) -> str:
    """The largest moves of the first group, and where the last one differs most from it."""
    first, last = found.groups[0], found.groups[-1]
    said = f"Largest moves at {names[first.group]}: {_strongest(found, first, changes[0])}"
    apart = _cells([a - b for a, b in zip(changes[0], changes[-1], strict=True)])[:NAMED]
    if apart:
        unlike = [
            f"layer {layer}, expert {expert}, {text.signed(100 * float(changes[0][layer][expert]), 1)} against "
            f"{text.signed(100 * float(changes[-1][layer][expert]), 1)} points"
            for layer, expert in apart
        ]
        said += f" Most unlike {names[last.group]}: {'; '.join(unlike)}."
    return said


def _cells(change: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Layers and experts that change, the largest change first."""
    cells = [(layer, expert) for layer, row in enumerate(change) for expert in np.flatnonzero(row).tolist()]
    return sorted(cells, key=lambda cell: -abs(float(change[cell[0]][cell[1]])))


def _strongest(found: Moved, group: GroupMoved, change: list[np.ndarray]) -> str:
    """The largest moves of a group, in words."""
    without, under = found.mass(group, group.without), found.mass(group, group.under)
    said = [
        f"layer {layer}, expert {expert}, {_move(float(without[layer][expert]), float(under[layer][expert]))}"
        for layer, expert in _cells(change)[:NAMED]
    ]
    return f"{'; '.join(said)}." if said else "Nothing moves."


def _move(without: float, under: float) -> str:
    """``+5.0 points (2.5 to 7.5 %)``."""
    return f"{text.signed(100 * (under - without), 1)} points ({text.points(without)} to {text.percent(under, 1)})"


# ---------------------------------------------------------------------- the words


def _words(found: Moved, names: dict[Group, str], show_text: bool) -> list[Block]:
    groups = [group.group for group in found.groups]
    rows: list[Row] = []
    if show_text:
        heads = {"The scenario’s words with most swaps": found.most, "With fewest": found.least}
        for head, words in heads.items():
            rows += _rows([replace(word, at=text.token(word.at)) for word in words], groups, head)
    rows += _rows(found.places, groups, "By place in the message")
    rows += _rows([found.everywhere], groups, "In all")
    columns = [Column("At"), *Column.rates(*(names[group].capitalize() for group in groups))]
    caption = "Share of selected experts that are swapped at a token, and how often it stands there (n)."
    blocks: list[Block] = [Table(columns, rows, caption, "compact narrow")]
    if not show_text and found.most:
        blocks.append(Text("Words are parts of prompts; a report with --show-text shows at which ones it acts most."))
    return blocks


def _rows(places: Sequence[SwappedAt], groups: Sequence[Group], head: str) -> list[Row]:
    found = []
    for number, place in enumerate(places):
        cells: list[Cell | str] = [place.at]
        for group in groups:
            here = place.by_group[group]
            share = text.MISSING if here.share is None else text.percent(here.share, 1)
            cells.append(Cell(share, beside=text.rows(here.n)) if here.n else text.MISSING)
        found.append(Row(cells, group="" if number else head))
    return found
