"""Masked routers beside their controls, with what each does to benign requests; and noise on all routers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pointsman.report.geometry import Bar, Point, Scale, Series, area, path, rate_bar
from pointsman.report.values import MISSING, Difference, Node, Rate, experts_text, tick_text

CHART_TOP, CHART_BOTTOM = 24, 284  # px; below it come the tick labels
DODGE = 1.3  # percent between the marks of one number of routers
TOP = "top routers by RoSais"
CONTROLS = {"random": "random routers", "lowest": "lowest RoSais", "dataset": "top routers, frozen mask"}
PAIRED = {"random": "difference_random", "lowest": "vs_lowest"}
PHASES = {
    "prefill": "while the prompt is read (prefill)",
    "decode": "while the answer is written (decode)",
    "both": "while the prompt is read and the answer written (both)",
}


def _masking(results: Node) -> list[Node]:
    found = results.get("masking")
    return found.rows() if found else []


def phases(results: Node) -> list[str]:
    """The phases in which routers were masked, in the order of the file."""
    return list(dict.fromkeys(row["phase"].text() for row in _masking(results) if row["routers"].integer() > 0))


def strongest(results: Node, phase: str | None = None) -> Node | None:
    """The record with most masked routers (the first phase wins a tie): chosen by n, never by its rate."""
    masked = [row for row in _masking(results) if row["routers"].integer() > 0]
    masked = [row for row in masked if phase in (None, row["phase"].text())]
    return max(masked, key=lambda row: row["routers"].integer()) if masked else None


def unmasked(results: Node) -> Node | None:
    """The record without any masked router."""
    return next((row for row in _masking(results) if row["routers"].integer() == 0), None)


@dataclass(frozen=True)
class Condition:
    """What is masked, and what the model then says. `difference` is the attack less this, on the same prompts."""

    name: str
    style: str
    layers: str
    asr: Rate
    bar: Bar | None
    difference: Difference | None
    any_compliance: Rate
    garbage: Rate
    utility: Rate | None
    over_refusal: Rate | None


def control_name(key: str) -> str:
    return CONTROLS.get(key, key.replace("_", " "))


def maybe_rate(node: Node | None) -> Rate | None:
    return None if node is None else node.rate()


def _condition(name: str, style: str, record: Node, layers: str, difference: Node | None = None) -> Condition:
    asr = record["asr"].rate()
    return Condition(
        name=name,
        style=style,
        layers=layers,
        asr=asr,
        bar=rate_bar(asr),
        difference=difference.difference() if difference else None,
        any_compliance=record["any_compliance"].rate(),
        garbage=record["garbage"].rate(),
        utility=maybe_rate(record.get("utility")),
        over_refusal=maybe_rate(record.get("over_refusal")),
    )


def conditions(record: Node, base: Node | None) -> list[Condition]:
    """The attack, every control at the same number of routers, and no mask at all."""
    found = [_condition(TOP, "attack", record, _layers(record))]
    for key, control in _ordered(record["controls"]):
        style = key if key in CONTROLS else "other"
        paired = record.get(PAIRED[key]) if key in PAIRED else None
        found.append(_condition(control_name(key), style, control, _layers(control), paired))
    if base is not None:
        found.append(_condition("no mask", "none", base, MISSING, record.get("vs_base")))
    return found


def _ordered(controls: Node) -> list[tuple[str, Node]]:
    """The nearest to the attack first, those that this version does not know last."""
    order = {key: place for place, key in enumerate(("dataset", "random", "lowest"))}
    return sorted(controls.items(), key=lambda item: order.get(item[0], len(order)))


def _layers(record: Node) -> str:
    mask = record.get("mask")
    if mask is not None:
        return "; ".join(f"layer {layer}: experts {experts_text(experts)}" for layer, experts in mask.items())
    draws, layers = record.get("draws"), record.get("layers")
    if draws is not None:
        many = len(draws.rows())
        return f"{many} {'set' if many == 1 else 'sets'}; benign answers under the first"
    numbers = layers.integers() if layers is not None else []
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}" if numbers else MISSING


def masking_section(results: Node) -> list[dict[str, Any]]:
    """One figure and table per phase, in the order of the file."""
    records = _masking(results)
    phases: dict[str, list[Node]] = {}
    for record in records:
        phases.setdefault(record["phase"].text(), []).append(record)
    base = unmasked(results)
    found = []
    for phase, rows in phases.items():
        rows = sorted((row for row in rows if row["routers"].integer()), key=lambda row: row["routers"].integer())
        if rows:
            found.append(_masking_phase(phase, base, rows))
    return found


def _masking_phase(phase: str, base: Node | None, records: list[Node]) -> dict[str, Any]:
    groups = [(record["routers"].integer(), conditions(record, base)) for record in records]
    most, last = groups[-1]
    x = Scale(0, max(most, 1), 10.0, 95.0)
    y = Scale(0.0, 1.0, CHART_BOTTOM, CHART_TOP)
    start = base["asr"].rate() if base is not None else None
    names = list(dict.fromkeys(key for record in records for key, _ in record["controls"].items()))
    series = [
        _control_series(name, records, start, x, y, DODGE * (i // 2 + 1) * (1 if i % 2 == 0 else -1))
        for i, name in enumerate(names)
    ]
    begin = [(0, start)] if start is not None else []
    attack = [*begin, *((number, rows[0].asr) for number, rows in groups)]
    series.append(_series(TOP, "attack", attack, x, y, 0.0))
    return {
        "phase": phase,
        "when": PHASES.get(phase, phase),
        "series": list(reversed(series)),
        "drawn": series,
        "most": most,
        "last": last,
        "groups": groups,
        "utility": any(row.utility is not None for _, rows in groups for row in rows),
        "frozen": _frozen(records[-1]),
        "y_ticks": [(y(share), f"{share:.0%}".replace("%", "\u202f%")) for share in (0, 0.25, 0.5, 0.75, 1)],
        "x_ticks": [(x(number), number) for number in [*([0] if start is not None else []), *(n for n, _ in groups)]],
        "top": CHART_TOP,
        "bottom": CHART_BOTTOM,
        "height": CHART_BOTTOM + 44,
        "finding": _finding(most, last, start),
    }


def _finding(most: int, last: list[Condition], start: Rate | None) -> str:
    which = "the top router" if most == 1 else f"the top {most} routers"
    said = f"Masking {which} takes ASR " + (f"from {start.short} " if start else "") + f"to {last[0].asr.short}"
    random = next((row for row in last if row.style == "random"), None)
    if random is None:
        return said + "."
    others = "a random router reaches" if most == 1 else f"{most} random routers reach"
    return f"{said}; {others} {random.asr.short} on average."


def _frozen(record: Node) -> str:
    """What a mask chosen once, on other prompts, adds."""
    control = record["controls"].get("dataset")
    found = control.get("vs_base") if control else None
    if control is None or found is None:
        return ""
    rise = found.difference()
    chance = f", {rise.chance}" if rise.chance else ""
    return f"The frozen mask, chosen on the discovery prompts, adds {rise.short} points to no mask{chance}."


def _series(
    name: str, style: str, rates: list[tuple[int, Rate]], x: Scale, y: Scale, dodge: float, prefix: str = ""
) -> Series:
    points = [
        Point(
            round(x(routers) + (dodge if routers else 0.0), 2),
            y(rate.rate),
            y(rate.rate if rate.low is None else rate.low),
            y(rate.rate if rate.high is None else rate.high),
            f"{prefix or name}, {routers} masked: {rate.full}",
        )
        for routers, rate in rates
        if rate.rate is not None
    ]
    return Series(name, style, points, path([(point.x, point.y) for point in points]))


def _control_series(key: str, records: list[Node], start: Rate | None, x: Scale, y: Scale, dodge: float) -> Series:
    """A control starts at the base rate: with no router masked, all are the same."""
    style = key if key in CONTROLS else "other"
    rates = [
        (record["routers"].integer(), node["asr"].rate()) for record in records if (node := record["controls"].get(key))
    ]
    from_base = start is not None and start.rate is not None
    line = _series(control_name(key), style, [(0, start), *rates] if start and from_base else rates, x, y, dodge)
    upper: list[tuple[float, float]] = []
    lower: list[tuple[float, float]] = []
    draws: list[Point] = []
    for record in records:
        control = record["controls"].get(key)
        drawn = control.get("draws") if control else None
        if drawn is None:
            continue
        known = [(node["rate"].maybe(), node["layers"].integers()) for node in drawn.rows()]
        shares = [(share, layers) for share, layers in known if share is not None]
        at = x(record["routers"].integer())
        for share, layers in shares:
            title = f"{control_name(key)} {', '.join(map(str, layers))}: {share:.0%}"
            draws.append(Point(at, y(share), y(share), y(share), title))
        if shares:
            upper.append((at, y(max(share for share, _ in shares))))
            lower.append((at, y(min(share for share, _ in shares))))
    if upper and start is not None and start.rate is not None:
        upper.insert(0, (x(0), y(start.rate)))
        lower.insert(0, (x(0), y(start.rate)))
    points = line.points[1:] if from_base else line.points
    return Series(line.name, style, points, line.line, area(upper, lower), tuple(draws))


# --- noise ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseRow:
    """`difference` is the ASR under this noise less that without any."""

    sigma: str
    asr: Rate
    bar: Bar | None
    difference: Difference | None
    any_compliance: Rate
    garbage: Rate
    utility: Rate | None
    utility_bar: Bar | None


def noise_section(results: Node) -> dict[str, Any] | None:
    """No noise, then every level of it."""
    records = results["noise"].rows()
    if not records:
        return None
    base = unmasked(results)
    rows = [_noise_row("0", base)] if base is not None else []
    levels = sorted(records, key=lambda record: record["sigma"].number())
    rows += [_noise_row(tick_text(record["sigma"].number()), record) for record in levels]
    most = rows[-1]
    finding = f"Noise of {most.sigma} σ on every router, without any search, leaves ASR at {most.asr.short}"
    if most.difference is not None and most.difference.above:
        finding = f"Noise of {most.sigma} σ on every router, without any search, takes ASR to {most.asr.short}"
    if most.utility is not None:
        finding += f" and utility at {most.utility.short}"
    return {
        "rows": rows,
        "utility": any(row.utility is not None for row in rows),
        "phase": levels[0]["phase"].text(),
        "finding": finding + ".",
    }


def _noise_row(sigma: str, record: Node) -> NoiseRow:
    asr, utility = record["asr"].rate(), maybe_rate(record.get("utility"))
    found = record.get("vs_base") if sigma != "0" else None
    return NoiseRow(
        sigma=sigma,
        asr=asr,
        bar=rate_bar(asr),
        difference=found.difference() if found else None,
        any_compliance=record["any_compliance"].rate(),
        garbage=record["garbage"].rate(),
        utility=utility,
        utility_bar=rate_bar(utility),
    )
