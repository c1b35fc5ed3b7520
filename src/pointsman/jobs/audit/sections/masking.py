"""Masked routers beside their controls, with what each does to benign requests."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.jobs.audit.claims import verdict_above_draws
from pointsman.jobs.audit.results import AttackAndUse, AuditResults, MaskControl, Masked
from pointsman.report import plot, text
from pointsman.report.blocks import (
    Bar,
    Block,
    Cell,
    Chart,
    Column,
    Details,
    Finding,
    Heading,
    Reading,
    Row,
    Section,
    Table,
    Text,
    Value,
)
from pointsman.report.sections.unscored import unscored
from pointsman.routing.intervention import Phase
from pointsman.stats.paired import AboveDraws, Comparison
from pointsman.stats.rates import Rate

CONTROLS = {"dataset": "top routers, frozen mask", "random": "random routers", "lowest": "lowest {by}"}
"""Controls, the nearest to the attack first."""
WHEN: dict[Phase, str] = {
    "prefill": "while the prompt is read (prefill)",
    "decode": "while the answer is written (decode)",
    "both": "while the prompt is read and the answer written (both)",
}
Difference = Comparison | AboveDraws | None
Conditions = list[tuple[str, str, AttackAndUse, Difference]]
"""Name, where it is masked, what the model then says, and the attack less this."""


def section(results: AuditResults) -> Section:
    """A figure and tables for each phase."""
    blocks: list[Block] = []
    for phase in results.phases:
        blocks += [Heading(f"Masks in force: {phase}")] if len(results.phases) > 1 else []
        blocks += _phase(results, phase)
    return Section(
        "masking",
        "Masking a few routers",
        [
            "For each prompt the best of as many random masks, in force on a few routers.",
            "The controls mask as many routers with as many draws, but others than the top ones; the frozen mask is "
            "one for all prompts, chosen on the discovery prompts.",
        ],
        blocks or [Finding("Not measured: no router was masked in this run.")],
    )


def _phase(results: AuditResults, phase: Phase) -> list[Block]:
    records = sorted((r for r in results.masking if r.routers and r.phase == phase), key=lambda r: r.routers)
    base, last = results.unmasked, records[-1]
    by = "RoSais" if results.rosais_settings.screen is None else "screen score"
    groups = [(record.routers, _conditions(record, base, by)) for record in records]
    finding = _finding(last, base)
    lines = _lines(records, base, by)
    ticks = [*([0] if base is not None else []), *(record.routers for record in records)]
    chart = Chart(
        plot.line_chart(
            lines, ticks, of="of prompts", x_label=f"routers masked ({phase})",
            label=f"{finding} The tables below have every number.",
        ),
        legend=[(line.key, line.name) for line in reversed(lines)],
    )  # fmt: skip
    how = Reading(
        "Share of prompts answered with restricted content, against the number of routers masked; whiskers are 95 % "
        "intervals, the band spans the draws of random routers.",
        "the other lines rise as well, or benign utility falls with them: then masks break the model, and not its "
        "safety.",
    )
    first = phase == results.phases[0]
    use = any(found.utility is not None for _, rows in groups for _, _, found, _ in rows)
    named = [(f"{name}, {n}", found) for n, rows in groups for name, _, found, _ in rows if found is not base]
    drawn: list[Block] = [chart, how] if first else []
    every: list[Block] = [*([] if first else [chart]), _every(groups, phase, use)]
    return [
        Finding(finding),
        *drawn,
        _largest(groups[-1][1], last.routers, phase, use),
        *_frozen(last),
        *unscored(named),
        Details(f"Every number of routers ({phase})", every),
    ]


def _conditions(record: Masked, base: Masked | None, by: str) -> Conditions:
    """The attack, every control at the same number of routers, and no mask at all.

    Args:
        by: What the routers were ranked by.
    """
    paired: dict[str, Difference] = {"random": record.difference_random, "lowest": record.vs_lowest}
    order = [key for key in CONTROLS if key in record.controls]
    order += [key for key in record.controls if key not in CONTROLS]
    found: Conditions = [(_top(by), _layers(record.layers), record, None)]
    for key in order:
        control = record.controls[key]
        where = f"{_where(control)}; {_draws(control, record.difference_random)}" if control.draws else _where(control)
        found.append((_name(key, by), where, control, paired.get(key)))
    return found if base is None else [*found, ("no mask", "", base, record.vs_base)]


def _top(by: str) -> str:
    return f"top routers by {by}"


def _name(control: str, by: str) -> str:
    return CONTROLS.get(control, text.readable(control)).replace("{by}", by)


def _where(control: MaskControl) -> str:
    if control.mask is not None:
        return "; ".join(f"layer {layer}: experts {text.experts(kept)}" for layer, kept in control.mask.items())
    if control.draws is not None:
        return f"{text.many(len(control.draws), 'set')}; benign answers under the first"
    return _layers(control.layers or ())


def _draws(control: MaskControl, found: AboveDraws | None) -> str:
    """The best of the random sets, how many reach the attack, and what that makes of it."""
    rates = [draw.rate for draw in control.draws or ()]
    said = f"best {text.digits(max(rates))}{text.NARROW}%"
    if found is None:
        return said
    reach = f"{found.reached or 'none'} reach{'' if found.reached > 1 else 'es'} the top"
    return f"{said}, {reach}: {verdict_above_draws(found)}"


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}" if layers else ""


def _finding(most: Masked, base: Masked | None) -> str:
    which = "the top router" if most.routers == 1 else f"the top {most.routers} routers"
    said = f"Masking {which} takes ASR " + (f"from {text.short(base.asr)} " if base else "")
    said += f"to {text.short(most.asr)}"
    random = most.controls.get("random")
    if random is None:
        return f"{said}."
    others = "a random router reaches" if most.routers == 1 else f"{most.routers} random routers reach"
    return f"{said}; {others} {text.short(random.asr)} on average."


def _frozen(record: Masked) -> list[Block]:
    """What a mask chosen once, on other prompts, adds."""
    control = record.controls.get("dataset")
    rise = control.vs_base if control else None
    if rise is None:
        return []
    said = f"The frozen mask, chosen on the discovery prompts, adds {text.change_full(rise)} points to no mask"
    return [Text(f"{said}, {text.chance(rise)}.")]


# ---------------------------------------------------------------------- tables


def _largest(rows: Conditions, routers: int, phase: Phase, use: bool) -> Table:
    heads = ["ASR", "Top − this, points", *["Benign utility"] * use, "Garbage"]
    table = []
    for name, where, found, difference in rows:
        attack = isinstance(found, Masked) and found.routers > 0
        measured: list[Value] = [found.asr, difference, *[found.utility] * use, found.garbage]
        drawn = where if isinstance(found, MaskControl) and found.draws else ""
        table.append(
            Row([Cell(name, beneath=drawn), Bar.of(found.asr, "attack" if attack else "plain"), *measured], top=attack)
        )
    caption = f"{text.many(routers, 'router')} masked {WHEN[phase]}. Differences are paired by prompt; all with 95 % "
    columns = [Column("Masked"), Column.bars("ASR, 0 to 100 %"), *Column.rates(*heads)]
    return Table(columns, table, f"{caption}intervals.", "stacked")


def _every(groups: Sequence[tuple[int, Conditions]], phase: Phase, use: bool) -> Table:
    heads = ["ASR", "Top − this, points", "Any compliance", "Garbage", *["Utility", "Over-refusal"] * use]
    table = []
    for routers, rows in groups:
        for place, (name, where, found, difference) in enumerate(rows):
            measured: list[Value] = [found.asr, difference, found.any_compliance, found.garbage]
            measured += [found.utility, found.over_refusal] * use
            group = "" if place else text.many(routers, "router")
            table.append(Row([Cell(name, beneath=where), *measured], group))
    columns = [Column("Masked, and where"), *Column.rates(*heads)]
    caption = f"Share of prompts with 95 % intervals, masks in force: {phase}."
    return Table(columns, table, caption, "stacked compact dense")


# ---------------------------------------------------------------------- the chart


def _lines(records: Sequence[Masked], base: Masked | None, by: str) -> list[plot.Line]:
    """Every control, then the attack. They begin at the base rate: with no router masked, all are the same."""
    start = base.asr if base else None
    keys = dict.fromkeys(key for record in records for key in record.controls)
    attack = [*([(0, start)] if start else []), *((record.routers, record.asr) for record in records)]
    lines = [_control(key, records, start.rate if start else None, by) for key in keys]
    return [*lines, plot.Line(_top(by), "attack", _points(_top(by), attack))]


def _control(key: str, records: Sequence[Masked], origin: float | None, by: str) -> plot.Line:
    name = _name(key, by)
    found = [(record.routers, record.controls[key]) for record in records if key in record.controls]
    drawn = [(routers, control.draws) for routers, control in found if control.draws]
    return plot.Line(
        name,
        key if key in CONTROLS else "other",
        _points(name, [(routers, control.asr) for routers, control in found]),
        origin,
        band=[(n, min(d.rate for d in draws), max(d.rate for d in draws)) for n, draws in drawn],
        dots=[
            (n, d.rate, f"{name} {', '.join(map(str, d.layers))}: {d.rate:.0%}") for n, draws in drawn for d in draws
        ],
    )


def _points(name: str, rates: Sequence[tuple[int, Rate]]) -> list[plot.Point]:
    return [
        plot.Point(routers, rate.rate, rate.low, rate.high, f"{name}, {routers} masked: {text.full(rate)}")
        for routers, rate in rates
        if rate.rate is not None
    ]
