"""What a page is made of: sections of blocks. Two renderers know them: `html` draws pages, `terminal` writes tables.

A block holds what is said, and little of how it is drawn. Strings are text from anywhere: renderers escape and clean
them. Only `Markup`, made by this package's own code (`plot.element`, ``Markup(...).format(...)``), may hold tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from markupsafe import Markup

from pointsman.report.answers import Answered
from pointsman.runs.results import Claim
from pointsman.stats.auroc import Auroc
from pointsman.stats.paired import AboveDraws, Comparison
from pointsman.stats.rates import Rate

# ---------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Bar:
    """A value with its interval, drawn from zero on the scale `start` to `end`; its numbers stand beside it.

    Attributes:
        style: ``plain``, ``attack``, ``good`` or ``muted``: a colour.
    """

    value: float
    low: float | None = None
    high: float | None = None
    style: str = "plain"
    start: float = 0.0
    end: float = 1.0

    @staticmethod
    def of(rate: Rate | None, style: str = "plain") -> Bar | None:
        """Of a rate on 0 to 100 %; None where nothing was scored."""
        return None if rate is None or rate.rate is None else Bar(rate.rate, rate.low, rate.high, style)


Value: TypeAlias = "str | int | Markup | Bar | Rate | Comparison | AboveDraws | Auroc | None"
"""None is written as a dash; a `Rate` with interval and n, a `Comparison` in points with interval and p."""


@dataclass(frozen=True)
class Cell:
    """A cell that is more than its value.

    Attributes:
        beside, beneath: Behind and below it, muted.
        title: Seen when one points at it.
        classes: Of the style sheet, such as ``hit``.
        fine: Rates and differences with one decimal.
        bare: Rates without n, differences without p, since the head of the column says it.
        unit: Rates with their unit; without it where the caption says that they are percents.
    """

    value: Value
    beside: str = ""
    beneath: str = ""
    title: str = ""
    classes: str = ""
    fine: bool = False
    bare: bool = False
    unit: bool = True


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        head: Its name; a drawing for a column of bars.
        kind: ``number`` (to the right), ``rate`` (also differences), ``bar``, ``words`` (of prompts and answers).
        beneath: Below its name, such as ``n = 24``.
        optional: Left out on phones.
    """

    head: str | Markup = ""
    kind: Literal["text", "number", "bar", "rate", "words"] = "text"
    beneath: str = ""
    optional: bool = False

    @staticmethod
    def numbers(*heads: str) -> list[Column]:
        """Columns of numbers."""
        return [Column(head, "number") for head in heads]

    @staticmethod
    def rates(*heads: str) -> list[Column]:
        """Columns of rates and differences."""
        return [Column(head, "rate") for head in heads]

    @staticmethod
    def bars(head: str = "0 to 100 %") -> Column:
        """A column of bars, left out on phones."""
        return Column(head, "bar", optional=True)


@dataclass(frozen=True)
class Row:
    """A row; its first cell is its head.

    Attributes:
        group: A line above it, over the whole width: a group begins with it.
        top: Emphasised.
        classes: Of the style sheet.
    """

    cells: Sequence[Value | Cell]
    group: str = ""
    top: bool = False
    classes: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: If none has a name, there is no line of heads.
        caption: What it shows. In the terminal it stands below.
        style: Classes of the style sheet, such as ``stacked compact``.
        tag: The warnings of the page stand behind the caption.
        title: In the terminal, above it.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str | Markup = ""
    style: str = ""
    tag: bool = True
    title: str = ""


# ---------------------------------------------------------------------- other blocks


@dataclass(frozen=True)
class Finding:
    """The sentence that a section comes to."""

    text: str | Markup


@dataclass(frozen=True)
class Text:
    """A paragraph of remarks."""

    text: str | Markup


@dataclass(frozen=True)
class Heading:
    """Of a part of a section; `tag`: the warnings of the page stand beside it."""

    text: str | Markup
    tag: bool = False


@dataclass(frozen=True)
class Reading:
    """How to read a figure, and what would make one doubt it (it follows "Doubt it if")."""

    text: str
    doubt: str


@dataclass(frozen=True)
class Legend:
    """Marks with what they stand for."""

    entries: Sequence[tuple[Markup, str]]


@dataclass(frozen=True)
class Chart:
    """A drawing, made by `plot`.

    Attributes:
        caption: Below it.
        legend: Above it: marks with what they stand for.
        scroll: Where it does not shrink but scrolls: what it is called.
    """

    drawing: Markup
    caption: str | Markup = ""
    legend: Sequence[tuple[Markup, str]] = ()
    scroll: str = ""


@dataclass(frozen=True)
class Definitions:
    """Names and values; or, in the style ``terms``, terms and what they mean."""

    entries: Sequence[tuple[str, str | Markup]]
    style: str = ""


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
    """Blocks beside each other, below each other on phones; `style` says how wide: ``heat``, ``calibrated``."""

    left: Sequence[Block]
    right: Sequence[Block]
    style: str = ""


@dataclass(frozen=True)
class Choice:
    """What a filter offers: a value, how it is called, and how many there are."""

    value: str
    name: str
    count: int


@dataclass(frozen=True)
class Answers:
    """Prompts with everything that the model said to them; filters where the page may run its script.

    Attributes:
        doubtful: Those with a verdict in doubt, the most doubtful first.
        stages, categories, verdicts: What there is to filter by.
    """

    prompts: Sequence[Answered]
    doubtful: Sequence[Answered]
    stages: Sequence[Choice]
    categories: Sequence[Choice]
    verdicts: Sequence[Choice]


Block: TypeAlias = (
    Finding | Text | Heading | Reading | Table | Legend | Chart | Definitions | Claims | Details | Beside | Answers
)

# ---------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Section:
    """A section: heading and remarks at the left, matter at the right.

    Attributes:
        id: Of its anchor.
        aside: Remarks.
        tag: The warnings of the page stand behind the first remark.
    """

    id: str
    title: str
    aside: Sequence[str | Markup | Definitions]
    blocks: Sequence[Block]
    tag: bool = True


@dataclass(frozen=True)
class Card:
    """A key rate.

    Attributes:
        note: What it is of.
        rate: None where it was not measured, and `absent` says why.
        style: ``plain``, ``attack`` or ``good``: a colour.
        beside: Its control, below it.
        value: In place of a rate, such as ``3 of 5``.
    """

    name: str
    note: str
    rate: Rate | None = None
    style: str = "plain"
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
        facts: In the head: names, values and what these mean, if that needs words.
        tag: Warnings that stand beside every figure, such as ``testbed · small n``.
        warnings: Sentences in the head; the first words of each are emphasised.
        show_text: Prompts and answers are shown.
        description: Below the facts.
        stages: Names of stages that are not called by their key.
    """

    kind: str
    title: str
    headline: str
    facts: Sequence[tuple[str, str, str]]
    tag: str
    warnings: Sequence[tuple[str, str]]
    cards: Sequence[Card]
    sections: Sequence[Section]
    show_text: bool = False
    description: str = ""
    stages: Mapping[str, str] = field(default_factory=dict)
