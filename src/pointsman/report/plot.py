"""All drawings: SVG, made of numbers.

Horizontal positions are percents of a drawing's width, vertical ones are pixels, so that it stretches with the page
while its type keeps its size. Colours are classes of the style sheet. What `element` makes is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pointsman.report import text
from pointsman.report.blocks import Bar

# ---------------------------------------------------------------------- elements


def element(tag: str, /, *inside: str, **attributes: str | float | None) -> Markup:
    """An element; its text and attributes are escaped, and what is Markup already is kept.

    ``class_`` is written without its underscore, any other as a hyphen; an attribute that is None is left out.
    """
    said = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value if isinstance(value, str) else _written(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{said}>{Markup('').join(inside)}</{tag}>") if inside else Markup(f"<{tag}{said}/>")


def _written(number: float) -> str:
    return f"{round(number, 3):.12g}"


def share(at: float) -> str:
    """A position as a percent of the width."""
    return f"{_written(at)}%"


def drawing(height: float, *inside: str, label: str = "") -> Markup:
    """As wide as its place; without a label it is decorative, since its numbers stand beside it."""
    if label:
        return element("svg", *inside, width="100%", height=height, role="img", aria_label=label)
    return element("svg", *inside, width="100%", height=height, aria_hidden="true", focusable="false")


def fixed_drawing(width: float, height: float, *inside: str, label: str) -> Markup:
    """As wide as it is, in pixels."""
    box = f"0 0 {_written(width)} {_written(height)}"
    return element(
        "svg", *inside, class_="fixed", width=width, height=height, viewBox=box, role="img", aria_label=label
    )


def stretched(height: float, *inside: str, class_: str | None = None) -> Markup:
    """A part of a drawing in which x runs from 0 to 100, for paths, which know no percents."""
    return element(
        "svg", *inside, x=0, y=0, width="100%", height=height, viewBox=f"0 0 100 {_written(height)}",
        preserveAspectRatio="none", class_=class_,
    )  # fmt: skip


def mark(*inside: str, box: str = "0 0 30 14", class_: str | None = None) -> Markup:
    """A small drawing that a legend explains."""
    return element("svg", *inside, viewBox=box, class_=class_, aria_hidden="true", focusable="false")


def horizontal(y: float, *, class_: str, x1: float = 0.0, x2: float = 100.0) -> Markup:
    """A horizontal line."""
    return element("line", class_=class_, x1=share(x1), x2=share(x2), y1=y, y2=y)


def vertical(x: float, y1: float, y2: float, *, class_: str | None = None, width: float | None = None) -> Markup:
    """A vertical line."""
    return element("line", class_=class_, x1=share(x), x2=share(x), y1=y1, y2=y2, stroke_width=width)


def label_at(said: str, x: str | float, y: float, anchor: str | None = "middle", class_: str | None = None) -> Markup:
    """A label of a drawing."""
    return element("text", said, class_=class_, x=x, y=y, text_anchor=anchor)


def path(points: Iterable[tuple[float, float]]) -> str:
    """The ``d`` of straight lines through points."""
    joined = " L".join(f"{_written(x)} {_written(y)}" for x, y in points)
    return f"M{joined}" if joined else ""


def steps(points: Iterable[tuple[float, float]]) -> str:
    """The ``d`` of a staircase: each value holds until the next one."""
    walked: list[tuple[float, float]] = []
    for x, y in points:
        if walked:
            walked.append((x, walked[-1][1]))
        walked.append((x, y))
    return path(walked)


def curve(d: str, class_: str | None = None) -> Markup:
    """A path in a `stretched` part whose line keeps its width."""
    return element("path", class_=class_, d=d, vector_effect="non-scaling-stroke")


# ---------------------------------------------------------------------- scales


@dataclass(frozen=True)
class Scale:
    """A linear map from a domain to a range, clamped to the range; by default to percents of the width."""

    start: float
    end: float
    at_start: float = 0.0
    at_end: float = 100.0

    def __call__(self, value: float) -> float:
        if self.end == self.start:
            return round(self.at_start, 2)
        part = min(max((value - self.start) / (self.end - self.start), 0.0), 1.0)
        return round(self.at_start + part * (self.at_end - self.at_start), 2)

    @staticmethod
    def of_bars(values: Iterable[float]) -> Scale:
        """A domain that holds zero and every value, with room at the open end."""
        shown = [0.0, *values]
        low, high = min(shown), max(shown)
        high = low + 1.0 if high == low else high
        room = 0.04 * (high - low)
        return Scale(low - (room if low < 0 else 0.0), high + (room if high > 0 else 0.0))

    def ticks(self, most: int = 5) -> list[float]:
        """Round values inside the domain, at most about `most` of them."""
        span = self.end - self.start
        if span <= 0:
            return [self.start]
        rough = span / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first, last = math.ceil(self.start / step - 1e-9), math.floor(self.end / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def share_axis(y: Scale, of: str) -> Markup:
    """Lines at 0 to 100 %, with labels; the last says `of` what."""
    said = Markup("")
    for part in QUARTERS:
        said += horizontal(y(part), class_="gridline" if part else "axis")
        said += label_at(text.percent(part) + (f" {of}" if part == 1 else ""), 0, y(part) - 5, None)
    return said


# ---------------------------------------------------------------------- bars, in tables and cards


def bar(shown: Bar, height: float = 18, thickness: float = 8, title: str = "") -> Markup:
    """A bar from zero with its whisker; decorative, because its numbers stand beside it."""
    return drawing(height, bar_inside(shown, height / 2, thickness, title))


def bar_inside(shown: Bar, middle: float, thickness: float, title: str = "") -> Markup:
    """A bar with its whisker, as part of a drawing."""
    x = Scale(shown.start, shown.end)
    zero, end = x(0.0), x(shown.value)
    inside = [element("title", title)] if title else []
    body = element(
        "rect", *inside, class_=f"bar {shown.style}", x=share(min(zero, end)), y=middle - thickness / 2,
        width=share(abs(end - zero)), height=thickness,
    )  # fmt: skip
    if shown.low is None or shown.high is None:
        return body
    return body + whisker(x(shown.low), x(shown.high), middle)


def whisker(low: float, high: float, y: float) -> Markup:
    """A horizontal interval with its ends."""
    return horizontal(y, class_="whisker", x1=low, x2=high) + Markup("").join(
        vertical(end, y - 3, y + 3, class_="whisker") for end in (low, high)
    )


def card_bar(shown: Bar, label: str) -> Markup:
    """The bar of a key rate, on a track from 0 to 100 %."""
    return drawing(16, horizontal(8, class_="track"), bar_inside(shown, 8, 6), label=label)


def share_bar(part: float, style: str = "plain") -> Markup:
    """A share from 0 to 1 as a bar; decorative."""
    at = share(Scale(0.0, 1.0)(part))
    return drawing(12, element("rect", class_=f"bar {style}", x=0, y=2, height=8, width=at))


DIAMOND = "M0 -5L5 0L0 5L-5 0Z"


def ruler(x: Scale) -> Markup:
    """The labels of a scale, in the head of a column of bars; on phones only that of zero and one end have room."""
    ticks = x.ticks()
    digits = next(d for d in range(9) if all(abs(round(v, d) - v) < 1e-9 * (1 + abs(v)) for v in ticks) or d == 8)
    written = [(text.plain(value, digits), x(value)) for value in ticks]
    end = -1 if ticks[-1] > 0 else 0
    said = [
        label_at(
            label, share(at), 11, "start" if at < 4 else "end" if at > 97 else "middle",
            class_=None if float(round(ticks[n], digits)) == 0 or n == end % len(ticks) else "between",
        )
        for n, (label, at) in enumerate(written)
    ]  # fmt: skip
    return drawing(14, *said)


def ruled_bar(
    shown: Bar, x: Scale, *, label: str, title: str, beside: tuple[float, str] | None = None, height: float = 14
) -> Markup:
    """A bar over the lines of a `ruler`; `beside` is a second value on the same scale, with its title, as a diamond."""
    inside = [vertical(x(value), -6, height + 6, class_="gridline") for value in x.ticks()]
    inside.append(bar_inside(shown, height / 2, height - 4, title))
    if beside is not None:
        diamond = element("path", element("title", beside[1]), class_="placebo", d=DIAMOND)
        turned = element("svg", element("g", diamond, transform=f"translate(0 {_written(height / 2)})"),
                         x=share(x(beside[0])), y=0, width=1, height=height)  # fmt: skip
        inside.append(turned)
    return drawing(height, *inside, label=label)


# ---------------------------------------------------------------------- lines


@dataclass(frozen=True)
class Point:
    """A share with its interval; `title` says it in words."""

    x: float
    value: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        style: A class of the style sheet; ``attack`` is emphasised.
        origin: The share at 0 from which line and band begin without a mark of their own.
        band: (x, lowest, highest) of what lies behind the points.
        dots: (x, share, title) of each that the band spans.
    """

    name: str
    style: str
    points: Sequence[Point]
    origin: float | None = None
    band: Sequence[tuple[float, float, float]] = ()
    dots: Sequence[tuple[float, float, str]] = ()

    @property
    def key(self) -> Markup:
        """Its mark in the legend."""
        band = [element("rect", class_=f"band {self.style}", width=30, height=14)] if self.band else []
        line = element("g", element("path", d="M0 7 L30 7"), class_=self.style)
        dot = element("g", element("circle", class_="mark", cx=15, cy=7, r=4), class_=self.style)
        return mark(*band, element("g", line, class_="lines"), dot)


TOP, BOTTOM = 24.0, 284.0  # pixels; below come the labels of ticks
ASIDE = 1.3  # percent between the marks of several lines at one place


def line_chart(lines: Sequence[Line], ticks: Sequence[int], *, of: str, x_label: str, label: str) -> Markup:
    """Shares against a number, with whiskers, and bands of draws; the last line is drawn over the others."""
    x, y = Scale(0, max([1, *ticks]), 10.0, 95.0), Scale(0.0, 1.0, BOTTOM, TOP)
    height = BOTTOM + 44
    bands, curves, marks = Markup(""), Markup(""), Markup("")
    for number, line in enumerate(lines):
        aside = 0.0 if line.style == "attack" else ASIDE * (number // 2 + 1) * (1 if number % 2 == 0 else -1)
        begin = [] if line.origin is None else [(x(0), y(line.origin))]
        at = [round(x(point.x) + (aside if point.x else 0.0), 2) for point in line.points]
        if line.band:
            upper = [*begin, *((x(n), y(high)) for n, _, high in line.band)]
            lower = [*begin, *((x(n), y(low)) for n, low, _ in line.band)]
            bands += element("path", class_=f"band {line.style}", d=f"{path([*upper, *reversed(lower)])} Z")
        walk = [*begin, *((a, y(p.value)) for a, p in zip(at, line.points, strict=True))]
        curves += element("g", curve(path(walk)), class_=line.style)
        strong = line.style == "attack"
        drawn = [
            element("circle", element("title", said), class_="draw", cx=share(x(n)), cy=y(part), r=2)
            for n, part, said in line.dots
        ]
        for a, p in zip(at, line.points, strict=True):
            drawn.append(vertical(a, y(p.low), y(p.high), width=2 if strong else 1))
            drawn.append(
                element("circle", element("title", p.title), class_="mark", cx=share(a), cy=y(p.value),
                        r=5 if strong else 3.5)
            )  # fmt: skip
        marks += element("g", *drawn, class_=line.style) if drawn else ""
    return drawing(
        height,
        share_axis(y, of),
        stretched(height, bands, curves, class_="lines"),
        marks,
        *(label_at(str(n), share(x(n)), BOTTOM + 19) for n in ticks),
        label_at(x_label, "52.5%", BOTTOM + 38),
        label=label,
    )


def trajectory(values: Sequence[float], threshold: float, *, x_label: str, label: str) -> Markup:
    """A staircase; position 0 is where it begins, and `threshold` where it may end."""
    top, bottom, height = 22.0, 190.0, 228.0
    low, high = min(*values, threshold), max(*values, threshold)
    room = max(0.06 * (high - low), 0.05)
    y = Scale(low - room, min(high + room, 0.0) if high <= 0 else high + room, bottom, top)
    x = Scale(0, max(len(values) - 1, 1), 7.0, 97.0)
    points = [(x(i), y(value)) for i, value in enumerate(values)]
    axis = [horizontal(y(at), class_="gridline") + label_at(text.tick(at), 0, y(at) - 4, None) for at in y.ticks(4)]
    stop = y(threshold)
    return drawing(
        height,
        *axis,
        horizontal(stop, class_="threshold"),
        label_at(f"stop at {text.plain(threshold, 2)}", "7%", stop - 5, None),
        stretched(height, element("g", curve(steps(points)), class_="attack"), class_="lines"),
        element("circle", class_="attack mark", cx=share(points[-1][0]), cy=points[-1][1], r=4),
        *(label_at(str(int(n)), share(x(n)), height - 20) for n in x.ticks(8) if n == int(n)),
        label_at(x_label, "52%", height - 1),
        label=label,
    )


# ---------------------------------------------------------------------- grids, in pixels


ROLES = ("template", "content", "last")


@dataclass(frozen=True)
class Pair:
    """A forced pair of layer and token, with its gain in nats."""

    layer: int
    position: int
    gain: float
    title: str


def route(tokens: Sequence[str], roles: Sequence[str], layers: int, pairs: Sequence[Pair], *, label: str) -> Markup:
    """Layers (rising) by tokens (left to right); the stronger a square, the more its pair gained."""
    left, top = 44.0, 24.0
    width = min(max(690.0 / max(len(tokens), 1), 12.0), 34.0)  # 690 pixels fit beside the heading of a section
    height, every = (20.0, 1) if layers <= 24 else (12.0, 4)
    right, bottom = left + len(tokens) * width, top + layers * height
    most = max((pair.gain for pair in pairs), default=0.0)

    def y(layer: int) -> float:
        return bottom - (layer + 1) * height

    rules = [(x, x, top, bottom) for x in (left + i * width for i in range(1, len(tokens)))]
    rules += [(left, right, at, at) for at in (top + i * height for i in range(1, layers))]
    longest = max(map(len, tokens), default=0)
    return fixed_drawing(
        right + 8 + min(longest, 3) * 4,
        bottom + 16 + min(longest, 16) * 5.6,
        element("rect", class_="gridback", x=left, y=top, width=right - left, height=bottom - top),
        *(element("line", class_="gridrule", x1=a, x2=b, y1=c, y2=d) for a, b, c, d in rules),
        *(
            element(
                "rect", element("title", p.title), class_="cellshade", x=left + p.position * width, y=y(p.layer),
                width=width, height=height,
                fill_opacity=0.18 + 0.82 * math.sqrt(max(p.gain, 0.0) / most) if most > 0 else 1.0,
            )
            for p in pairs
        ),
        *(label_at(str(n), left - 8, y(n) + height / 2 + 4, "end") for n in range(0, layers, every)),
        _upright("layer", (top + bottom) / 2),
        *(_role(name, left + start * width, many * width, top - 4) for name, start, many in _runs(roles)),
        *(
            _token(token, role, left + (i + 0.5) * width, bottom + 12)
            for i, (token, role) in enumerate(zip(tokens, roles, strict=True))
        ),
        label=label,
    )  # fmt: skip


def _upright(said: str, y: float) -> Markup:
    return element("text", said, transform=f"translate(11 {_written(y)}) rotate(-90)", text_anchor="middle")


def _runs(names: Sequence[str]) -> list[tuple[str, int, int]]:
    """(name, start, length) of neighbours that are alike."""
    found: list[tuple[str, int, int]] = []
    for i, name in enumerate(names):
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1], found[-1][2] + 1)
        else:
            found.append((name, i, 1))
    return found


def _role(name: str, x: float, width: float, y: float) -> Markup:
    style = name if name in ROLES else "other"
    line = element("line", class_=f"role {style}", x1=x + 1, x2=x + width - 1, y1=y, y2=y)
    return line + label_at(name, x + 1, y - 6, None) if width > 6.5 * len(name) else line


def _token(said: str, role: str, x: float, y: float) -> Markup:
    if said == text.REDACTED:
        return label_at(said, x, y + 1, class_="token redacted")
    turned = f"translate({_written(x + 4)} {_written(y)}) rotate(-55)"
    style = role if role in ROLES else "other"
    return element("text", said, class_=f"token {style}", transform=turned, text_anchor="end")


def heat_map(matrix: Sequence[Sequence[bool]], title: Sequence[Sequence[str]], *, label: str) -> Markup:
    """Successes of routes (top to bottom) on prompts (left to right); outlined where a route is at home."""
    left, top, many = 46.0, 40.0, len(matrix)
    size = min(max(300.0 / max(many, 1), 9.0), 26.0)
    every = 1 if size >= 15 else 5
    cells = [(row, column, left + column * size, top + row * size) for row in range(many) for column in range(many)]
    said = Markup("")
    for i in range(many):
        if (i + 1) % every == 0:
            middle = (i + 0.5) * size
            said += label_at(str(i + 1), left + middle, top - 6)
            said += label_at(str(i + 1), left - 7, top + middle + 4, "end")
    return fixed_drawing(
        left + many * size + 4,
        top + many * size + 4,
        said,
        label_at("replayed on", left, 12, None),
        _upright("route of", top + many * size / 2),
        *(
            element("rect", element("title", title[row][column]), x=x, y=y, width=size, height=size,
                    class_=f"heatcell {'hit' if matrix[row][column] else 'miss'}")
            for row, column, x, y in cells
        ),
        *(
            element("rect", class_="heatcell own", x=x + 1.5, y=y + 1.5, width=size - 3, height=size - 3)
            for row, column, x, y in cells
            if row == column
        ),
        label=label,
    )  # fmt: skip
