"""Limits: the rule that chooses on validation, and what is said of them on test with intervals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pointsman.data.scenario import Limits
from pointsman.jobs.steer import results as written
from pointsman.jobs.steer.limits import KINDS, broken_limits, excesses, limits_on_test
from pointsman.jobs.steer.results import Comparisons, OutcomeRates
from pointsman.stats.paired import Comparison
from pointsman.stats.rates import Rate

NOTHING: dict[str, Any] = dict.fromkeys(("gain", *KINDS))


def rate(k: int, n: int) -> Rate:
    return Rate(k, n, k / n, max(0.0, k / n - 0.1), min(1.0, k / n + 0.1), "made up")


def outcome(**rates: Rate | None) -> written.TestOutcome:
    more: dict[str, Any] = dict.fromkeys(("dsr_replay", "dsr_context", "gsr", "held_by_category"))
    any_compliance = rate(1, 2)
    return written.TestOutcome(
        **{**NOTHING, **rates}, **more, turns=(), unscored=0, any_compliance=any_compliance, by_category={}
    )  # fmt: skip


def difference(value: float, low: float, high: float) -> Comparison:
    return Comparison(value, low, high, 0.5, 0.5, 0, 0, 100, "made up")


def on_test(before: dict[str, Rate], after: dict[str, Rate], limits: Limits, **compared: Comparison) -> dict[str, Any]:
    arms = written.TestArms(before=outcome(**before), after=outcome(**after))
    found = limits_on_test(arms, Comparisons(**{**NOTHING, **compared}), limits)
    return {limit.measure: limit for limit in found}


def test_a_limit_has_the_interval_of_its_loss_rise_or_share() -> None:
    limits = Limits(benign=0.02, over_refusal=0.03, garbage=0.02)
    measures = ("benign", "over_refusal", "held", "garbage")
    before = after = {name: rate(50, 100) for name in measures}
    after = {**after, "garbage": Rate(2, 100, 0.02, 0.0, 0.021, "made up")}
    found = on_test(
        before, after, limits, benign=difference(-0.01, -0.021, 0.0), over_refusal=difference(0.031, 0.01, 0.05)
    )
    assert list(found) == list(measures), "what was not asked has no row"
    kinds = {name: (limit.kind, limit.value, limit.low, limit.high, limit.verdict) for name, limit in found.items()}
    assert kinds == {
        "benign": ("loss", 0.01, 0.0, 0.021, "kept, not surely"),
        "over_refusal": ("rise", 0.031, 0.01, 0.05, "broken"),
        "held": ("loss", None, None, None, "not measured"),
        "garbage": ("share", 0.02, 0.0, 0.021, "kept, not surely"),
    }
    assert on_test(before, after, limits, benign=difference(0.3, 0.2, 0.4))["benign"].verdict == "kept", "a gain"


@pytest.mark.parametrize("n", [7, 50, 100, 264, 300, 999])
def test_what_is_broken_on_test_is_what_the_choice_breaks(n: int) -> None:
    """At a limit itself, and one row beside it: a paired difference and a difference of rates round differently."""
    base = OutcomeRates(**{**NOTHING, **{name: rate(n // 2, n) for name in KINDS}, "garbage": rate(0, n)})
    seen = set()
    for lost in range(n // 3):
        limits = Limits(**dict.fromkeys(KINDS, round(lost / n, 3)))
        for beside in (-1, 0, 1):
            worse = min(max(lost + beside, 0), n // 2)
            now = {name: rate(n // 2 - worse, n) for name in ("benign", "benign_conversations", "held")}
            now |= {"over_refusal": rate(n // 2 + worse, n), "garbage": rate(worse, n)}
            loss, rise = difference(-worse / n, -1, 1), difference(worse / n, -1, 1)
            compared = {name: rise if kind == "rise" else loss for name, kind in KINDS.items() if kind != "share"}
            found = on_test({name: getattr(base, name) for name in KINDS}, now, limits, **compared)
            broken = broken_limits(replace(base, **now), base, limits)
            assert tuple(name for name, limit in found.items() if limit.verdict == "broken") == broken
            seen.add(len(broken))
    assert seen == {0, len(KINDS)}


def test_room_below_a_limit_is_a_negative_excess() -> None:
    base = OutcomeRates(**{**NOTHING, "benign": rate(90, 100), "garbage": rate(0, 100), "over_refusal": rate(1, 100)})
    found = excesses(base, base, Limits(benign=0.02, garbage=0.01, over_refusal=0.03))
    assert found == {"benign": -0.02, "garbage": -0.01, "over_refusal": -0.03}
