"""A rate, or a loss, against the most that it may be (METHODS section 5).

A limit is broken by the point estimate alone; it is kept surely only if the whole interval lies within it. Numbers
that differ by rounding are equal: 0.07 - 0.05 is not more than 0.02.
"""

from __future__ import annotations

ROUNDING = 1e-9
"""Less than any two different shares of countable rows differ by."""


def excess(value: float, limit: float) -> float:
    """How far `value` is beyond `limit`, to nine decimals, so that ties are ties; negative where there is room."""
    return round(value - limit, 9)


def exceeds(value: float, limit: float) -> bool:
    """Whether `value` is beyond `limit` by more than rounding."""
    return excess(value, limit) > ROUNDING
