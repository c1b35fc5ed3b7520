"""What a mask may cost: which measures have a limit, and when one is broken (METHODS section 5.6).

The same rule chooses among candidates on validation (where limits are kept with margin, see `margins`) and says of the
chosen one on test what it broke.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pointsman.data.scenario import Limits
from pointsman.jobs.steer.results import Comparisons, OutcomeRates, TestArms
from pointsman.runs.results import Limit
from pointsman.stats.bounds import ROUNDING, excess
from pointsman.stats.rates import Rate

KINDS: Mapping[str, Literal["loss", "rise", "share"]] = {
    "benign": "loss", "benign_conversations": "loss", "over_refusal": "rise", "held": "loss", "garbage": "share",
}  # fmt: skip
"""Every measure with a limit: of its ``loss`` or ``rise`` against the unsteered model, or of the ``share`` itself."""


def excesses(rates: OutcomeRates, base: OutcomeRates, limits: Limits) -> dict[str, float]:
    """How far every rate is beyond its limit, by point estimates; negative where there is room."""
    found = {}
    for measure, kind in KINDS.items():
        now, before = getattr(rates, measure), getattr(base, measure)
        if now is not None and (before is not None or kind == "share"):
            value = point(now) if kind == "share" else point(now) - point(before)
            found[measure] = excess(-value if kind == "loss" else value, getattr(limits, measure))
    return found


def broken_limits(rates: OutcomeRates, base: OutcomeRates, limits: Limits) -> tuple[str, ...]:
    """The limits that these rates break, by their point estimates, against those of the unsteered model."""
    return tuple(measure for measure, beyond in excesses(rates, base, limits).items() if beyond > ROUNDING)


def limits_on_test(test: TestArms, comparisons: Comparisons, limits: Limits) -> tuple[Limit, ...]:
    """What the chosen mask lost on test, with intervals, against the most that it may lose."""
    found = []
    for measure, kind in KINDS.items():
        now, change = getattr(test.after, measure), getattr(comparisons, measure)
        if now is None:
            continue
        value, low, high = None, None, None
        if kind == "share":
            value, low, high = now.rate, now.low, now.high
        elif change is not None:
            value, low, high = change.difference, change.low, change.high
            if kind == "loss":
                value, low, high = 0.0 - value, 0.0 - high, 0.0 - low
        found.append(Limit.of(measure, kind, getattr(limits, measure), value, (low, high)))
    return tuple(found)


def point(rate: Rate) -> float:
    """The share itself; 0 if there are no rows."""
    return 0.0 if rate.rate is None else rate.rate
