"""Where marks go.  Horizontal coordinates are percents of a figure's width, vertical ones are pixels, so that
a figure stretches with the page while its type keeps its size.  Templates only place what is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pointsman.report.values import REDACTED, Rate


@dataclass(frozen=True)
class Scale:
    """A linear map from a domain to a range, clamped to the range."""

    start: float
    end: float
    at_start: float = 0.0
    at_end: float = 100.0

    def __call__(self, value: float) -> float:
        if self.end == self.start:
            return round(self.at_start, 2)
        share = min(max((value - self.start) / (self.end - self.start), 0.0), 1.0)
        return round(self.at_start + share * (self.at_end - self.at_start), 2)


@dataclass(frozen=True)
class Tick:
    at: float
    value: float


def ticks(scale: Scale, most: int = 5) -> list[Tick]:
    """Round values inside the domain, at most about `most` of them."""
    span = scale.end - scale.start
    if span <= 0:
        return [Tick(scale(scale.start), scale.start)]
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(scale.start / step - 1e-9)
    last = math.floor(scale.end / step + 1e-9)
    return [Tick(scale(i * step), i * step) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Bar:
    """A bar from zero with a whisker; all in percents of the width."""

    x: float
    width: float
    end: float
    low: float
    high: float


def bar(scale: Scale, value: float, low: float, high: float) -> Bar:
    zero, end = scale(0.0), scale(value)
    return Bar(min(zero, end), round(abs(end - zero), 2), end, scale(low), scale(high))


def bar_scale(values: Sequence[float]) -> Scale:
    """A domain that holds zero and every value, with room at the open end."""
    low, high = min([0.0, *values]), max([0.0, *values])
    if high == low:
        high = low + 1.0
    room = 0.04 * (high - low)
    return Scale(low - (room if low < 0 else 0.0), high + (room if high > 0 else 0.0))


def rate_bar(rate: Rate | None) -> Bar | None:
    """The bar of a rate on 0 to 100 %."""
    if rate is None or rate.rate is None:
        return None
    low, high = (rate.rate if edge is None else edge for edge in (rate.low, rate.high))
    return bar(Scale(0.0, 1.0), rate.rate, low, high)


@dataclass(frozen=True)
class Point:
    """A mark with a vertical whisker. `x` in percent, the others in pixels."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Series:
    """One line of the masking chart. `style` is a class of the style sheet, `line` an SVG path."""

    name: str
    style: str
    points: list[Point]
    line: str
    band: str = ""
    draws: tuple[Point, ...] = ()


def path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]]) -> str:
    return path([*upper, *reversed(lower)]) + " Z" if upper else ""


def steps(points: Sequence[tuple[float, float]]) -> str:
    """A staircase: each value holds until the next one."""
    walked: list[tuple[float, float]] = []
    for x, y in points:
        if walked:
            walked.append((x, walked[-1][1]))
        walked.append((x, y))
    return path(walked)


@dataclass(frozen=True)
class GridCell:
    x: float
    y: float
    shade: float
    title: str


@dataclass(frozen=True)
class Span:
    """A run of neighbouring tokens of one role."""

    x: float
    width: float
    name: str


@dataclass(frozen=True)
class GridLabel:
    x: float
    y: float
    text: str
    style: str = ""


@dataclass(frozen=True)
class Grid:
    """The route: layers (rising) x prompt tokens (left to right), in pixels."""

    width: float
    height: float
    left: float
    top: float
    cell_width: float
    cell_height: float
    columns: int
    rows: int
    cells: list[GridCell]
    layers: list[GridLabel]
    tokens: list[GridLabel]
    roles: list[Span]

    @property
    def right(self) -> float:
        return self.left + self.columns * self.cell_width

    @property
    def bottom(self) -> float:
        return self.top + self.rows * self.cell_height


GRID_LEFT = 44.0
GRID_ROOM = 690.0  # what the tokens may take at 1280 px before the figure scrolls


def grid(
    tokens: Sequence[str],
    roles: Sequence[str],
    layers: int,
    cells: Sequence[tuple[int, int, float, str]],
) -> Grid:
    """Place a route.

    Args:
        tokens: One label per prompt token.
        roles: Its role, one per token.
        layers: Number of MoE layers.
        cells: (layer, position, gain in nats, tooltip) of each accepted pair.
    """
    columns = len(tokens)
    width = min(max(GRID_ROOM / max(columns, 1), 12.0), 34.0)
    height = 20.0 if layers <= 24 else 12.0
    top = 24.0
    bottom = top + layers * height
    most = max((gain for _, _, gain, _ in cells), default=0.0)

    def y(layer: int) -> float:
        return bottom - (layer + 1) * height

    every = 1 if layers <= 24 else 4
    spans: list[Span] = []
    start = 0
    for i in range(1, columns + 1):
        if i == columns or roles[i] != roles[start]:
            spans.append(Span(GRID_LEFT + start * width, (i - start) * width, roles[start]))
            start = i
    longest = max((len(token) for token in tokens), default=0)
    return Grid(
        width=round(GRID_LEFT + columns * width + 8 + min(longest, 3) * 4, 1),
        height=round(bottom + 16 + min(longest, 16) * 5.6, 1),
        left=GRID_LEFT,
        top=top,
        cell_width=round(width, 3),
        cell_height=height,
        columns=columns,
        rows=layers,
        cells=[
            GridCell(
                round(GRID_LEFT + position * width, 2),
                y(layer),
                round(0.18 + 0.82 * math.sqrt(max(gain, 0.0) / most), 3) if most > 0 else 1.0,
                title,
            )
            for layer, position, gain, title in cells
        ],
        layers=[GridLabel(GRID_LEFT - 8, y(layer) + height / 2 + 4, str(layer)) for layer in range(0, layers, every)],
        tokens=[
            GridLabel(
                round(GRID_LEFT + (i + 0.5) * width, 2),
                bottom + 12,
                token,
                "redacted" if token == REDACTED else roles[i],
            )
            for i, token in enumerate(tokens)
        ],
        roles=spans,
    )


@dataclass(frozen=True)
class HeatCell:
    x: float
    y: float
    hit: bool
    own: bool
    title: str


@dataclass(frozen=True)
class Heat:
    """Routes (top to bottom) x prompts (left to right), in pixels."""

    width: float
    height: float
    left: float
    top: float
    size: float
    many: int
    cells: list[HeatCell]
    labels: list[tuple[float, str]]


HEAT_LEFT, HEAT_TOP = 46.0, 40.0
HEAT_ROOM = 300.0


def heat(matrix: Sequence[Sequence[bool]], names: Sequence[str]) -> Heat:
    """Place a square matrix.

    Args:
        matrix: Successes by route, then prompt. Shape: [m, m].
        names: Of the prompts that the routes were found for. Shape: [m].
    """
    many = len(names)
    size = min(max(HEAT_ROOM / max(many, 1), 9.0), 26.0)
    every = 1 if size >= 15 else 5
    return Heat(
        width=round(HEAT_LEFT + many * size + 4, 1),
        height=round(HEAT_TOP + many * size + 4, 1),
        left=HEAT_LEFT,
        top=HEAT_TOP,
        size=round(size, 2),
        many=many,
        cells=[
            HeatCell(
                round(HEAT_LEFT + column * size, 2),
                round(HEAT_TOP + row * size, 2),
                hit,
                row == column,
                f"route of {row + 1} ({names[row]}) on {column + 1} ({names[column]}): "
                + ("success" if hit else "no success"),
            )
            for row, line in enumerate(matrix)
            for column, hit in enumerate(line)
        ],
        labels=[(round((i + 0.5) * size, 2), str(i + 1)) for i in range(many) if every == 1 or (i + 1) % every == 0],
    )


@dataclass(frozen=True)
class Trajectory:
    """Log-probability of the target after each accepted pair."""

    height: int
    line: str
    end: Point
    threshold: float | None
    y_ticks: list[Tick]
    x_ticks: list[Tick]


def trajectory(values: Sequence[float], threshold: float | None, *, top: int = 22, bottom: int = 190) -> Trajectory:
    """A staircase over accepted pairs; position 0 is the prompt without any route."""
    shown = [*values, *([threshold] if threshold is not None else [])]
    low, high = min(shown), max(shown)
    room = max(0.06 * (high - low), 0.05)
    y = Scale(low - room, min(high + room, 0.0) if high <= 0 else high + room, bottom, top)
    x = Scale(0, max(len(values) - 1, 1), 7.0, 97.0)
    points = [(x(i), y(value)) for i, value in enumerate(values)]
    last = Point(points[-1][0], points[-1][1], points[-1][1], points[-1][1], f"{values[-1]:.2f}")
    return Trajectory(
        height=bottom + 38,
        line=steps(points),
        end=last,
        threshold=y(threshold) if threshold is not None else None,
        y_ticks=ticks(y, 4),
        x_ticks=[tick for tick in ticks(x, 8) if tick.value == int(tick.value)],
    )
