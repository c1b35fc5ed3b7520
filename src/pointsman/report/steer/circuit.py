"""The expert circuit: which experts the mask moves, by how much, and whether other seeds find the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pointsman.report.geometry import Scale
from pointsman.report.steer.words import many
from pointsman.report.values import MISSING, NARROW, Node, count, plain, signed

LEFT, RIGHT = 5.5, 82.0  # percent: the cells
NORM_LEFT, NORM_RIGHT = 85.0, 99.0  # percent: the norms
TOP = 22.0
SHOWN = 12  # entries


@dataclass(frozen=True)
class Cell:
    """An entry of the mask; `x` in percent, `y` in pixels, `shade` between 0 and 1."""

    x: float
    y: float
    style: str
    shade: float
    title: str


@dataclass(frozen=True)
class Line:
    """A layer: its label if it has one, the width of its experts, the bar of its norm."""

    y: float
    label: str
    width: float
    bar: float
    title: str


@dataclass(frozen=True)
class Entry:
    layer: int
    expert: int
    value: str
    logits: str
    style: str
    word: str


def circuit(results: Node) -> dict[str, Any] | None:
    """The heat map, its entries, the norms per layer, and the stability; None if the method has no matrix."""
    node = results.get("circuit")
    if node is None:
        return None
    chosen = results.get("chosen")
    alpha = found.maybe() if chosen and (found := chosen.get("alpha")) else None
    matrix = _matrix(node["matrix"]) if node.get("matrix") else None
    sigma = [item.maybe() for item in found.rows()] if (found := node.get("sigma")) else []
    listed = [(item["layer"].integer(), item["expert"].integer(), item["value"].number()) for item in _entries(node)]
    listed.sort(key=lambda item: -abs(item[2]))
    norms = [item.number() for item in found.rows()] if (found := node.get("layers")) else []
    entries = [_entry(*item, alpha, sigma) for item in listed]
    return {
        "finding": _finding(node, listed),
        "map": _map(matrix, norms, alpha, sigma) if matrix else None,
        "entries": entries[:SHOWN],
        "more": entries[SHOWN:],
        "logits": any(entry.logits != MISSING for entry in entries),
        "stability": _stability(node.get("stability")),
    }


def _entries(node: Node) -> list[Node]:
    found = node.get("entries")
    return found.rows() if found else []


def _matrix(node: Node) -> list[list[float]]:
    return [[cell.number() for cell in row.rows()] for row in node.rows()]


def _logits(layer: int, value: float, alpha: float | None, sigma: list[float | None]) -> float | None:
    """What the entry adds to the router's logit: alpha x sigma_l x S."""
    spread = sigma[layer] if 0 <= layer < len(sigma) else None
    return None if alpha is None or spread is None else alpha * spread * value


def _entry(layer: int, expert: int, value: float, alpha: float | None, sigma: list[float | None]) -> Entry:
    added = _logits(layer, value, alpha, sigma)
    return Entry(
        layer, expert, signed(value, 2), signed(added, 2), *(("up", "raised") if value > 0 else ("down", "lowered"))
    )


def _finding(node: Node, entries: list[tuple[int, int, float]]) -> str:
    size, possible = node.get("size"), node.get("possible")
    number = size.integer() if size else len(entries)
    whole = possible.integer() if possible else 0
    if not number:
        return "The circuit is empty: the mask moves no expert."
    share = f" of {count(whole)} ({plain(100 * number / whole, 1)}{NARROW}%)" if whole else ""
    up = sum(value > 0 for *_, value in entries)
    layers = len({layer for layer, *_ in entries})
    said = f"The mask moves {count(number)}{share} experts"
    return said + (f", in {many(layers, 'layer')}: {up} raised, {len(entries) - up} lowered." if entries else ".")


def _map(
    matrix: list[list[float]], norms: list[float], alpha: float | None, sigma: list[float | None]
) -> dict[str, Any]:
    depth, widest = len(matrix), max((len(row) for row in matrix), default=0) or 1
    height = 22.0 if depth <= 16 else 14.0 if depth <= 32 else 9.0
    most = max((abs(value) for row in matrix for value in row), default=0.0)
    x = Scale(0, widest, LEFT, RIGHT)
    heaviest = max(norms, default=0.0)
    every = 1 if height >= 13 else 4
    cells, lines = [], []
    for layer, row in enumerate(matrix):
        y = TOP + layer * height
        for expert, value in enumerate(row):
            if value == 0:
                continue
            added = _logits(layer, value, alpha, sigma)
            title = f"layer {layer}, expert {expert}: {signed(value, 2)} σ"
            title += f", {signed(added, 2)} logits at α = {alpha:g}" if added is not None else ""
            shade = round(0.15 + 0.85 * math.sqrt(abs(value) / most), 3)
            cells.append(Cell(x(expert), y, "up" if value > 0 else "down", shade, title))
        norm = norms[layer] if layer < len(norms) else 0.0
        bar = (NORM_RIGHT - NORM_LEFT) * norm / heaviest if heaviest > 0 else 0.0
        lines.append(
            Line(
                y,
                str(layer) if layer % every == 0 else "",
                round(x(len(row)) - LEFT, 2),
                round(bar, 2),
                f"layer {layer}: norm {plain(norm, 2)}",
            )
        )
    step = next(size for size in (4, 8, 16, 32, 64, 128, 256, 512) if widest / size <= 10 or size == 512)
    return {
        "height": TOP + depth * height + 22,
        "bottom": TOP + depth * height,
        "cell": height,
        "width": round((RIGHT - LEFT) / widest, 4),
        "left": LEFT,
        "norm_left": NORM_LEFT,
        "cells": cells,
        "lines": lines,
        "experts": [(x(i + 0.5), str(i)) for i in range(0, widest, step)],
        "most": plain(most, 2),
        "norms": bool(norms),
    }


def _stability(node: Node | None) -> dict[str, Any]:
    if node is None:
        return {
            "said": "One seed of the method: whether another finds the same circuit was not measured.",
            "names": [],
            "rows": [],
        }
    mean, seeds, shared = node.get("mean"), node.get("seeds"), node.get("jaccard")
    names = [item.text() for item in seeds.rows()] if seeds else []
    table = [[plain(cell.maybe(), 2) for cell in row.rows()] for row in shared.rows()] if shared else []
    value = mean.maybe() if mean else None
    said = (
        f"Circuits of {many(len(names), 'seed')} of the method share {plain(100 * value, 0)}{NARROW}% of their "
        "entries (mean Jaccard overlap of pairs: common entries over all entries of either)."
        if value is not None
        else "The overlap between seeds could not be measured."
    )
    return {"said": said, "names": names, "rows": list(zip(names, table, strict=False))}
