"""How to read a page: what its words mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from markupsafe import Markup

from pointsman.report.blocks import Definitions, Section
from pointsman.report.sections import head
from pointsman.runs.results import Results
from pointsman.stats.rates import Rate

Terms = Sequence[tuple[str, str | Markup]]
PAIRED = (
    "Of paired differences: the exact test of exchanging the two, in whole source questions where prompts share them, "
    "else McNemar’s."
)


def section(title: str, papers: str | Markup, terms: Terms) -> Section:
    """Where methods come from, and terms with what they mean."""
    return Section("read", title, [papers], [Definitions(terms, "terms")], tag=False)


def paper(title: str, number: str) -> Markup:
    """A link to a paper on arXiv."""
    link = '<a href="https://arxiv.org/abs/{}" rel="noreferrer noopener">{}</a>'
    return Markup(link).format(number, f"{title}, arXiv {number}")


def threat(results: Results, more: str) -> tuple[str, str]:
    """The threat model, and what it means for the figures."""
    return ("Threat model", f"{head.threat(results)}. {more}")


def intervals(results: Results, n: str) -> tuple[str, str]:
    """How intervals were made; `n` is what n counts."""
    found = list(rates(replace(results, claims=())))  # which only repeat them
    made = dict.fromkeys(re.sub(r"\b\d+ clusters", "clusters", rate.method) for rate in found)
    methods = ", ".join(filter(None, made))
    effective = ""
    if any(rate.clusters is not None for rate in found):
        effective = " Effective n: so many independent ones would know the rate as well as these, which are alike."
    said = f"Square brackets hold 95 % intervals{f' ({methods})' if methods else ''}; n is {n}.{effective}"
    return ("Intervals", said)


def rates(found: Any) -> Iterator[Rate]:
    """Every rate that occurs anywhere in results."""
    if isinstance(found, Rate):
        yield found
    elif is_dataclass(found):
        for field in fields(found):
            yield from rates(getattr(found, field.name))
    elif isinstance(found, Mapping):
        for item in found.values():
            yield from rates(item)
    elif isinstance(found, list | tuple):
        for item in found:
            yield from rates(item)
