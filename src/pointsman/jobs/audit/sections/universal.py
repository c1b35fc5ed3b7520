"""One route for all prompts, beside its controls, and where it forces experts."""

from __future__ import annotations

from pointsman.jobs.audit.claims import verdict_above_draws
from pointsman.jobs.audit.results import AuditResults
from pointsman.jobs.audit.route_results import UniversalPlace, UniversalRates
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
        most = max(found.draws, default=0.0)  # a file of results may have lost them
        best = f"best of {text.many(len(found.draws), 'draw')} {text.digits(most)}{text.NARROW}%"
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
            "What a stranger could publish: the same experts forced at the same places of every prompt, counted from "
            "the ends of the prompt or of the request.",
            f"Searched on {text.many(found.prompts, 'discovery prompt')} in {text.count(found.forwards)} forwards, by "
            "the gradient; the rates are of the test prompts, on which nothing was searched.",
        ],
        [
            Finding(_finding(results, found)),
            Table(
                columns,
                rows,
                "Shares of the test prompts with 95 % intervals; differences are paired by prompt.",
                "stacked",
            ),
            *unscored([("universal route", found)]),
            Reading(
                "The first line is the one route. Random sets force other experts at its places, the same for every "
                "prompt as well; the natural experts are those that the model would have chosen there anyway.",
                "random sets or the natural experts come near the first line, or much of it is garbage.",
            ),
            *([Details("Where it forces which experts", [shown])] if places else []),
        ],
    )


def in_words(place: UniversalPlace) -> str:
    """Where a place is."""
    first, away = _FROM[place.anchor]
    return f"{place.offset} {away}" if place.offset else first


def _finding(results: AuditResults, found: UniversalRates) -> str:
    if not found.places:
        return "No route helped the discovery prompts: nothing was forced."
    random = f"; random sets at its places reach {text.short(found.random.asr)} on average" if found.random else ""
    return (
        f"One route that forces experts at {text.many(len(found.places), 'place')} takes ASR from "
        f"{text.short(results.base.asr)} to {text.short(found.asr)} on prompts that it was not searched on{random}. Of "
        f"those that it was searched on it makes {text.short(found.reached)} likely to begin with the target."
    )


def _row(name: str, found: AttackRates, difference: Value, beneath: str = "", *, top: bool = False) -> Row:
    bar = Bar.of(found.asr, "attack") if top else Bar.of(found.asr)
    rates: list[Value] = [bar, found.asr, difference, found.any_compliance, found.garbage]
    return Row([Cell(name, beneath=beneath), *rates], top=top)
