"""The page and the summary of a steering run, and of the evaluation of a steering: what its results say, in order."""

from __future__ import annotations

from dataclasses import fields, replace

from pointsman.jobs.steer.results import SteerResults
from pointsman.jobs.steer.sections import circuit, frontier, groups, moved, outcomes, reading, seeds, surrogate, turns
from pointsman.jobs.steer.wording import (
    ARMS,
    SHORT_ARMS,
    Wording,
    counts_wrong,
    known_limits,
    mask_name,
    mask_settings,
    wording_for,
)
from pointsman.report import text
from pointsman.report.blocks import Card, Column, Page, Row, Table
from pointsman.report.sections import claims, cost, head, own_answers, provenance, tasks
from pointsman.stats.rates import Rate

NOT_ADMISSIBLE = "No mask kept every limit on validation."
WITHOUT_MARGIN = "No mask kept every limit on validation with margin."
MARGIN_NOT_SHOWN = "Of no limit can validation show that it is kept with margin."
SHORT = {
    "benign": "benign",
    "benign_conversations": "multi-turn benign",
    "over_refusal": "over-refusal",
    "held": "others refused",
    "garbage": "garbage",
}
"""Measures, as the terminal has room for them."""
MARKS = {"kept": "kept", "kept, not surely": "kept?", "broken": "OVER", "not measured": ""}
"""Verdicts on limits, as the terminal has room for them."""
RULES = (
    "Rates on the same prompts: holds if the 95 % interval of their paired difference, in points, lies above zero and "
    "its p, where there is one, below 0.05. Nothing else lost: holds if every limit is kept with its whole interval, "
    "and fails if one is broken. Luck of the validation split: holds unless the whole interval on test lies below the "
    "rate on validation. Routing, not length: holds if the AUROC on matched pairs (same source question, number of "
    "turns and tactic, opposite outcome) lies above 0.5 with its whole interval. Other seeds, where there are any: "
    "holds if the lowest gain lies above the model without a mask, interval and all. A claim fails if the figures say "
    "the contrary as surely. “Holds” says nothing of other attacks, prompts or judges."
)

SPLITS = {
    "conversations": "conversations",
    "restricted": "restricted requests",
    "scenario": "requests of the scenario",
    "benign": "benign requests",
    "benign_conversations": "benign conversations",
    "borderline": "borderline requests",
}
"""Kinds of prompts in a split."""
LINE = 80  # columns of a terminal
STAGES = {**ARMS, "after": "with the mask", "moved": "routing without and with the mask"}
"""Names of stages, or of parts of them as in ``test/after``."""


def page(results: SteerResults, *, show_text: bool = False) -> Page:
    """Everything that the report says."""
    wording, scenario = wording_for(results), results.scenario
    model, *others = head.facts(results)
    warnings = head.warnings(results)
    if results.chosen.admissible is False:
        warnings.append((NOT_ADMISSIBLE, "This page shows the best that broke one; do not deploy it as it is."))
    elif results.chosen.unsure:
        names = ", ".join(map(wording.within, results.chosen.unsure))
        said = f"The chosen one keeps them by its point estimates alone, and may owe that to luck: {names}."
        warnings.append((WITHOUT_MARGIN, said))
    elif results.margin and not results.margin.shown:
        warnings.append((MARGIN_NOT_SHOWN, "The mask was chosen by point estimates alone, and may owe that to luck."))
    sections = [
        outcomes.section(results),
        claims.section(results, "what could refute it", RULES),
        frontier.section(results),
        own_answers.section(results.answers) if results.answers else None,
        tasks.section(results.tasks) if results.tasks else None,
        groups.section(results),
        turns.section(results),
        circuit.section(results),
        moved.section(results.moved, results, show_text=show_text) if results.moved else None,
        surrogate.section(results),
        seeds.section(results),
        reading.section(results),
        cost.section(results.cost, STAGES),
        provenance.section(results, [], _settings(results, wording)),
    ]
    return Page(
        kind="steering",
        title=f"Steering of {results.model.name}",
        headline=results.headline,
        facts=[model, ("Scenario", scenario.name, ""), *others],
        tag=head.tag(results),
        warnings=warnings,
        cards=_cards(results, wording),
        sections=[section for section in sections if section],
        show_text=show_text,
        description=scenario.description,
        stages=STAGES,
    )


def _cards(results: SteerResults, wording: Wording) -> list[Card]:
    """The gain without and with the mask, and how many limits hold on test."""
    before, after, difference = results.test.before.gain, results.test.after.gain, results.comparisons.gain
    beside = ""
    if difference is not None and difference.difference is not None:
        beside = f"{text.change_full(difference)} points against no mask, {text.chance(difference)}"
    if results.broken_on_test:
        beside += f"; over its limit: {', '.join(map(wording.within, results.broken_on_test))}"
    measured = [limit.verdict for limit in known_limits(results) if limit.verdict != "not measured"]
    kept, unsure = len(measured) - measured.count("broken"), measured.count("kept, not surely")
    return [
        Card(f"{wording.gain}, without the mask", wording.gained, before),
        Card(f"{wording.gain}, with the mask", wording.gained, after, "good", beside=beside),
        Card(
            "Limits kept on test",
            "of what the mask may cost elsewhere",
            style="good" if kept == len(measured) else "attack",
            absent="no limit could be checked",
            value=f"{kept} of {len(measured)}" if measured else "",
            beside=f"{unsure} of them not surely: the interval reaches beyond" if unsure else "",
        ),
    ]


def _settings(results: SteerResults, wording: Wording) -> list[tuple[str, provenance.Entries]]:
    """The scenario and its splits, for whoever wants the numbers again."""
    scenario = results.scenario
    held = "all" if scenario.hold is None else text.show(scenario.hold)
    asked = [("name", scenario.name), ("objective", scenario.objective), ("held categories", held)]
    for limit in fields(scenario.limits):
        most = getattr(scenario.limits, limit.name)
        asked.append((f"limit, {wording.measure(limit.name).lower()}", f"{text.points(most)} points"))
    splits = [
        (f"Split: {split}", [(SPLITS.get(kind, text.readable(kind)), text.show(size)) for kind, size in sizes.items()])
        for split, sizes in results.splits.items()
    ]
    return [("Scenario", asked), *splits]


# ---------------------------------------------------------------------- the terminal


def summary(results: SteerResults) -> Table:
    """What the headline says, what it costs against its limits, and other methods beside it; it fits 80 columns."""
    tag = head.tag(results)
    title = f"{results.model.name} · {results.scenario.name} · {results.threat_model}"
    columns = [Column("Rate"), Column("before"), Column("after"), Column("n", "number")]
    columns += [Column("difference"), Column("limit")]
    test, compared = results.test, results.comparisons
    rise = text.change_full(compared.gain) if compared.gain else text.MISSING
    first = wording_for(results).gain.lower()
    over = MARKS["broken"] if results.broken_on_test else ""
    rows = [Row([first, _before(test.before.gain), *_after(test.after.gain), rise, over], top=True)]
    for limit in known_limits(results):
        before, after, difference = (getattr(side, limit.measure) for side in (test.before, test.after, compared))
        change = "" if limit.kind == "share" or difference is None else text.change_full(difference, 1)
        most = f"≤ {100 * limit.most:g} {MARKS[limit.verdict]}".rstrip() if limit.most is not None else ""
        rows.append(Row([SHORT[limit.measure], _before(before), *_after(after), change, most]))
    for arm in outcomes.rivals_of(results):
        outcome, found = getattr(test, arm), getattr(compared, outcomes.VERSUS[arm])
        if outcome:
            gain, n = _after(outcome.gain)
            over = MARKS["broken"] if outcome.broken else ""
            rows.append(Row([SHORT_ARMS[arm], "", gain, n, text.change_full(found) if found else "", over]))
    return Table(columns, rows, "\n".join(_remarks(results)), title=f"{title} · {tag}" if tag else title)


def _before(rate: Rate | None) -> str:
    return text.MISSING if rate is None else text.number(rate)


def _after(rate: Rate | None) -> tuple[str, str]:
    if rate is None:
        return text.MISSING, ""
    return f"{text.number(rate)} {text.interval(rate)}".strip(), str(rate.n)


def _mask(results: SteerResults) -> str:
    """The chosen mask on one line; the page has the rest of how it was learnt."""
    chosen = results.chosen
    if chosen.method != "conditional":
        return f"{mask_name(chosen)}, {mask_settings(chosen)}, {results.circuit.size} experts"
    settings = replace(chosen, hold=None, decay=None)
    return f"conditional, {mask_settings(settings)}"


def _remarks(results: SteerResults) -> list[str]:
    said = [f"Mask: {_mask(results)}."]
    said += [NOT_ADMISSIBLE] if results.chosen.admissible is False else []
    said += [WITHOUT_MARGIN] if results.chosen.admissible and results.chosen.unsure else []
    said += [MARGIN_NOT_SHOWN] if results.chosen.admissible and results.margin and not results.margin.shown else []
    said.append("Test split: % [95 %]; differences in points, from no mask or that method.")
    gain = results.test.after.gain
    said += [f"Effective n of the first row: {text.effective(gain)}, of {gain.n}."] if text.effective(gain) else []
    said += ["Wrong answers to the request count as withstood."] if counts_wrong(results) else []
    rivals = outcomes.rivals_of(results)
    absent = [SHORT_ARMS[arm] for arm in rivals if not getattr(results.test, arm)]
    named = f"Not run: {', '.join(absent)}."
    if absent:
        said.append(named if len(named) <= LINE else f"Not run: {len(absent)} of {len(rivals)} other ways.")
    warnings = {"testbed": "Testbed: says nothing of a real model.", "small n": "Small n: read the intervals."}
    marks = head.labels(results)
    return [*said, " ".join(warnings[mark] for mark in marks)] if marks else said
