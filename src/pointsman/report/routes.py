"""Unsafe routes: F-SOUR beside its controls, what else was searched, how routes transfer, and where they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pointsman.errors import RunError
from pointsman.report.geometry import Bar, Grid, Heat, Trajectory, grid, heat, rate_bar, trajectory
from pointsman.report.values import (
    MISSING,
    NARROW,
    REDACTED,
    Difference,
    Node,
    Rate,
    count,
    experts_text,
    plain,
    signed,
    tick_text,
)

TARGETS = {"affirmative": "affirmative", "content": "begins with content", "mixed": "some of each"}


@dataclass(frozen=True)
class RouteRow:
    """Answers under one kind of routes. `difference` is F-SOUR's best less this, on the same prompts."""

    name: str
    style: str
    asr: Rate
    bar: Bar | None
    difference: Difference | None
    any_compliance: Rate | None
    garbage: Rate | None


@dataclass(frozen=True)
class VariantRow:
    """One search of another kind; medians of pairs and of log p(target)."""

    name: str
    asr: Rate
    bar: Bar | None
    any_compliance: Rate
    garbage: Rate
    pairs: str
    before: str
    after: str


@dataclass(frozen=True)
class ExpertRow:
    layer: str
    expert: str
    count: str
    share: str
    expected: str
    times: str


@dataclass(frozen=True)
class ShareRow:
    name: str
    share: float
    percent: str


@dataclass(frozen=True)
class SearchRow:
    id: str
    category: str
    success: bool
    base_success: bool
    label: str
    restarts: str
    pairs: str
    before: str
    after: str
    forwards: str
    tokens: str


def fsour_section(results: Node, *, show_text: bool) -> dict[str, Any] | None:
    fsour = results.get("fsour")
    if fsour is None:
        return None
    rows = route_rows(fsour)
    pairs = fsour["pairs"]
    example = fsour.get("example")
    median, least, most = (pairs[key].text() for key in ("median", "min", "max"))
    restarts = fsour["settings"]["restarts"].text()
    return {
        "rows": rows,
        "controls": fsour.get("controls") is not None,
        "asr_base_failed": fsour["asr_base_failed"].rate(),
        "pairs": f"{median} (from {least} to {most})",
        "restarts": restarts,
        "phase": fsour["settings"]["phase"].text(),
        "targets": _targets(fsour),
        "gains": _gains(fsour),
        "transfer": _transfer(fsour),
        "layers": [_share(str(layer), node.maybe()) for layer, node in enumerate(fsour["layers"].rows())],
        "layer_most": max((node.maybe() or 0.0 for node in fsour["layers"].rows()), default=0.0),
        "roles": [_share(role, node.maybe()) for role, node in fsour["roles"].items()],
        "experts": [_expert(row) for row in fsour["experts"].rows()],
        "behaviours": [_search(row) for row in fsour["behaviours"].rows()],
        "example": _example(fsour, example, show_text=show_text) if example else None,
        "finding": _finding(rows, median),
    }


def route_rows(fsour: Node) -> list[RouteRow]:
    """F-SOUR, its controls, and no route at all."""
    restarts = fsour["settings"]["restarts"].text()
    rows = [
        _row(f"F-SOUR, best of {restarts}", "attack", fsour, "asr"),
        _row("F-SOUR, first search", "attack", fsour, "asr_at_1", whole=False),
    ]
    controls = fsour.get("controls")
    if controls is not None:
        random, natural = controls["random"], controls["natural"]
        rows += [
            _row(f"random routes, best of {restarts}", "random", random, "asr", fsour["difference_random"]),
            _row("random routes, first draw", "random", random, "asr_at_1", whole=False),
            _row("natural top\u2011k forced", "natural", natural, "asr", fsour["difference_natural"]),
        ]
    return [*rows, _row("no route", "none", fsour, "base", fsour["difference_base"], whole=False)]


def _row(
    name: str, style: str, node: Node, key: str, difference: Node | None = None, *, whole: bool = True
) -> RouteRow:
    asr = node[key].rate()
    return RouteRow(
        name=name,
        style=style,
        asr=asr,
        bar=rate_bar(asr),
        difference=difference.difference() if difference else None,
        any_compliance=node["any_compliance"].rate() if whole else None,
        garbage=node["garbage"].rate() if whole else None,
    )


def _finding(rows: list[RouteRow], median: str) -> str:
    said = f"With a route of its own, {rows[0].asr.short} of the prompts get what the model should refuse"
    random = next((row for row in rows if row.style == "random"), None)
    if random is not None:
        said += f"; the best of as many random routes reaches {random.asr.short}"
    return f"{said}. The median route forces {median} pairs of layer and token."


def _search(row: Node) -> SearchRow:
    return SearchRow(
        id=row["id"].text(),
        category=row["category"].text(),
        success=row["success"].truth(),
        base_success=row["base_success"].truth(),
        label=row["label"].text(),
        restarts=row["restarts"].text(),
        pairs=row["pairs"].text(),
        before=plain(row["log_prob_before"].maybe(), 2),
        after=plain(row["log_prob_after"].maybe(), 2),
        forwards=count(row["forwards"].maybe()),
        tokens=count(row["tokens"].maybe()),
    )


def _variant(name: str, row: Node) -> VariantRow:
    asr = row["asr_at_1"].rate()
    return VariantRow(
        name=name,
        asr=asr,
        bar=rate_bar(asr),
        any_compliance=row["any_compliance"].rate(),
        garbage=row["garbage"].rate(),
        pairs=row["pairs"].text(),
        before=plain(row["log_prob_before"].maybe(), 2),
        after=plain(row["log_prob_after"].maybe(), 2),
    )


def _targets(fsour: Node) -> list[VariantRow]:
    """Searches with other targets; a target is told by its number and kind."""
    found = fsour.get("targets")
    rows = found.rows() if found else []
    return [
        _variant(
            "the target proper"
            if row["number"].integer() == 0
            else f"other target {row['number'].text()}: {TARGETS.get(row['target'].text(), row['target'].text())}",
            row,
        )
        for row in rows
    ]


def _gains(fsour: Node) -> list[VariantRow]:
    """Searches with a higher price on a pair."""
    found = fsour.get("min_gain")
    rows = found.rows() if found else []
    return [
        _variant("any gain" if (least := row["min_gain"].number()) < 1e-6 else f"{tick_text(least)}{NARROW}nats", row)
        for row in rows
    ]


def _transfer(fsour: Node) -> dict[str, Any] | None:
    found = fsour.get("transfer")
    if found is None:
        return None
    ids = [node.text() for node in found["ids"].rows()]
    matrix = [[cell.truth() for cell in row.rows()] for row in found["matrix"].rows()]
    if len(matrix) != len(ids) or any(len(row) != len(ids) for row in matrix):
        raise RunError(
            f"results.json cannot be rendered: `{found.path}.matrix` has not one row and column for each of its ids",
            "Render it with the Pointsman version that wrote it, or run `pointsman audit` again",
        )
    placed: Heat = heat(matrix, ids)
    kept = found["pairs_kept"].number()
    own, others = found["asr_own"].rate(), found["asr_others"].rate()
    return {
        "heat": placed,
        "own": own,
        "others": others,
        "own_bar": rate_bar(own),
        "others_bar": rate_bar(others),
        "ids": list(enumerate(ids, start=1)),
        "kept": f"{100 * kept:.0f}{NARROW}%",
        "finding": f"Replayed on another prompt, a route’s pairs at template tokens (median {100 * kept:.0f}{NARROW}% "
        f"of them) succeed on {others.short}, and on the prompt they were found for on {own.short}.",
    }


def _expert(row: Node) -> ExpertRow:
    share, expected = row["share"].number(), row["expected"].number()
    return ExpertRow(
        layer=row["layer"].text(),
        expert=row["expert"].text(),
        count=row["count"].text(),
        share=f"{100 * share:.1f}",
        expected=f"{100 * expected:.1f}",
        times=f"{plain(share / expected, 1)} ×" if expected > 0 else MISSING,
    )


def _share(name: str, share: float | None) -> ShareRow:
    share = share or 0.0
    return ShareRow(name, round(100 * share, 2), f"{100 * share:.0f}")


def _example(fsour: Node, example: Node, *, show_text: bool) -> dict[str, Any]:
    roles = [role.text() for role in example["roles"].rows()]
    texts = [_token(token.text()) for token in example["tokens"].rows()]
    cells = example["cells"].rows()
    layers = example["layers"].integer()
    _fits(roles, texts, cells, layers, example)
    # Only tokens that the chat template wrote are ours to show.
    shown = [text if show_text or role == "template" else REDACTED for text, role in zip(texts, roles, strict=True)]
    placed: Grid = grid([_clip(text) for text in shown], roles, layers, [_cell(cell, shown) for cell in cells])
    values = [value for node in example["trajectory"].rows() if (value := node.maybe()) is not None]
    name = example["id"].text()
    before = next(
        (row["log_prob_before"].maybe() for row in fsour["behaviours"].rows() if row["id"].text() == name),
        None,
    )
    if before is not None and len(values) == len(cells):
        values = [before, *values]
    threshold = example["log_tau"].maybe()
    course: Trajectory | None = trajectory(values, threshold) if values else None
    gains = [cell["gain"].maybe() or 0.0 for cell in cells]
    return {
        "id": name,
        "grid": placed,
        "pairs": len(cells),
        "tokens": len(texts),
        "possible": count(len(texts) * layers),
        "layers": layers,
        "redacted": not show_text,
        "gain_most": plain(max(gains, default=0.0), 2),
        "trajectory": course,
        "before": plain(values[0], 2) if values else MISSING,
        "after": plain(values[-1], 2) if values else MISSING,
        "threshold": plain(threshold, 2),
        "cells": [
            (
                cell["layer"].text(),
                cell["position"].text(),
                shown[cell["position"].integer()],
                experts_text(cell["experts"]),
                signed(cell["gain"].maybe(), 2),
            )
            for cell in cells
        ],
    }


def _fits(roles: list[str], tokens: list[str], cells: list[Node], layers: int, example: Node) -> None:
    fits = len(roles) == len(tokens) and all(
        0 <= cell["layer"].integer() < layers and 0 <= cell["position"].integer() < len(tokens) for cell in cells
    )
    if not fits:
        raise RunError(
            f"results.json cannot be rendered: `{example.path}` has pairs outside its layers or tokens",
            "Run `pointsman resume` on the folder again, or report this as a bug",
        )


def _cell(cell: Node, tokens: list[str]) -> tuple[int, int, float, str]:
    layer, position = cell["layer"].integer(), cell["position"].integer()
    gain = cell["gain"].maybe() or 0.0
    experts = experts_text(cell["experts"])
    title = f"layer {layer}, token {position} “{tokens[position]}”: experts {experts}; {signed(gain, 2)} nats"
    return layer, position, gain, title


def _token(text: str) -> str:
    """White space made visible."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    return shown or "∅"


def _clip(text: str, most: int = 14) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
