"""Intervals of 95 %: Wilson's, and what lies between the percentiles of bootstrap draws (METHODS section 0)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]
"""Low and high."""

LEVEL = 0.95
FEW = 10
"""With fewer clusters that differ from the rest a bootstrap is too narrow, and is widened to Wilson's interval."""

TAILS = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
"""Where the intervals of rates, means and differences end."""

DECIMAL_TAILS = (0.025, 0.975)
"""The same for AUROCs, ranges of halves and medians. 0.5 - 0.95 / 2 is not 0.025 but 2e-17 more, which is seen in the
last digit of a percentile; either is kept, so that results never change."""

Z = float(stats.norm.ppf(0.5 + LEVEL / 2))


def wilson(rate: float, n: float) -> Interval:
    """95 % Wilson score interval of a proportion `rate` in `n` > 0 rows (or an effective number of rows)."""
    z2 = Z * Z
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    low = 0.0 if rate == 0 else max(0.0, centre - half)
    high = 1.0 if rate == 1 else min(1.0, centre + half)
    return low, high


def rows_of_wilson(rate: float, width: float) -> float:
    """In how many rows Wilson's interval of `rate` is as wide as this: infinitely many if it has no width.

    It solves `wilson` for 1 / n, of which the square of half the width is a quadratic function over another.
    """
    z2, half2, variance = Z * Z, (width / 2) ** 2, rate * (1 - rate)
    if half2 <= 0:
        return math.inf
    if half2 >= 0.25:
        return 0.0
    a, b = z2 * z2 * (0.25 - half2), z2 * (variance - 2 * half2)
    return 2 * a / (math.sqrt(b * b + 4 * a * half2) - b)


def wilson_of_difference(difference: float, n: float) -> Interval:
    """Wilson's interval for a difference from -1 to 1 that does not vary over `n` rows: that of a share, stretched."""
    low, high = wilson((difference + 1) / 2, n)
    return 2 * low - 1, 2 * high - 1


def difference_of_independent(a: float, of_a: Interval, b: float, of_b: Interval) -> Interval:
    """95 % interval of a - b, two independent estimates with their intervals (square-and-add: Zou and Donner, 2008)."""
    difference = a - b
    return difference - math.hypot(a - of_a[0], of_b[1] - b), difference + math.hypot(of_a[1] - a, b - of_b[0])


def percentiles(draws: Floats, tails: Interval = TAILS) -> Interval:
    """Between them lie 95 % of the `draws`, linearly interpolated. Shape: [draws], at least one."""
    low, high = np.quantile(draws, tails)
    return float(low), float(high)


def spanning(interval: Interval, *points: float) -> Interval:
    """The smallest interval that holds `interval` and all `points`."""
    low, high = interval
    return min(low, *points), max(high, *points)
