"""Before and after on the test split: the gain, what it costs against its limits, and other methods beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pointsman.report.common import ARMS
from pointsman.report.geometry import Bar, Scale, Tick, rate_bar, ticks
from pointsman.report.steer.words import Words, many, measure_name, points
from pointsman.report.values import MISSING, NARROW, Difference, Node, Rate, plain
from pointsman.stats.bounds import exceeds

LOSSES = {"benign": -1, "benign_conversations": -1, "over_refusal": 1, "held": -1}
"""Measures with a limit, and the sign of a change for the worse."""

KEPT, UNSURE, BROKEN, OPEN = "kept", "kept, not surely", "broken", "not measured"
WORST = 3  # limits: the axis of losses ends at this multiple of the widest


@dataclass(frozen=True)
class Pair:
    """Two rates side by side; marks are in percents of the width."""

    name: str
    before: Rate | None
    after: Rate | None
    first: Bar | None
    second: Bar | None
    difference: Difference | None = None


def pair(name: str, before: Node | None, after: Node | None, difference: Node | None = None) -> Pair:
    old, new = (node.rate() if node else None for node in (before, after))
    return Pair(name, old, new, rate_bar(old), rate_bar(new), difference.difference() if difference else None)


@dataclass(frozen=True)
class Limited:
    """A measure against its limit. `low`, `value`, `high` and `limit` are losses in shares, worse upwards.

    Attributes:
        name: Of the measure.
        before, after: Its rates.
        difference: As written; of garbage, which has a ceiling and no paired difference, nothing.
        allowed: The limit in words.
        verdict: `KEPT`, `UNSURE`, `BROKEN` or `OPEN`.
    """

    name: str
    key: str
    before: Rate | None
    after: Rate | None
    difference: str
    value: float | None
    low: float | None
    high: float | None
    limit: float | None
    allowed: str
    verdict: str

    @property
    def style(self) -> str:
        return {KEPT: "holds", UNSURE: "doubt", BROKEN: "broken"}.get(self.verdict, "unknown")


def limited(results: Node, words: Words) -> list[Limited]:
    """Every measure that has a limit, in the order in which a reader would ask."""
    before, after = results["test"]["before"], results["test"]["after"]
    limits, compared = results["scenario"].get("limits"), results.get("comparisons")
    rows = []
    for key, worse in LOSSES.items():
        old, new = before.get(key), after.get(key)
        if old is None and new is None:
            continue
        found = compared.get(key) if compared else None
        change = found.difference() if found else Difference(None, None, None)
        edges = [None if edge is None else worse * edge for edge in (change.low, change.high)]
        low, high = edges if worse > 0 else edges[::-1]
        limit = _limit(limits, key)
        value = None if change.value is None else worse * change.value
        word = "rise" if worse > 0 else "loss"
        rows.append(
            Limited(
                measure_name(key, words),
                key,
                old.rate() if old else None,
                new.rate() if new else None,
                change.fine,
                value,
                low,
                high,
                limit,
                f"{word} ≤{NARROW}{points(limit)}" if limit is not None else MISSING,
                _verdict(value, high, limit),
            )
        )
    garbage, limit = after["garbage"].rate(), _limit(limits, "garbage")
    old = before.get("garbage")
    rows.append(
        Limited(
            measure_name("garbage", words),
            "garbage",
            old.rate() if old else None,
            garbage,
            MISSING,
            garbage.rate,
            garbage.low,
            garbage.high,
            limit,
            f"share ≤{NARROW}{points(limit)}{NARROW}%" if limit is not None else MISSING,
            _verdict(garbage.rate, garbage.high, limit),
        )
    )
    return rows


def _limit(limits: Node | None, key: str) -> float | None:
    found = limits.get(key) if limits else None
    return found.maybe() if found else None


def _verdict(value: float | None, high: float | None, limit: float | None) -> str:
    if value is None or limit is None:
        return OPEN
    if exceeds(value, limit):
        return BROKEN
    return UNSURE if high is None or exceeds(high, limit) else KEPT


@dataclass(frozen=True)
class Strip:
    """Where a loss stands on the common axis, in percents: its mark, its whisker and the limit."""

    at: float | None
    low: float
    high: float
    limit: float | None
    zero: float


def strips(rows: list[Limited]) -> tuple[list[Strip], list[Tick]]:
    """All losses on one axis in points; what is beyond its ends is drawn at the end."""
    limits = [row.limit for row in rows if row.limit is not None]
    reach = [abs(edge) for row in rows for edge in (row.low, row.high) if edge is not None]
    most = max([0.02, *(WORST * limit for limit in limits)])
    right = min(max([*(1.6 * limit for limit in limits), *reach, 0.02]), most)
    left = min(max([0.25 * right, *(-row.low for row in rows if row.low is not None)]), right)
    scale = Scale(-100 * left, 100 * right, 1.0, 99.0)
    placed = []
    for row in rows:
        low, high = (row.value if edge is None else edge for edge in (row.low, row.high))
        placed.append(
            Strip(
                at=None if row.value is None else scale(100 * row.value),
                low=scale(100 * (low or 0.0)),
                high=scale(100 * (high or 0.0)),
                limit=None if row.limit is None else scale(100 * row.limit),
                zero=scale(0.0),
            )
        )
    return placed, ticks(scale, 5)


def before_after(results: Node, words: Words) -> dict[str, Any]:
    """The gain with its other readings, and the limits."""
    test, compared = results["test"], results.get("comparisons")
    before, after = test["before"], test["after"]
    gained = compared.get("gain") if compared else None
    rows = [pair(f"{words.gain}: {words.measure}", before["gain"], after["gain"], gained)]
    if before.get("dsr_context") or after.get("dsr_context"):
        name = "only the last turn answered again where it fell, the rest counted as defended (DSR, context)"
        rows.append(pair(name, before.get("dsr_context"), after.get("dsr_context")))
    if before.get("any_compliance") or after.get("any_compliance"):
        rows.append(
            pair(
                f"gives in{' at the last turn' if words.turns else ''}, whatever the content",
                before.get("any_compliance"),
                after.get("any_compliance"),
            )
        )
    costs = limited(results, words)
    placed, marks = strips(costs)
    return {
        "finding": _finding(rows[0], costs, words),
        "gains": rows,
        "costs": list(zip(costs, placed, strict=True)),
        "ticks": marks,
        "latency": _latency(results.get("latency")),
    }


def _finding(gain: Pair, costs: list[Limited], words: Words) -> str:
    if gain.before is None or gain.after is None:
        return "Nothing could be scored."
    said = f"With the mask {gain.after.full} of the {words.unit} are {words.gain.lower()}"
    said += f", without it {gain.before.short}." if gain.before.rate is not None else "."
    return f"{said} {limits_said(costs)}"


def limits_said(costs: list[Limited]) -> str:
    """How many limits were kept, in one sentence."""
    scored = [row for row in costs if row.verdict != OPEN]
    if not scored:
        return "No limit could be checked."
    broken = [row for row in scored if row.verdict == BROKEN]
    unsure = [row for row in scored if row.verdict == UNSURE]
    if broken:
        said = f"It breaks {len(broken)} of {many(len(scored), 'limit')}: {_names(broken)}."
    else:
        said = f"It keeps {'the limit' if len(scored) == 1 else f'all {len(scored)} limits'}"
        reach = "interval of {} reaches" if len(unsure) == 1 else "intervals of {} reach"
        said += f", though the {reach.format(_names(unsure))} beyond." if unsure else "."
    return said


def _names(rows: list[Limited]) -> str:
    *names, last = [row.name[:1].lower() + row.name[1:] for row in rows]
    return f"{', '.join(names)} and {last}" if names else last


def _latency(node: Node | None) -> str:
    if node is None:
        return "Latency was not measured."
    ratio, low, high = (found.maybe() if (found := node.get(key)) else None for key in ("ratio", "low", "high"))
    if ratio is None:
        return "Latency was not measured."
    rounds = node.get("rounds")
    interval = f" [{plain(low, 2)}, {plain(high, 2)}]" if low is not None and high is not None else ""
    during = f", measured in {many(rounds.integer(), 'round')} with and without it in turn" if rounds else ""
    return f"An answer takes {plain(ratio, 2)}{NARROW}× as long under the mask{interval}{during}."


# ---------------------------------------------------------------------- other methods


@dataclass(frozen=True)
class Arm:
    """A condition on the same test rows. `difference` is the chosen mask less this."""

    name: str
    style: str
    gain: Rate | None
    bar: Bar | None
    difference: Difference | None
    costs: list[Rate | None]
    note: str = ""


def arms(results: Node, words: Words) -> dict[str, Any]:
    """The chosen mask beside SteerMoE, a random mask, the surrogate alone, no mask, and the upper bound."""
    test, compared = results["test"], results.get("comparisons")
    keys = ["garbage", "benign", "benign_conversations", "over_refusal", "held"]
    kinds = ("after", "surrogate_only", "steermoe", "random", "before")
    outcomes = {kind: found for kind in kinds if (found := test.get(kind)) is not None}
    keys = [key for key in keys if any(outcome.get(key) for outcome in outcomes.values())]
    paired = {"before": "gain", "steermoe": "vs_steermoe", "random": "vs_random", "surrogate_only": "vs_surrogate_only"}
    rows = []
    for kind, outcome in outcomes.items():
        against = compared.get(paired[kind]) if compared and kind in paired else None
        gain = outcome["gain"].rate()
        rows.append(
            Arm(
                "chosen mask" if kind == "after" else ARMS[kind],
                "good" if kind == "after" else "plain",
                gain,
                rate_bar(gain),
                against.difference() if against else None,
                [found.rate() if (found := outcome.get(key)) else None for key in keys],
            )
        )
    bound = results.get("upper_bound")
    if bound is not None:
        gain, what = bound["gain"].rate(), bound.get("what")
        note = what.text() if what else ""
        rows.append(Arm("upper bound", "plain", gain, rate_bar(gain), None, [None] * len(keys), note))
    absent = [ARMS[kind] for kind in ("steermoe", "random", "surrogate_only") if kind not in outcomes]
    said = [f"Not measured in this run: {', '.join(absent)}."] if absent else []
    said += ["No upper bound was given."] if bound is None else []
    return {
        "finding": _beside(outcomes, compared, words),
        "heads": [
            (measure_name(key, words), common_n(outcome.get(key) for outcome in outcomes.values())) for key in keys
        ],
        "n": common_n([*(outcome["gain"] for outcome in outcomes.values()), bound["gain"] if bound else None]),
        "rows": rows,
        "absent": " ".join(said),
    }


def common_n(nodes: Iterable[Node | None]) -> str:
    """`n = 120` if all these rates have the same n, for the head of a column; else nothing."""
    sizes = {node.rate().n for node in nodes if node}
    return f"n{NARROW}={NARROW}{sizes.pop()}" if len(sizes) == 1 else ""


def _beside(outcomes: dict[str, Node], compared: Node | None, words: Words) -> str:
    said = []
    for kind, key in (("steermoe", "vs_steermoe"), ("random", "vs_random")):
        found = compared.get(key) if compared and kind in outcomes else None
        if found is not None:
            change, name = found.difference(), ARMS[kind] if kind == "steermoe" else f"a {ARMS[kind]}"
            said.append(f"{change.short} points against {name}")
    if not said:
        return "No other method was measured beside this mask."
    return f"{words.gain}, chosen mask less the other on the same {words.unit}: {'; '.join(said)}."


# ---------------------------------------------------------------------- categories, tactics, turns


def by_group(results: Node, words: Words) -> list[dict[str, Any]]:
    """Before and after per category, tactic and held category: those that were measured."""
    before, after = results["test"]["before"], results["test"]["after"]
    groups = [
        (f"{words.gain} by category", "Category", _groups(before, after, "by_category")),
        (f"{words.gain} by tactic", "Tactic", _groups(before, after, "by_tactic")),
        (f"{words.held}, by category", "Category", _groups(before, after, "held_by_category", inner=False)),
    ]
    return [{"title": title, "head": head, "rows": rows} for title, head, rows in groups if rows]


def _groups(before: Node, after: Node, key: str, *, inner: bool = True) -> list[Pair]:
    old, new = (dict(found.items()) if (found := side.get(key)) else {} for side in (before, after))

    def rate(side: dict[str, Node], name: str) -> Node | None:
        found = side.get(name)
        if found is None or found.value is None:
            return None
        return found.get("gain") if inner else found

    return [pair(name, rate(old, name), rate(new, name)) for name in dict.fromkeys([*old, *new])]


@dataclass(frozen=True)
class Turn:
    """A turn: of those that reach it, how many fall there, before and after. Widths in percents."""

    turn: int
    before: str
    after: str
    first: float
    second: float


SHOWN_TURNS = 12


def turns(results: Node, words: Words) -> dict[str, Any] | None:
    """At which turn safety falls; None where the objective knows no turns."""
    sides = [results["test"][arm].get("turns") for arm in ("before", "after")]
    if not words.turns or not any(side is not None and side.rows() for side in sides):
        return None
    old, new = ({row["turn"].integer(): row for row in side.rows()} if side else {} for side in sides)
    rows = []
    for turn in sorted({*old, *new}):
        (first, before), (second, after) = _fell(old.get(turn)), _fell(new.get(turn))
        rows.append(Turn(turn, before, after, round(100 * first, 2), round(100 * second, 2)))
    return {"finding": _steepest(old, new), "rows": rows[:SHOWN_TURNS], "more": rows[SHOWN_TURNS:]}


def _fell(row: Node | None) -> tuple[float, str]:
    if row is None:
        return 0.0, MISSING
    reached, fallen = row["reached"].integer(), row["fallen"].integer()
    return (fallen / reached if reached else 0.0), f"{fallen} of {reached}"


def _steepest(old: dict[int, Node], new: dict[int, Node]) -> str:
    said = []
    for name, side in (("Without the mask", old), ("With it", new)):
        total = sum(row["fallen"].integer() for row in side.values())
        if not side:
            continue
        if not total:
            said.append(f"{name} none falls.")
            continue
        turn = max(side, key=lambda number: side[number]["fallen"].integer())
        said.append(f"{name} {total} fall, most of them ({side[turn]['fallen'].integer()}) at turn {turn}.")
    return " ".join(said)
