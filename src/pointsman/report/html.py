"""A page as one HTML file that needs nothing else.

It makes no request and runs no script (a Content-Security-Policy says so to the browser); pages that show answers have
one script, which filters them, and which the policy allows by its hash. What models and strangers say is untrusted:
Jinja escapes every value, and `clean_text` goes over all of the page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pointsman.report import plot, text
from pointsman.report.answers import Answer, Answered, Opinion
from pointsman.report.blocks import Bar, Block, Cell, Choice, Column, Page, Value
from pointsman.runs.results import Claim, Figure
from pointsman.stats.auroc import Auroc
from pointsman.stats.paired import AboveDraws, Comparison
from pointsman.stats.rates import Rate

CLASSES = {"text": "", "number": "n", "bar": "cell", "rate": "rate", "words": "text"}
"""Of the cells of a column, by its kind."""
LONGEST = 20_000
"""Characters of one answer in a page; the artefacts hold the rest."""


def render(page: Page) -> str:
    """The page as HTML."""
    return text.clean_text(_environment().get_template("page.html.j2").render(page=page))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pointsman.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(kind=_kind, cell=cell, classes=classes, figure=_figure, plus=_plus, reason=_reason)
    environment.filters.update(leaning=_leaning, score=_score, labels=_labels, places=_places, name_of=_name_of)
    environment.filters.update(about=about, digest=_digest)
    script = Markup(files("pointsman.report").joinpath("templates/answers.js").read_text(encoding="utf-8"))
    environment.globals.update(text=text, card_bar=plot.card_bar, bar_of=Bar.of, script=script, longest=LONGEST)
    return environment


def _kind(block: Block) -> str:
    return type(block).__name__


def _figure(figure: Figure) -> str:
    """A figure of a claim: ``F-SOUR 100 % [76, 100] (n = 12)``; ``router 2: 0.21 [0.02, 0.40]``."""
    if figure.value is None:
        return figure.name
    return f"{figure.name}{':' if figure.name[-1:].isdigit() else ''} {text.full(figure.value)}"


def _plus(difference: Comparison | AboveDraws) -> str:
    """The difference of a claim: ``+83 [+58, +100], p = 0.002``."""
    return ", ".join(filter(None, (text.change_full(difference), text.chance(difference))))


def _reason(claim: Claim) -> str:
    """Why a claim has its verdict, unless its figures say so: it holds by a difference with its p."""
    return "" if claim.verdict == "holds" and isinstance(claim.difference, Comparison) else claim.because


def classes(column: Column, shown: Value | Cell = None, *, head: bool = False) -> str:
    """The classes of a cell; the head of a column may break into lines."""
    kind = "" if head and column.kind in ("rate", "words") else CLASSES[column.kind]
    own = shown.classes if isinstance(shown, Cell) else ""
    return " ".join(filter(None, (kind, "optional" if column.optional else "", own)))


def cell(shown: Value | Cell, column: Column) -> Markup:
    """What stands in a cell."""
    if not isinstance(shown, Cell):
        shown = Cell(shown)
    said = _value(shown, column)
    if shown.beside:
        said += Markup(' <span class="muted interval">{}</span>').format(shown.beside)
    if shown.beneath:
        said += Markup('<br><span class="muted">{}</span>').format(shown.beneath)
    return said


def _value(shown: Cell, column: Column) -> Markup:
    value = shown.value
    if isinstance(value, Bar):
        return plot.bar(value)
    if isinstance(value, Rate):
        return _rate(value, shown)
    if isinstance(value, Comparison | AboveDraws):
        return _difference(value, shown)
    if isinstance(value, Auroc):
        number, interval = text.plain(value.value, 2), text.mean_interval(value.low, value.high)
        return _numbers(number, interval, f"({text.rows(value.n)})")
    if value is None:
        return Markup("" if column.kind == "bar" else f"<span>{text.MISSING}</span>")
    return escape(value)


def _rate(rate: Rate, shown: Cell) -> Markup:
    n = "" if shown.bare else f"({text.rows_of(rate)})"
    if rate.rate is None:
        return Markup("<span>{}</span>").format(f"nothing scored {n}".rstrip())
    value = text.value(rate, fine=shown.fine) if shown.unit else text.number(rate)
    return _numbers(value, text.interval(rate, fine=shown.fine), n)


def _difference(difference: Comparison | AboveDraws, shown: Cell) -> Markup:
    if difference.difference is None:
        return Markup(f"<span>{text.MISSING}</span>")
    digits = 1 if shown.fine else 0
    if shown.bare or shown.fine:
        return _numbers(text.change(difference, digits), text.change_interval(difference, digits))
    chance = text.chance(difference)
    return Markup("<b>{}</b>").format(text.change_full(difference)) + (
        Markup(' <span class="count">{}</span>').format(chance) if chance else ""
    )


def _numbers(value: str, interval: str, n: str = "") -> Markup:
    said = Markup("<b>{}</b> <span>{}</span>").format(value, interval)
    return said + Markup(' <span class="count">{}</span>').format(n) if n else said


# ---------------------------------------------------------------------- answers


def _digest(script: str) -> str:
    """As a Content-Security-Policy names a script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _leaning(opinion: Opinion) -> str:
    """The class of a verdict: whether the model gave an answer, right or wrong, or refused."""
    return {"an answer": "gave", "refused": "refused"}.get(opinion.kind, "neither")


def _score(score: float) -> str:
    return f"score {score:.2g}"


def _labels(answer: Answer) -> list[str]:
    return [opinion.label for opinion in answer.opinions]


def _places(values: Iterable[str], choices: Sequence[Choice]) -> str:
    """Where values stand among choices, as numbers: all that the script needs to know of them."""
    wanted = set(values)
    return " ".join(str(place) for place, choice in enumerate(choices) if choice.value in wanted)


def _name_of(choices: Sequence[Choice], value: str) -> str:
    return next(choice.name for choice in choices if choice.value == value)


def about(prompt: Answered) -> str:
    """What a prompt is: category, tactic and source."""
    return " · ".join(filter(None, (prompt.category, prompt.tactic, prompt.source and f"source {prompt.source}")))
