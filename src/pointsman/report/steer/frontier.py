"""What was tried on validation: the frontier of gain and loss, the chosen mask, and the gap to test."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pointsman.report.geometry import Point, Scale, Tick, path, rate_bar
from pointsman.report.steer.outcomes import LOSSES, Pair, common_n, pair
from pointsman.report.steer.words import Words, many, measure_name, method_name, points, settings_text
from pointsman.report.values import MISSING, NARROW, Node, Rate, plain

TOP, BOTTOM = 26, 346  # px; below it come the tick labels
LEFT, RIGHT = 8.0, 97.0  # percent
ROOT_TICKS = (0, 1, 2, 5, 10, 20, 40, 70, 100)

SHAPES = {
    "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
    "square": "M-4 -4H4V4H-4Z",
    "diamond": "M0 -5.6L5.6 0L0 5.6L-5.6 0Z",
    "up": "M0 -5.2L5 4H-5Z",
    "down": "M0 5.2L5 -4H-5Z",
}
"""SVG paths around the origin, in pixels."""

KINDS = {
    ("mascing", "surrogate"): ("circle", "mascing"),
    ("mascing", "on_policy"): ("square", "mascing"),
    ("mascing", "through_model"): ("diamond", "mascing"),
    ("mascing", ""): ("circle", "mascing"),
    ("steermoe", ""): ("up", "steermoe"),
    ("random", ""): ("down", "random"),
}
OTHER_KIND = ("circle", "random")


@dataclass(frozen=True)
class Mark:
    """A candidate in the figure: `x` in percent, `y` in pixels."""

    x: float
    y: float
    shape: str
    style: str
    title: str


@dataclass(frozen=True)
class Row:
    """A candidate in the table. `rates` are with whether they are over their limit; `broken` names those limits."""

    id: str
    name: str
    settings: str
    entries: str
    norm: str
    rates: list[tuple[Rate | None, bool]]
    loss: str
    seconds: str
    admissible: bool
    broken: str
    chosen: bool


def loss(record: Node, base: Node) -> tuple[str, float] | None:
    """The measure that suffers most against no mask, and by how much, as a share; None if none was measured."""
    found = []
    for key, worse in LOSSES.items():
        now, was = record.get(key), base.get(key)
        if now is None or was is None:
            continue
        a, b = now.rate().rate, was.rate().rate
        if a is not None and b is not None:
            found.append((key, worse * (a - b)))
    return max(found, key=lambda item: item[1]) if found else None


def _root(number: float) -> float:
    return math.copysign(math.sqrt(abs(number)), number)


def _kind(record: Node) -> tuple[str, str]:
    method, refinement = record.get("method"), record.get("refinement")
    key = (method.text() if method else "", refinement.text() if refinement else "")
    return KINDS.get(key) or KINDS.get((key[0], "")) or OTHER_KIND


def screened(record: Node) -> bool:
    """Whether a candidate was only asked what the model would say: its rates are not those of generated answers."""
    stage = record.get("stage")
    return stage is not None and stage.text() == "coarse" and record.get("admissible") is None


def chosen_of(results: Node) -> Node | None:
    """The chosen candidate among those tried."""
    found = results.get("candidates")
    rows = found.rows() if found else []
    chosen = results.get("chosen")
    name = chosen.get("id") if chosen else None
    rows = [row for row in rows if not screened(row)]
    marked = [row for row in rows if name is not None and row["id"].value == name.value]
    marked = marked or [row for row in rows if (flag := row.get("chosen")) and flag.truth()]
    return marked[0] if marked else None


def frontier(results: Node, words: Words) -> dict[str, Any]:
    """The figure, the finding, the table of all candidates, and the overfit gap."""
    found = results.get("candidates")
    every = found.rows() if found else []
    rows, coarse = [r for r in every if not screened(r)], [r for r in every if screened(r)]
    base, best = results.get("baseline_validation"), chosen_of(results)
    why = picked.get("why") if (picked := results.get("chosen")) else None
    return {
        "finding": _finding(rows, len(coarse), base, best, words),
        "why": why.text() if why else "",
        "figure": _figure(rows, base, best, words) if base is not None else None,
        "table": _table(rows, base, best, words),
        "screened": _table(coarse, None, None, words),
        "overfit": _overfit(results, words),
    }


def _admissible(record: Node) -> bool:
    flag = record.get("admissible")
    return bool(flag and flag.truth())


def _finding(rows: list[Node], coarse: int, base: Node | None, best: Node | None, words: Words) -> str:
    if not rows:
        return "No list of what was tried is in the results."
    kept = sum(map(_admissible, rows))
    said = f"Of {many(len(rows), 'setting')} that answered the validation prompts, {kept or 'none'} "
    said += f"keep{'s' if kept <= 1 else ''} every limit"
    said += f" ({coarse} more were only screened)." if coarse else "."
    if best is None:
        return said
    gain, lost = best["gain"].rate(), loss(best, base) if base else None
    was = f" (without a mask {base['gain'].rate().percent})" if base else ""
    chosen = f"{method_name(best)}, {settings_text(best)}".rstrip(", ")
    said += f" Chosen: {chosen}: {gain.short} {words.gain.lower()}{was}"
    if lost is not None:
        said += f", worst loss {points(max(lost[1], 0.0))} points"
        said += f" ({_lower(measure_name(lost[0], words))})" if lost[1] > 0 else ""
    said += "." if _admissible(best) else "; it does not keep every limit."
    return said


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _title(record: Node, lost: tuple[str, float] | None, words: Words) -> str:
    broken = record.get("broken")
    names = [measure_name(str(node.value), words) for node in broken.rows()] if broken else []
    parts = [
        f"{method_name(record)}, {settings_text(record)}".rstrip(", "),
        f"{words.gain.lower()} {record['gain'].rate().full}",
    ]
    if lost is not None:
        parts.append(f"worst change {points(lost[1])} points ({_lower(measure_name(lost[0], words))})")
    garbage = record.get("garbage")
    parts += [f"garbage {garbage.rate().percent}"] if garbage else []
    parts.append(f"breaks: {', '.join(map(_lower, names))}" if names else "keeps every limit")
    return "; ".join(parts)


def _figure(rows: list[Node], base: Node, best: Node | None, words: Words) -> dict[str, Any] | None:
    placed = [(row, lost) for row in rows if (lost := loss(row, base)) and row["gain"].rate().rate is not None]
    if not placed:
        return None
    worst = max([0.05, *(lost[1] for _, lost in placed)])
    least = min([0.0, *(lost[1] for _, lost in placed)])
    x = Scale(_root(100 * least), _root(100 * worst) * 1.03, LEFT, RIGHT)
    y = Scale(0.0, 1.0, BOTTOM, TOP)

    def at(lost: float) -> float:
        return x(_root(100 * lost))

    def mark(row: Node, lost: tuple[str, float]) -> Mark:
        shape, method = _kind(row)
        style = f"{method} {'kept' if _admissible(row) else 'broke'}"
        share = row["gain"].rate().rate or 0.0
        return Mark(at(lost[1]), y(share), SHAPES[shape], style, _title(row, lost, words))

    # What keeps the limits is drawn over what does not.
    placed.sort(key=lambda item: _admissible(item[0]))
    picked, whisker = None, None
    for row, lost in placed:
        if best is not None and row.path == best.path:
            picked, whisker = mark(row, lost), _whisker(row["gain"].rate(), y, at(lost[1]))
    gain = base["gain"].rate()
    used = dict.fromkeys(_kind(row) for row, _ in placed)
    names = {_kind(row): method_name(row) for row, _ in placed}
    return {
        "height": BOTTOM + 44,
        "bottom": BOTTOM,
        "marks": [mark(row, lost) for row, lost in placed],
        "chosen": picked,
        "whisker": whisker,
        "label_left": picked is not None and picked.x > 70,
        "base": Point(at(0.0), y(gain.rate), y(gain.rate), y(gain.rate), f"without a mask: {gain.full}")
        if gain.rate is not None
        else None,
        "stairs": [
            (style, path(walk))
            for style in ("mascing", "steermoe")
            if len(
                walk := _stairs((at(k[1]), y(r["gain"].rate().rate or 0.0)) for r, k in placed if _kind(r)[1] == style)
            )
            > 1
        ],
        "legend": [(SHAPES[shape], style, names[(shape, style)]) for shape, style in used],
        "both": len({_admissible(row) for row, _ in placed}) > 1,
        "x_ticks": [Tick(at(value / 100), value) for value in ROOT_TICKS if value <= 100 * worst * 1.06],
        "y_ticks": [(y(share), f"{100 * share:.0f}{NARROW}%") for share in (0, 0.25, 0.5, 0.75, 1)],
        "gain": words.gain.lower(),
    }


def _whisker(rate: Rate, y: Scale, x: float) -> Point:
    low, high = (rate.rate if edge is None else edge for edge in (rate.low, rate.high))
    return Point(x, y(rate.rate or 0.0), y(low or 0.0), y(high or 0.0), rate.full)


def _stairs(found: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The best gain at every loss: points of the staircase, x in percent, y in pixels (smaller is better)."""
    walk: list[tuple[float, float]] = []
    for x, y in sorted(found):
        if not walk:
            walk.append((x, y))
        elif y < walk[-1][1]:
            walk += [(x, walk[-1][1]), (x, y)]
    return walk


RATES = ("gain", "garbage", "benign", "benign_conversations", "over_refusal", "held")


def _table(rows: list[Node], base: Node | None, best: Node | None, words: Words) -> dict[str, Any]:
    """Candidates: the chosen one, then those that keep the limits, each by falling gain."""
    keys = [key for key in RATES if any(row.get(key) for row in rows)]
    heads = [words.gain if key == "gain" else measure_name(key, words) for key in keys]
    counts = [common_n(row.get(key) for row in rows) for key in keys]

    def order(row: Node) -> tuple[bool, bool, float]:
        return (not _is(row, best), not _admissible(row), -(row["gain"].rate().rate or 0.0))

    table = []
    for row in sorted(rows, key=order):
        lost = loss(row, base) if base else None
        broken = row.get("broken")
        over = [str(node.value) for node in broken.rows()] if broken else []
        seconds, entries, norm = (row.get(key) for key in ("seconds_per_answer", "entries", "norm1"))
        table.append(
            Row(
                id=row["id"].text(),
                name=method_name(row),
                settings=settings_text(row),
                entries=entries.text() if entries else MISSING,
                norm=plain(norm.maybe(), 1) if norm else MISSING,
                rates=[(node.rate() if (node := row.get(key)) else None, key in over) for key in keys],
                loss=points(lost[1]) if lost else MISSING,
                seconds=plain(seconds.maybe(), 2) if seconds else MISSING,
                admissible=_admissible(row),
                broken=", ".join(_lower(measure_name(key, words)) for key in over),
                chosen=_is(row, best),
            )
        )
    baseline = [node.rate() if (node := base.get(key)) else None for key in keys] if base else None
    return {"heads": list(zip(heads, counts, strict=True)), "rows": table, "baseline": baseline}


def _is(row: Node, best: Node | None) -> bool:
    return best is not None and row.path == best.path


def _overfit(results: Node, words: Words) -> dict[str, Any] | None:
    """The chosen mask where it was chosen and where it is scored."""
    node = results.get("overfit")
    both = [node.get(key) for key in ("validation", "test")] if node else [None, None]
    if node is None or both[0] is None or both[1] is None:
        return None
    found: Pair = pair("chosen mask", both[0], both[1])
    said = ""
    if found.before and found.after and found.before.rate is not None and found.after.rate is not None:
        gap = points(found.before.rate - found.after.rate)
        said = (
            f"{words.gain} on validation, where the mask was chosen: {found.before.full}; "
            f"on test: {found.after.full}. Overfit gap: {gap} points."
        )
    rates = [("validation", found.before, rate_bar(found.before)), ("test", found.after, rate_bar(found.after))]
    return {"rates": rates, "said": said}
