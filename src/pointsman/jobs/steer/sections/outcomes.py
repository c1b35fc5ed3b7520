"""Before and after on the test split: the gain, what it costs against its limits, and other methods beside it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from pointsman.jobs.steer.plan import RIVALS
from pointsman.jobs.steer.results import Latency, SteerResults, TestOutcome
from pointsman.jobs.steer.sections import drawings
from pointsman.jobs.steer.sections.rates import RateColumns
from pointsman.jobs.steer.wording import ARMS, WRONG_WITHSTANDS, Wording, counts_wrong, known_limits, wording_for
from pointsman.report import text
from pointsman.report.blocks import (
    Bar,
    Block,
    Cell,
    Column,
    Finding,
    Heading,
    Legend,
    Reading,
    Row,
    Section,
    Table,
    Text,
    Value,
)
from pointsman.report.sections.unscored import unscored
from pointsman.runs.results import Limit
from pointsman.stats.paired import Comparison
from pointsman.stats.rates import Rate

LIMIT_STYLES = {"kept": "holds", "kept, not surely": "doubt", "broken": "broken", "not measured": "unknown"}
"""The style of a row, by the verdict on its limit."""
VERSUS: dict[str, str] = {**{name: f"vs_{name}" for name in RIVALS}, "before": "gain"}
"""The comparison of the chosen mask with an arm."""


def section(results: SteerResults) -> Section:
    """The gain with its other readings, the limits, and other methods."""
    wording = wording_for(results)
    return Section(
        "main",
        "Before and after",
        ["The same test prompts and the same pipeline; “without” is the mask at α = 0."],
        [
            Finding(_finding(results, wording)),
            Legend(drawings.BEFORE_OVER_AFTER),
            _gains(results, wording),
            Heading("What it costs, against its limits"),
            _costs(results, wording),
            Reading(
                "The dot is what was lost, in points, with its 95 % interval; the shaded side is over the limit. "
                "Garbage has a ceiling instead: the dot is its share under the mask.",
                "an interval reaches over its limit (“kept, not surely”): the point lies within it, and more prompts "
                "would have to say whether the rest does.",
            ),
            Text(_latency(results.latency)),
            Heading("Beside other ways"),
            *_other_methods(results, wording),
        ],
    )


def _finding(results: SteerResults, wording: Wording) -> str:
    before, after = results.test.before.gain, results.test.after.gain
    said = f"With the mask {text.full(after)} of the {wording.unit} are {wording.gain.lower()}"
    said += f", without it {text.short(before)}." if before.rate is not None else "."
    return f"{said} {_kept(known_limits(results), wording)}"


def _kept(limits: Sequence[Limit], wording: Wording) -> str:
    """How many limits were kept, in one sentence."""
    measured = [limit for limit in limits if limit.verdict != "not measured"]
    broken, unsure = (
        [wording.within(limit.measure) for limit in measured if limit.verdict == verdict]
        for verdict in ("broken", "kept, not surely")
    )
    if not measured:
        return "No limit could be checked."
    if broken:
        return f"It breaks {len(broken)} of {text.many(len(measured), 'limit')}: {_listed(broken)}."
    said = f"It keeps {'the limit' if len(measured) == 1 else f'all {len(measured)} limits'}"
    if not unsure:
        return f"{said}."
    reach = "interval of {} reaches" if len(unsure) == 1 else "intervals of {} reach"
    return f"{said}, though the {reach.format(_listed(unsure))} beyond."


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _gains(results: SteerResults, wording: Wording) -> Table:
    before, after = results.test.before, results.test.after
    readings: list[tuple[str, Rate | None, Rate | None, Comparison | None]]
    readings = [(f"{wording.gain}: {wording.definition}", before.gain, after.gain, results.comparisons.gain)]
    if before.dsr_context or after.dsr_context:
        name = "only the last turn answered again where it fell, the rest counted as defended (DSR, context)"
        readings.append((name, before.dsr_context, after.dsr_context, None))
    where = " at the last turn" if wording.objective == "defend" else ""
    readings.append((f"gives in{where}, whatever the content", before.any_compliance, after.any_compliance, None))
    columns = [Column("Measure"), Column.bars(), *Column.rates("Without", "With", "Difference, points")]
    rows = [
        Row([name, drawings.before_over_after(old, new), old, new, difference], top=number == 0)
        for number, (name, old, new, difference) in enumerate(readings)
    ]
    caption = f"What the mask is for: shares of {wording.unit} with 95 % intervals; the difference is paired."
    if counts_wrong(results):
        caption += f" {WRONG_WITHSTANDS}"
    return Table(columns, rows, caption, "stacked")


def _costs(results: SteerResults, wording: Wording) -> Table:
    """Every measure that has a limit."""
    axis = drawings.LossAxis.of(known_limits(results))
    columns = [
        Column("Measure"),
        Column("Without", "rate", optional=True),
        *Column.rates("With", "Difference, points"),
        Column("points lost →", "bar", optional=True),
        Column("Limit"),
    ]
    rows = []
    for limit in known_limits(results):
        before, after, difference = (
            getattr(side, limit.measure) for side in (results.test.before, results.test.after, results.comparisons)
        )
        cells: list[Value | Cell] = [
            wording.measure(limit.measure),
            Cell(before, fine=True),
            Cell(after, fine=True),
            Cell(None if limit.kind == "share" else difference, fine=True),  # a ceiling knows no before
            axis.strip(limit),
            Cell(Markup("<b>{}</b>").format(limit.verdict), beneath=_allowed(limit), classes="verdict"),
        ]
        rows.append(Row(cells, classes=LIMIT_STYLES[limit.verdict]))
    rows.append(Row(["", "", "", "", axis.ruler, ""], classes="ticks optional"))
    caption = "Shares with 95 % intervals; “difference” is paired, with less without, in points."
    return Table(columns, rows, caption, "stacked costs")


def _allowed(limit: Limit) -> str:
    if limit.most is None:
        return ""
    unit = f"{text.NARROW}%" if limit.kind == "share" else ""
    return f"{limit.kind} ≤{text.NARROW}{text.points(limit.most)}{unit}"


def _latency(found: Latency | None) -> str:
    if found is None:
        return "Latency was not measured."
    return (
        f"An answer takes {text.plain(found.ratio, 2)}{text.NARROW}× as long under the mask "
        f"{text.mean_interval(found.low, found.high)}, measured in {text.many(found.rounds, 'round')} with and without "
        "it in turn."
    )


# ---------------------------------------------------------------------- other methods


def rivals_of(results: SteerResults) -> list[str]:
    """What stands beside the chosen mask, measured or not: every way but its own."""
    return [arm for arm in ARMS if arm in RIVALS and arm != results.chosen.arm]


def _other_methods(results: SteerResults, wording: Wording) -> list[Block]:
    """The chosen mask beside the best of every other way, a random mask, no mask, and the upper bound."""
    arms: dict[str, TestOutcome] = {arm: found for arm in ARMS if (found := getattr(results.test, arm))}
    bound = results.upper_bound
    rates = RateColumns.of(list(arms.values()), wording)
    first, *others = rates.columns
    columns = [Column("Condition"), Column.bars(), first, *Column.rates("Chosen − this, points"), *others]
    rows, breaking = [], []
    for arm, outcome in arms.items():
        broken = results.broken_on_test if arm == "after" else outcome.broken
        breaking += [f"{ARMS[arm]} ({_listed([*map(wording.within, broken)])})"] if broken else []
        gain, *costs = rates.cells(outcome, broken)
        difference = getattr(results.comparisons, VERSUS[arm]) if arm in VERSUS else None
        bar = Bar.of(outcome.gain, "good" if arm == "after" else "plain")
        rows.append(Row([ARMS[arm], bar, gain, Cell(difference, bare=True), *costs], top=arm == "after"))
    if bound is not None:
        gain = Cell(bound.gain, bare=first.beneath == text.rows(bound.gain.n))
        name = Cell("upper bound", beneath=bound.what)
        rows.append(Row([name, Bar.of(bound.gain), gain, *[None] * (len(columns) - 3)]))
    return [
        Finding(_against_others(results, wording)),
        Table(columns, rows, "The same test prompts, 95 % intervals.", "dense split"),
        Text(
            f"Over their limits, in bold orange: {'; '.join(breaking)}."
            if breaking
            else "No limit is broken under any of them."
        ),
        *_absent(results),
        *unscored((ARMS[arm], outcome) for arm, outcome in arms.items()),
        Reading(
            "The random mask is as large as the chosen one and sits on experts drawn at random (of a conditional mask: "
            "it reads the same directions, and moves other experts). SteerMoE pins whole "
            "experts on or off, by paired responses as published, or by contexts. MASCing is the matrix of a "
            "surrogate: alone it is the paper’s own, on-policy is our refinement. Each was tuned on the same "
            "validation prompts.",
            "another row gains as much: then it is not this circuit that matters. Or garbage or over-refusal rises "
            "with the gain: then the model is broken, and not safe.",
        ),
    ]


def _against_others(results: SteerResults, wording: Wording) -> str:
    said = [
        f"{text.change_full(found)} points against {name}"
        for arm, name in {**ARMS, "random": "a random mask"}.items()
        if arm in RIVALS and getattr(results.test, arm) and (found := getattr(results.comparisons, VERSUS[arm]))
    ]
    if not said:
        return "No other method was measured beside this mask."
    return f"{wording.gain}, chosen mask less the other on the same {wording.unit}: {'; '.join(said)}."


def _absent(results: SteerResults) -> list[Block]:
    absent = [ARMS[arm] for arm in rivals_of(results) if not getattr(results.test, arm)]
    said = [f"Not measured in this run: {'; '.join(absent)}."] if absent else []
    said += ["No upper bound was given."] if results.upper_bound is None else []
    return [Text(" ".join(said))] if said else []
