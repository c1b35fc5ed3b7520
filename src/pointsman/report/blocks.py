"""What a page is made of: sections of blocks. Two renderers know them, one writes HTML and one writes to the terminal.

A block holds what is said, and nothing of how it is drawn. Strings are text from anywhere: renderers escape them. Only
`Markup`, made by this package's own code, may hold tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from markupsafe import Markup

from pointsman.runs.results import Claim
from pointsman.stats.auroc import Auroc
from pointsman.stats.paired import AboveDraws, Comparison
from pointsman.stats.rates import Rate

Style = Literal["plain", "attack", "good", "muted"]
"""The colour of a bar."""


@dataclass(frozen=True)
class Bar:
    """A rate, or any value with its interval, drawn from zero; decorative, since the number stands beside it.

    Attributes:
        value, low, high: On the scale `start` to `end`.
    """

    value: float
    low: float | None = None
    high: float | None = None
    style: Style = "plain"
    start: float = 0.0
    end: float = 1.0

    @staticmethod
    def of(rate: Rate | None, style: Style = "plain") -> Bar | None:
        """Of a rate on 0 to 100 %; None where nothing was scored."""
        return None if rate is None or rate.rate is None else Bar(rate.rate, rate.low, rate.high, style)


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than one text.

    Attributes:
        text: As it stands.
        beneath: Below it, muted.
        strong: Emphasised.
        classes: Of the style sheet.
    """

    text: str | Markup
    beneath: str = ""
    strong: bool = False
    classes: str = ""


CellValue: TypeAlias = str | int | Markup | Cell | Bar | Rate | Comparison | AboveDraws | Auroc | None
"""What a cell may hold; None is written as a dash."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: Its name.
        kind: ``text``, ``number`` (to the right), ``bar``, ``rate`` (also differences), ``words`` (of prompts, answers).
        optional: Left out on phones.
    """

    head: str | Markup = ""
    kind: Literal["text", "number", "bar", "rate", "words"] = "text"
    optional: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table; its first cell is its head.

    Attributes:
        group: A line above it, over the whole width: it begins a group.
        top: Emphasised.
    """

    cells: Sequence[CellValue]
    group: str = ""
    top: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows; empty for none.
        style: Classes of the style sheet, such as ``compact``.
        title: In the terminal, above it.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str | Markup = ""
    style: str = ""
    title: str = ""


@dataclass(frozen=True)
class Finding:
    """The sentence that a section comes to."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str | Markup
    small: bool = True


@dataclass(frozen=True)
class Heading:
    """Of a part of a section; `tag` says whether the warnings of the page stand beside it."""

    text: str | Markup
    tag: bool = False


@dataclass(frozen=True)
class Reading:
    """How to read a figure, and what would make one doubt it (it follows "Doubt it if")."""

    text: str
    doubt: str


@dataclass(frozen=True)
class Figure:
    """A drawing, made by `plot`.

    Attributes:
        drawing: SVG.
        caption: Below it.
        legend: Marks with what they stand for.
        wide: It does not shrink: it scrolls.
    """

    drawing: Markup
    caption: str | Markup = ""
    legend: Sequence[tuple[Markup, str]] = ()
    wide: str = ""


@dataclass(frozen=True)
class Definitions:
    """Terms and what they mean, or names and values."""

    entries: Sequence[tuple[str, str | Markup]]
    terms: bool = False


@dataclass(frozen=True)
class Claims:
    """Claims with what they were held against."""

    claims: Sequence[Claim]


@dataclass(frozen=True)
class Details:
    """Blocks that are shown on demand."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Beside:
    """Blocks beside each other, below each other on phones."""

    left: Block
    right: Block
    heat: bool = False


Block = Finding | Text | Heading | Reading | Table | Figure | Definitions | Claims | Details | Beside


@dataclass(frozen=True)
class Section:
    """A section of a page: heading and remarks at the left, matter at the right.

    Attributes:
        id: Of its anchor.
        aside: Remarks; the warnings of the page stand behind the first.
    """

    id: str
    title: str
    aside: Sequence[str | Markup | Definitions]
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Card:
    """A key rate. `rate` is None where it was not measured, and `absent` says why; `beside` is its control.

    Attributes:
        value: In place of a rate, such as ``3 of 5``.
    """

    name: str
    note: str
    rate: Rate | None
    style: Style = "plain"
    absent: str = ""
    beside: str = ""
    value: str = ""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        kind: Such as ``router audit``.
        title: Of the window.
        headline: All of it in one sentence.
        facts: In the head: names with values and, for some, what they mean.
        tag: Warnings that stand beside every figure, such as ``testbed · small n``.
        warnings: Sentences in the head.
        cards: Key rates.
        show_text: Prompts and answers are shown.
    """

    kind: str
    title: str
    headline: str
    facts: Sequence[tuple[str, str, str]]
    tag: str
    warnings: Sequence[str | Markup]
    cards: Sequence[Card]
    sections: Sequence[Section]
    show_text: bool = False
