"""Two things measured on the same rows: differences with intervals, exact tests (METHODS section 0).

Two rates on the same prompts are paired row by row. Where rows share a source question, whole clusters are drawn and
exchanged, never single rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pointsman.stats.intervals import Floats, spanning, wilson, wilson_of_difference
from pointsman.stats.resampling import bootstrap_mean, bootstrap_mean_of_draws, sums_by_cluster


@dataclass(frozen=True)
class Comparison:
    """Two rates on the same prompts.

    Attributes:
        difference: Rate of the first less rate of the second; None if there are no rows.
        low, high: 95 % interval of the difference, within [-1, 1].
        p_mcnemar: Two-sided exact McNemar p-value. It counts rows, not clusters: where rows are clustered,
            trust `p_clustered` and the interval.
        p_clustered: Two-sided exact p-value of exchanging the two in whole clusters; McNemar's, where each row is
            one.
        n01: Rows where only the second succeeded.
        n10: Rows where only the first succeeded.
        n: Rows.
        method: How the interval was made, in words.
        clusters: Number of source questions, or None if the rows were not clustered.
    """

    difference: float | None
    low: float
    high: float
    p_mcnemar: float
    p_clustered: float
    n01: int
    n10: int
    n: int
    method: str
    clusters: int | None = None


def compare(a: Sequence[bool], b: Sequence[bool], clusters: Sequence[str] | None = None, seed: int = 0) -> Comparison:
    """Compare two rates on the same prompts, row by row.

    Args:
        a, b: Truth values of the same rows in the same order. Shape: [n].
        clusters: Source question of each row; None if the rows are independent. Shape: [n].
        seed: Seed of the paired bootstrap.

    Raises:
        ValueError: `a` and `b` differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired comparison needs the same rows: {len(a)} and {len(b)}")
    delta = np.asarray([float(bool(x)) - float(bool(y)) for x, y in zip(a, b, strict=True)], dtype=np.float64)
    n, n10, n01 = len(delta), int((delta > 0).sum()), int((delta < 0).sum())
    if n == 0:
        return Comparison(None, -1.0, 1.0, 1.0, 1.0, 0, 0, 0, "no rows", None if clusters is None else 0)
    p = mcnemar_p(n10, n01)
    sums, sizes, _ = sums_by_cluster(delta, clusters)
    c, difference = len(sizes), (n10 - n01) / n
    if n10 + n01 == 0:
        high = wilson(0.0, c)[1]
        low, method = -high, f"Wilson bound on discordant pairs, {c} independent"
    elif np.ptp(sums / sizes) == 0:
        low, high = wilson_of_difference(difference, c)
        method = f"Wilson on {c} clusters (all alike: no bootstrap)"
    else:
        low, high = spanning(bootstrap_mean(sums, sizes, seed), difference)
        method = f"paired bootstrap over {c} {'rows' if clusters is None else 'clusters'}"
    count = None if clusters is None else c
    return Comparison(difference, low, high, p, exchange_p(sums), n01, n10, n, method, count)


def mcnemar_p(n10: int, n01: int) -> float:
    """Two-sided exact McNemar p-value of discordant pairs: those where only the first succeeded, only the second."""
    return float(stats.binomtest(n10, n10 + n01, 0.5).pvalue) if n10 + n01 else 1.0


def exchange_p(sums: Floats) -> float:
    """Two-sided exact p-value of exchanging the two in whole clusters.

    Args:
        sums: Successes of the first less those of the second, by cluster: whole numbers. Shape: [c].

    Returns:
        The share of all 2^c flips of their signs whose sum is as far from 0, or farther.
    """
    sizes = np.abs(sums).round().astype(np.int64)
    total, reach = int(sizes.sum()), abs(round(float(sums.sum())))
    chance = np.zeros(2 * total + 1)  # of every sum from -total to total, exactly
    chance[total] = 1.0
    for size in sizes[sizes > 0]:
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2  # what wraps around is 0
    far = np.abs(np.arange(-total, total + 1)) >= reach
    return min(1.0, float(chance[far].sum()))


@dataclass(frozen=True)
class AboveDraws:
    """An attack held against several draws of a control on the same rows.

    Attributes:
        difference: Rate of the attack less the mean rate of the draws.
        low, high: 95 % interval of the difference, which knows the spread between draws.
        draws: Of the control.
        reached: How many of them reach the rate of the attack.
        p_draws: (1 + reached) / (1 + draws).
    """

    difference: float
    low: float
    high: float
    draws: int
    reached: int
    p_draws: float


def above_draws(
    a: Sequence[bool], draws: Sequence[Sequence[bool]], clusters: Sequence[str] | None = None, seed: int = 0
) -> AboveDraws:
    """Hold an attack against several draws of a control on the same rows.

    Args:
        a: Shape: [n].
        draws: Shape: [draws, n].
        clusters: Source question of each row. Shape: [n].
        seed: Seed of the bootstrap.
    """
    attack, control = np.asarray(a, dtype=np.float64), np.asarray(draws, dtype=np.float64)
    names = [str(row) for row in range(len(attack))] if clusters is None else clusters
    rises = attack[None] - control  # shape: [draws, n]
    mean, interval, c = bootstrap_mean_of_draws(rises, names, seed)
    if np.ptp(rises) == 0:
        interval = wilson_of_difference(mean, c)
    low, high = spanning(interval, mean)
    reached = int((control.mean(axis=1) >= attack.mean()).sum())
    return AboveDraws(mean, low, high, len(control), reached, (1 + reached) / (1 + len(control)))
