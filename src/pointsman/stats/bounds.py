"""A rate, or a loss, against the most that it may be (METHODS section 5).

A limit is broken by the point estimate alone; it is kept surely only if the whole interval lies within it. Numbers
that differ by rounding are equal: 0.07 - 0.05 is not more than 0.02. `most_lost` is for choosing: a one-sided bound,
which holds for few rows, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

from pointsman.stats.corrected import effective_n

ROUNDING = 1e-9
"""Less than any two different shares of countable rows differ by."""


def excess(value: float, limit: float) -> float:
    """How far `value` is beyond `limit`, to nine decimals, so that ties are ties; negative where there is room."""
    return round(value - limit, 9)


def exceeds(value: float, limit: float) -> bool:
    """Whether `value` is beyond `limit` by more than rounding."""
    return excess(value, limit) > ROUNDING


def most_lost(
    lost: Sequence[bool], regained: Sequence[bool], clusters: Sequence[str] | None, confidence: float
) -> float:
    """One-sided upper bound of a net loss, as a share, from paired rows.

    The shares of rows lost and regained have Clopper and Pearson's bounds, on as many rows as they are worth, which are
    put together as Zou and Donner (2008) do for a difference. Nothing lost is worth no more than one row a cluster, and
    what was lost is never surer than nothing lost.

    Args:
        lost, regained: Of the same rows; of a share that is limited by itself, where it was found, and nothing.
            Shape: [n], n > 0.
        clusters: Of each row; None if they are independent. Shape: [n].
        confidence: Between 0 and 1.
    """
    n = len(lost)
    independent = n if clusters is None else len(set(clusters))
    (worse, rows), (better, others) = ((sum(some) / n, effective_n(some, clusters)) for some in (lost, regained))
    high = max(_upper(worse, rows, confidence), _upper(0.0, independent, confidence))
    low = 1 - _upper(1 - better, others, confidence)
    return worse - better + math.hypot(high - worse, better - low)


def rows_needed(limit: float, confidence: float) -> int | None:
    """In how many independent rows nothing may be lost for `most_lost` to lie within a limit; None if in no number."""
    if limit <= 0:
        return None
    return 1 if limit >= 1 else math.ceil(math.log(1 - confidence) / math.log(1 - limit) - ROUNDING)


def _upper(share: float, rows: float, confidence: float) -> float:
    """Clopper and Pearson's one-sided bound of a share of so many rows."""
    return 1.0 if share >= 1 else float(stats.beta.ppf(confidence, share * rows + 1, (1 - share) * rows))
