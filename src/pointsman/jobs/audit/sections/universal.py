"""One route for all prompts, beside its controls, and where it forces experts."""

from __future__ import annotations

from pointsman.jobs.audit.claims import verdict_above_draws
from pointsman.jobs.audit.results import AuditResults, UniversalPlace, UniversalRates
from pointsman.report import text
from pointsman.report.blocks import Bar, Cell, Column, Details, Finding, Reading, Row, Section, Table, Value
from pointsman.report.sections.unscored import unscored
from pointsman.runs.rates import AttackRates

_FROM = {
    "start": ("the first token of the prompt", "after the first token of the prompt"),
    "end": ("the last token of the prompt", "before the last token of the prompt"),
    "content_start": ("the first token of the request", "after the first token of the request"),
    "content_end": ("the last token of the request", "before the last token of the request"),
}


def section(results: AuditResults, found: UniversalRates) -> Section:
    """The route, as many random sets at its places, the natural experts there, and no route."""
    rows = [_row("universal route", found, None, top=True)]
    if found.random is not None and found.difference_random is not None:
        best = f"best of {text.many(len(found.draws), 'draw')} {text.percent(max(found.draws))}"
        verdict = verdict_above_draws(found.difference_random)
        rows.append(_row("random sets, same places", found.random, found.difference_random, f"{best}: {verdict}"))
    rows.append(_row("natural experts forced there", found.natural, found.difference_natural))
    rows.append(_row("no route", results.base, found.vs_base))
    columns = [Column("Route"), Column("ASR, 0 to 100 %", "bar", optional=True)]
    columns += Column.rates("ASR", "Route − this, points", "Any compliance", "Garbage")
    places = [Row([Cell(each.layer), in_words(each), text.experts(each.experts)]) for each in found.places]
    shown = Table(
        [Column("MoE layer", "number"), Column("Token"), Column("Experts")], places,
        "In the order in which the search forced them. A place that a prompt does not have is left out there.",
        "compact",
    )  # fmt: skip
    return Section(
        "universal",
        "One route for all prompts",
        [
            "What a stranger would publish: the same experts forced at the same places of every prompt.",
            f"Found on {text.many(found.prompts, 'discovery prompt')} in {found.forwards:.0f} forwards, and asked on "
            "the test prompts.",
        ],
        [
            Finding(_finding(found)),
            Table(columns, rows, "Shares of prompts with 95 % intervals; differences are paired by prompt.", "stacked"),
            *unscored([("universal route", found)]),
            Reading(
                "The route opens prompts that it was not found on, and random sets at its places do not.",
                "random or natural experts at the same places reach as far, or the garbage grows with the success.",
            ),
            *([Details("Where it forces which experts", [shown])] if places else []),
        ],
    )


def in_words(place: UniversalPlace) -> str:
    """Where a place is."""
    first, away = _FROM[place.anchor]
    return f"{place.offset} {away}" if place.offset else first


def _finding(found: UniversalRates) -> str:
    if not found.places:
        return "No route helped the discovery prompts: nothing was forced."
    return (
        f"One route of {text.many(len(found.places), 'forced place')} takes the ASR of prompts on which it was not "
        f"found to {text.short(found.asr)}; of its discovery prompts {text.short(found.reached)} reached log tau."
    )


def _row(name: str, found: AttackRates, difference: Value, beneath: str = "", *, top: bool = False) -> Row:
    bar = Bar.of(found.asr, "attack") if top else Bar.of(found.asr)
    rates: list[Value] = [bar, found.asr, difference, found.any_compliance, found.garbage]
    return Row([Cell(name, beneath=beneath), *rates], top=top)
