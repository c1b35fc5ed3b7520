"""The drawings that only pages of steering have, made of the elements of `plot`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pointsman.report import text
from pointsman.report.plot import (
    Scale,
    curve,
    drawing,
    element,
    fixed_drawing,
    horizontal,
    label_at,
    mark,
    path,
    share,
    share_axis,
    stretched,
    vertical,
)
from pointsman.runs.results import Limit
from pointsman.stats.auroc import Auroc
from pointsman.stats.calibration import Calibration
from pointsman.stats.rates import Rate

SHARES = Scale(0.0, 1.0)

# ---------------------------------------------------------------------- marks in the cells of tables


def _dot(y: float, value: float, low: float, high: float, style: str = "now") -> Markup:
    """A share as a dot with its interval."""
    line = element("line", x1=share(SHARES(low)), x2=share(SHARES(high)), y1=y, y2=y)
    return element("g", line, element("circle", cx=share(SHARES(value)), cy=y, r=4), class_=style)


def _link(start: float, end: float, y1: float, y2: float) -> Markup:
    return element("line", class_="link", x1=share(SHARES(start)), x2=share(SHARES(end)), y1=y1, y2=y2)


def before_over_after(before: Rate | None, after: Rate | None) -> Markup:
    """Two rates, each with its interval, on 0 to 100 %."""
    dots, scored = [], []
    for rate, y, style in ((before, 7, "was"), (after, 19, "now")):
        if rate is not None and rate.rate is not None:
            scored.append(rate.rate)
            dots.append(_dot(y, rate.rate, rate.low, rate.high, style))
    links = [_link(scored[0], scored[1], 7, 19)] if len(scored) == 2 else []
    return drawing(26, horizontal(13, class_="gridline"), *links, *dots)


def _key_dot(style: str) -> Markup:
    line = element("line", x1=2, x2=28, y1=7, y2=7)
    return mark(element("g", line, element("circle", cx=15, cy=7, r=4), class_=style))


BEFORE_OVER_AFTER = [(_key_dot("was"), "without the mask"), (_key_dot("now"), "with it")]
"""Legend of `before_over_after`."""


def auroc(found: Auroc, style: str) -> Markup:
    """An AUROC with its interval, beside chance."""
    dot = [] if found.value is None else [_dot(9, found.value, found.low, found.high, style)]
    return drawing(18, horizontal(9, class_="gridline"), vertical(50, 0, 18, class_="limit"), *dot)


HOLLOW = "M0 -5.5L5.5 0L0 5.5L-5.5 0Z"


def turned(surrogate: float | None, model: Rate) -> Markup:
    """The share of contexts whose verdict by the surrogate turns, and the share whose answer by the model does."""
    inside = [horizontal(11, class_="gridline")]
    if model.rate is not None:
        inside += [] if surrogate is None else [_link(model.rate, surrogate, 11, 11)]
        inside.append(_dot(11, model.rate, model.low, model.high))
    if surrogate is not None:
        diamond = element("path", class_="hollow", d=HOLLOW)
        inside.append(element("svg", diamond, x=share(SHARES(surrogate)), y=11))
    return drawing(22, *inside)


TURNED = [
    (mark(element("path", class_="hollow", d="M15 1.5L20.5 7L15 12.5L9.5 7Z")), "surrogate’s verdict turned"),
    (_key_dot("now"), "model’s answer turned"),
]
"""Legend of `turned`."""


def two_bars(without: float, under: float) -> Markup:
    """Two shares from 0 to 1 below each other."""
    return drawing(
        24,
        element("rect", class_="bar plain", x=0, y=3, height=8, width=share(SHARES(without))),
        element("rect", class_="bar good", x=0, y=13, height=8, width=share(SHARES(under))),
    )


TWO_BARS = [
    (mark(element("rect", class_=f"bar {style}", x=2, y=3, width=26, height=8)), name)
    for style, name in (("plain", "without the mask"), ("good", "with it"))
]
"""Legend of `two_bars`."""


@dataclass(frozen=True)
class LossAxis:
    """The common axis on which losses, in points, stand beside their limits; what is beyond is drawn at its ends."""

    x: Scale

    @staticmethod
    def of(limits: Sequence[Limit]) -> LossAxis:
        """An axis that shows every limit with room beyond it, and the intervals as far as three times the widest."""
        most = [limit.most for limit in limits if limit.most is not None]
        edges = [edge for limit in limits for edge in (limit.low, limit.high) if edge is not None]
        widest = max([0.02, *(3 * limit for limit in most)])
        right = min(max([0.02, *(1.6 * limit for limit in most), *map(abs, edges)]), widest)
        left = min(max([0.25 * right, *(-edge for edge in edges)]), right)
        return LossAxis(Scale(-100 * left, 100 * right, 1.0, 99.0))

    def strip(self, limit: Limit) -> Markup:
        """What was lost, with its interval; what is over the limit is shaded."""
        inside = []
        if limit.most is not None:
            edge = self.x(100 * limit.most)
            inside.append(element("rect", class_="forbidden", x=share(edge), y=0, width=share(100 - edge), height=24))
            inside.append(vertical(edge, 0, 24, class_="limit"))
        inside.append(vertical(self.x(0.0), 0, 24, class_="axis"))
        if limit.value is not None:
            low, high = (limit.value if edge is None else edge for edge in (limit.low, limit.high))
            inside.append(horizontal(12, class_="whisker", x1=self.x(100 * low), x2=self.x(100 * high)))
            inside.append(element("circle", class_="lost", cx=share(self.x(100 * limit.value)), cy=12, r=4))
        return drawing(24, *inside)

    @property
    def ruler(self) -> Markup:
        """Its labels."""
        return drawing(14, *(label_at(text.tick(value), share(self.x(value)), 11) for value in self.x.ticks()))


# ---------------------------------------------------------------------- the frontier

SHAPES = {
    "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
    "square": "M-4 -4H4V4H-4Z",
    "diamond": "M0 -5.6L5.6 0L0 5.6L-5.6 0Z",
    "up": "M0 -5.2L5 4H-5Z",
    "down": "M0 5.2L5 -4H-5Z",
    "plus": "M-1.7 -5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z",
    "cross": "M-5 0H5M0 -5V5",
}
"""Around the origin, in pixels."""
TOP, BOTTOM = 26, 346  # pixels; below come the labels of ticks
ROOT_TICKS = (0, 1, 2, 5, 10, 20, 40, 70, 100)


@dataclass(frozen=True)
class Mark:
    """A candidate in the frontier.

    Attributes:
        loss: Its worst, as a share; gains are rates.
        shape: Of `SHAPES`.
        style: A class of the style sheet.
        kept: It keeps every limit.
        title: All of it in words.
    """

    loss: float
    gain: Rate
    shape: str
    style: str
    kept: bool
    title: str


def key_mark(shape: str, style: str) -> Markup:
    """A mark of the frontier in its legend."""
    return mark(element("g", element("path", d=SHAPES[shape]), class_=style), box="-7 -7 14 14", class_="key-mark")


def frontier(marks: Sequence[Mark], base: Rate, chosen: Mark | None, *, of: str, label: str) -> Markup:
    """The gain of every candidate against its worst loss, on a root scale, with the best gain at every loss."""
    worst, least = max([0.05, *(m.loss for m in marks)]), min([0.0, *(m.loss for m in marks)])
    root, y = Scale(_root(least), _root(worst) * 1.03, 8.0, 97.0), Scale(0.0, 1.0, BOTTOM, TOP)

    def x(loss: float) -> float:
        return root(_root(loss))

    def place(m: Mark) -> tuple[float, float]:
        return x(m.loss), y(m.gain.rate or 0.0)

    def draw(m: Mark, more: str = "") -> Markup:
        style = f"{m.style} {'kept' if m.kept else 'broke'}{more}"
        shape = element("path", element("title", m.title), d=SHAPES[m.shape])
        return element("svg", shape, class_=style, x=share(x(m.loss)), y=place(m)[1])

    inside = [share_axis(y, of)]
    for points in ROOT_TICKS:
        if points <= 106 * worst:
            at = x(points / 100)
            inside += [vertical(at, TOP, BOTTOM, class_="gridline"), label_at(str(points), share(at), BOTTOM + 18)]
    inside.append(label_at("worst loss against no mask, points (root scale)", "52.5%", BOTTOM + 38))
    stairs = [(style, _stairs([place(m) for m in marks if m.style == style])) for style in ("learnt", "steermoe")]
    inside.append(stretched(BOTTOM + 44, *(curve(path(s), f"stairs {style}") for style, s in stairs if len(s) > 1)))
    # What keeps the limits is drawn over what does not.
    inside.append(element("g", *map(draw, sorted(marks, key=lambda m: m.kept)), class_="cloud"))
    if base.rate is not None:
        at, height = x(0.0), y(base.rate)
        cross = element(
            "path", element("title", f"without a mask: {text.full(base)}"), class_="origin", d=SHAPES["cross"]
        )
        inside += [
            horizontal(height, class_="threshold", x1=at, x2=97),
            element("svg", cross, x=share(at), y=height),
            label_at("no mask", "97%", height - 6, "end", "strong halo"),
        ]
    if chosen is not None:
        at, height = place(chosen)
        left = at > 70
        ring = element("circle", class_="ring", r=10)
        name = label_at("chosen", -15 if left else 15, 4, "end" if left else "start", "strong halo")
        inside += [
            vertical(at, y(chosen.gain.low), y(chosen.gain.high), class_="whisker"),
            draw(chosen, " picked"),
            element("svg", ring, name, x=share(at), y=height),
        ]
    return drawing(BOTTOM + 44, *inside, label=label)


def _root(loss: float) -> float:
    return math.copysign(math.sqrt(100 * abs(loss)), loss)


def _stairs(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The best gain at every loss: corners of the staircase, x in percent, y in pixels (smaller is better)."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted(places):
        if not corners:
            corners.append((x, y))
        elif y < corners[-1][1]:
            corners += [(x, corners[-1][1]), (x, y)]
    return corners


# ---------------------------------------------------------------------- the circuit


def heaviest(matrix: Sequence[Sequence[float]]) -> float:
    """The largest entry of a matrix, without its sign."""
    return max((abs(value) for row in matrix for value in row), default=0.0)


def circuit_legend(matrix: Sequence[Sequence[float]]) -> list[tuple[Markup, str]]:
    """Of `circuit`."""
    most = text.plain(heaviest(matrix), 2)
    return [*_diverging(f"{text.MINUS}{most}", f"+{most} σ"), *_squares("lowered", "raised")]


def _diverging(low: str, high: str) -> list[tuple[Markup, str]]:
    bar = '<span class="scale-end">{}</span><span class="diverging"></span><span class="scale-end">{}</span>'
    return [(Markup(bar).format(low, high), "")]


def _squares(down: str, up: str) -> list[tuple[Markup, str]]:
    return [
        (mark(element("rect", class_=f"heat {style}", x=-5, y=-5, width=10, height=10), box="-7 -7 14 14",
              class_="key-mark"), name)
        for style, name in (("down", down), ("up", up))
    ]  # fmt: skip


def circuit(
    matrix: Sequence[Sequence[float]],
    norms: Sequence[float],
    title: Callable[[int, int, float], str],
    *,
    label: str,
) -> Markup:
    """Entries of a steering matrix, layers from top to bottom, experts from left to right; norms at the right."""
    top, left, right, norms_left, norms_right = 22.0, 5.5, 82.0, 85.0, 99.0
    depth, widest = len(matrix), max(map(len, matrix), default=0) or 1
    height, every = _row_height(depth)
    bottom = top + depth * height
    most, longest = heaviest(matrix), max(norms, default=0.0)
    x = Scale(0, widest, left, right)
    lines, cells = [], []
    for layer, row in enumerate(matrix):
        y = top + layer * height
        back = share(x(len(row)) - left)
        lines.append(element("rect", class_="gridback", x=share(left), y=y, width=back, height=height - 1))
        if layer % every == 0:
            lines.append(label_at(str(layer), share(left - 1), y + height / 2 + 4, "end"))
        norm = norms[layer] if layer < len(norms) else 0.0
        said = element("title", f"layer {layer}: norm {text.plain(norm, 2)}")
        bar = share((norms_right - norms_left) * norm / longest if longest else 0.0)
        lines.append(
            element("rect", said, class_="bar plain", x=share(norms_left), y=y + 1, width=bar, height=height - 3)
        )
        cells += [
            element(
                "rect", element("title", title(layer, expert, value)), class_=f"heat {'up' if value > 0 else 'down'}",
                x=share(x(expert)), y=y, width=share((right - left) / widest), height=height - 1,
                fill_opacity=0.15 + 0.85 * math.sqrt(abs(value) / most),
            )
            for expert, value in enumerate(row)
            if value
        ]  # fmt: skip
    heads = [label_at("layer", 0, 14, None), label_at("norm", share(norms_left), 14, None)]
    return drawing(bottom + 22, *heads, *lines, *cells, *_expert_numbers(x, widest, bottom, 10), label=label)


def _row_height(depth: int) -> tuple[float, int]:
    """Pixels of a layer, and every how manieth of them is numbered."""
    return (22.0, 1) if depth <= 16 else (14.0, 1) if depth <= 32 else (9.0, 4)


def _expert_numbers(x: Scale, widest: int, bottom: float, most: int) -> list[Markup]:
    """Below a map of experts, at most about so many."""
    step = next(size for size in (4, 8, 16, 32, 64, 128, 256, 512) if widest / size <= most or size == 512)
    return [label_at(str(expert), share(x(expert + 0.5)), bottom + 15) for expert in range(0, widest, step)]


# ---------------------------------------------------------------------- what a steering moves

FAINTEST = 0.02  # of the largest change: what is less is not drawn, since nobody would see it
CELLS = 6000  # of all maps, at most, so that the page of a large model still opens


@dataclass(frozen=True)
class ChangeMap:
    """Changes of routing mass of one group of prompts.

    Attributes:
        name, beneath: Above it.
        matrix: Changes, as shares; layers from top to bottom, experts from left to right.
        label: All of it in words.
    """

    name: str
    beneath: str
    matrix: Sequence[Sequence[float]]
    label: str


def faintest(matrices: Sequence[Sequence[Sequence[float]]], most: float) -> float:
    """The share of `most` below which a change is not drawn: whole percents, so that it can be said."""
    shares = sorted((abs(change) / most for matrix in matrices for row in matrix for change in row), reverse=True)
    return FAINTEST if len(shares) <= CELLS else max(FAINTEST, math.ceil(100 * shares[CELLS]) / 100)


def change_maps(maps: Sequence[ChangeMap], most: float, least: float, title: Callable[[int, int, int], str]) -> Markup:
    """Several maps of one scale, from -`most` to `most`; beside each other, and below each other on phones.

    Args:
        least: Share of `most` that is drawn.
        title: Of a cell, by map, layer and expert.
    """
    return element("div", *(_change_map(n, one, most, least, title) for n, one in enumerate(maps)), class_="maps")


def _change_map(
    number: int, one: ChangeMap, most: float, least: float, title: Callable[[int, int, int], str]
) -> Markup:
    top, left, right = 42.0, 9.0, 100.0
    depth, widest = len(one.matrix), max(map(len, one.matrix), default=0) or 1
    height, every = _row_height(depth)
    bottom, x = top + depth * height, Scale(0, widest, left, right)
    lines = [label_at(one.name, share(left), 13, None, "strong"), label_at(one.beneath, share(left), 31, None)]
    for layer, row in enumerate(one.matrix):
        y = top + layer * height
        back = share(x(len(row)) - left)
        lines.append(element("rect", class_="gridback", x=share(left), y=y, width=back, height=height - 1))
        if layer % every == 0:
            lines.append(label_at(str(layer), share(left - 2), y + height / 2 + 4, "end"))
        lines += [
            element(
                "rect", element("title", title(number, layer, expert)), class_=f"heat {'up' if change > 0 else 'down'}",
                x=share(x(expert)), y=y, width=share((right - left) / widest), height=height - 1,
                fill_opacity=abs(change) / most,
            )
            for expert, change in enumerate(row)
            if abs(change) > least * most
        ]  # fmt: skip
    return drawing(bottom + 22, *lines, *_expert_numbers(x, widest, bottom, 6), label=one.label)


def change_legend(most: float) -> list[tuple[Markup, str]]:
    """Of `change_maps`."""
    ends = text.plain(100 * most, 1)
    return [*_diverging(f"{text.MINUS}{ends}", f"+{ends} points"), *_squares("selected less", "selected more")]


# ---------------------------------------------------------------------- the calibration


def calibration(found: Calibration, *, label: str) -> Markup:
    """Observed share against predicted probability; on the diagonal these are the same."""
    size, left, top = 190.0, 34.0, 8.0
    right, bottom = left + size, top + size
    x, y = Scale(0, 1, left, right), Scale(0, 1, bottom, top)
    most = max((held.n for held in found.bins), default=0)
    dots = [
        element(
            "circle", element("title", f"predicted {text.plain(held.p, 2)}, observed {text.plain(held.observed, 2)} "
                              f"(n = {held.n})"),
            class_="dot", cx=x(held.p), cy=y(held.observed), r=2.5 + 5.5 * math.sqrt(held.n / most),
        )
        for held in found.bins
        if held.p is not None and held.observed is not None and held.n > 0
    ]  # fmt: skip
    return fixed_drawing(
        right + 12,
        size + 46,
        element("rect", class_="gridback", x=left, y=top, width=size, height=size),
        element("line", class_="limit", x1=left, x2=right, y1=bottom, y2=top),
        *dots,
        *(label_at(text.tick(value), x(value), bottom + 16) for value in (0, 0.5, 1)),
        *(label_at(text.tick(value), left - 6, y(value) + 4, "end") for value in (0, 0.5, 1)),
        label_at("predicted", (left + right) / 2, bottom + 34),
        label=label,
    )
