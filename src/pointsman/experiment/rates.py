"""Rates and means with their 95 % intervals, and paired comparisons (METHODS section 0).

Rows that are independent get a Wilson interval (rates) or a t interval (means). Rows that share a source
question are not: then clusters are drawn with replacement, and the interval runs between the 2.5 and 97.5
percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

DRAWS = 10_000
"""Bootstrap draws."""

LEVEL = 0.95
_Z = float(stats.norm.ppf(0.5 + LEVEL / 2))
_FEW = 10  # clusters that differ from the rest
_CHUNK = 4_000_000  # cells of one block of the bootstrap: bounded memory, about 100 MB

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """Successes among rows.

    Attributes:
        k: Successes.
        n: Rows.
        rate: k / n; NaN if there are no rows (None in JSON).
        low, high: 95 % interval, within [0, 1].
        method: How the interval was made, in words.
        clusters: Number of source questions, or None if the rows were not clustered.
    """

    k: int
    n: int
    rate: float
    low: float
    high: float
    method: str
    clusters: int | None = None

    @staticmethod
    def of(successes: Sequence[bool], clusters: Sequence[str] | None = None, seed: int = 0) -> Rate:
        """The rate of `successes`.

        Args:
            successes: One truth value a row. Shape: [n].
            clusters: Source question of each row; None if the rows are independent. Shape: [n].
            seed: Seed of the bootstrap.
        """
        values = np.asarray([bool(s) for s in successes], dtype=np.float64)  # shape: [n]
        n, k = len(values), int(values.sum())
        if n == 0:
            return Rate(0, 0, math.nan, 0.0, 1.0, "no rows", None if clusters is None else 0)
        sums, sizes, clustered = _by_cluster(values, clusters)
        c = len(sizes)
        rate = k / n
        if not clustered:
            low, high = wilson(rate, n)
            return Rate(k, n, rate, low, high, "Wilson", None if clusters is None else c)
        if np.ptp(sums / sizes) == 0:
            low, high = wilson(rate, c)
            return Rate(k, n, rate, low, high, f"Wilson on {c} clusters (all alike: no bootstrap)", c)
        low, high = _bootstrap(sums, sizes, seed)
        method = f"bootstrap over {c} clusters"
        if min((sums > 0).sum(), (sums < sizes).sum()) < _FEW:  # close to 0 or 1 the bootstrap is too narrow
            widest = wilson(rate, c)
            low, high, method = min(low, widest[0]), max(high, widest[1]), f"{method}, widened to Wilson on them"
        return Rate(k, n, rate, min(low, rate), max(high, rate), method, c)

    @staticmethod
    def over_draws(successes: Sequence[Sequence[bool]], clusters: Sequence[str] | None = None, seed: int = 0) -> Rate:
        """The mean rate of several draws of a control on the same rows; n counts rows, not rows x draws.

        Args:
            successes: Shape: [draws, n].
            clusters: Source question of each row; None if the rows are independent. Shape: [n].
            seed: Seed of the bootstrap, which draws draws and clusters with replacement.
        """
        values = np.asarray(successes, dtype=np.float64)  # shape: [draws, n]
        draws, n = values.shape
        names = [str(row) for row in range(n)] if clusters is None else clusters
        mean, low, high, c = _two_way(values, names, seed)
        method = f"two-way bootstrap over {draws} draws and {c} clusters"
        if np.ptp(values) == 0 or min((values > 0).any(0).sum(), (values < 1).any(0).sum()) < _FEW:
            widest = wilson(mean, c)
            low, high, method = min(low, widest[0]), max(high, widest[1]), f"{method}, widened to Wilson on them"
        return Rate(round(mean * n), n, mean, min(low, mean), max(high, mean), method, c)

    def to_json(self) -> dict[str, Any]:
        """As in ``results.json``; `rate` is None if there are no rows."""
        return {
            "k": self.k,
            "n": self.n,
            "rate": _or_none(self.rate),
            "low": self.low,
            "high": self.high,
            "method": self.method,
            "clusters": self.clusters,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Rate:
        """The inverse of `to_json`."""
        rate = math.nan if data["rate"] is None else data["rate"]
        return Rate(
            data["k"],
            data["n"],
            rate,
            data["low"],
            data["high"],
            data.get("method", ""),
            data.get("clusters"),
        )

    def __str__(self) -> str:
        if self.n == 0:
            return "no rows"
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}], {self.k} of {self.n}"


@dataclass(frozen=True)
class Mean:
    """A mean of numbers.

    Attributes:
        mean: In the unit of the values; NaN if there are none (None in JSON).
        low, high: 95 % interval; infinite if there are too few values to tell (None in JSON).
        n: Rows.
        method: How the interval was made, in words.
        clusters: Number of source questions, or None if the rows were not clustered.
    """

    mean: float
    low: float
    high: float
    n: int
    method: str
    clusters: int | None = None

    @staticmethod
    def of(values: Sequence[float], clusters: Sequence[str] | None = None, seed: int = 0) -> Mean:
        """The mean of `values`.

        Args:
            values: Finite numbers. Shape: [n].
            clusters: Source question of each value; None if they are independent. Shape: [n].
            seed: Seed of the bootstrap.

        Raises:
            ValueError: A value is not finite.
        """
        x = np.asarray(values, dtype=np.float64)  # shape: [n]
        if not np.isfinite(x).all():
            raise ValueError("the mean of values that are not finite is not defined")
        n = len(x)
        if n == 0:
            return Mean(math.nan, -math.inf, math.inf, 0, "no rows", None if clusters is None else 0)
        sums, sizes, clustered = _by_cluster(x, clusters)
        c, mean = len(sizes), float(x.mean())
        count = None if clusters is None else c
        if c == 1:
            return Mean(mean, -math.inf, math.inf, n, "one cluster: no interval" if clustered else "one row", count)
        if np.ptp(x) == 0:
            return Mean(mean, -math.inf, math.inf, n, "all alike: no interval", count)
        if not clustered:
            half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * float(x.std(ddof=1)) / math.sqrt(n)
            return Mean(mean, mean - half, mean + half, n, "t", count)
        low, high = _bootstrap(sums, sizes, seed)
        return Mean(mean, min(low, mean), max(high, mean), n, f"bootstrap over {c} clusters", c)

    def to_json(self) -> dict[str, Any]:
        """As in ``results.json``; what is not finite is None."""
        return {
            "mean": _or_none(self.mean),
            "low": _or_none(self.low),
            "high": _or_none(self.high),
            "n": self.n,
            "method": self.method,
            "clusters": self.clusters,
        }


@dataclass(frozen=True)
class Comparison:
    """Two rates on the same prompts.

    Attributes:
        difference: Rate of the first less rate of the second; NaN if there are no rows (None in JSON).
        low, high: 95 % interval of the difference, within [-1, 1].
        p_mcnemar: Two-sided exact McNemar p-value. It counts rows, not clusters: where rows are clustered,
            trust `p_clustered` and the interval.
        n01: Rows where only the second succeeded.
        n10: Rows where only the first succeeded.
        n: Rows.
        method: How the interval was made, in words.
        clusters: Number of source questions, or None if the rows were not clustered.
        p_clustered: Two-sided exact p-value of exchanging the two in whole clusters; McNemar's, where each row is
            one.
    """

    difference: float
    low: float
    high: float
    p_mcnemar: float
    n01: int
    n10: int
    n: int
    method: str
    clusters: int | None = None
    p_clustered: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """As in ``results.json``."""
        return {
            "difference": _or_none(self.difference),
            "low": self.low,
            "high": self.high,
            "p_mcnemar": self.p_mcnemar,
            "p_clustered": self.p_clustered,
            "n01": self.n01,
            "n10": self.n10,
            "n": self.n,
            "method": self.method,
            "clusters": self.clusters,
        }


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
        return Comparison(math.nan, -1.0, 1.0, 1.0, 0, 0, 0, "no rows", None if clusters is None else 0)
    p = float(stats.binomtest(n10, n10 + n01, 0.5).pvalue) if n10 + n01 else 1.0
    sums, sizes, _ = _by_cluster(delta, clusters)
    c, difference = len(sizes), (n10 - n01) / n
    if n10 + n01 == 0:
        high = wilson(0.0, c)[1]
        low, method = -high, f"Wilson bound on discordant pairs, {c} independent"
    elif np.ptp(sums / sizes) == 0:
        low, high = (2 * bound - 1 for bound in wilson((difference + 1) / 2, c))
        method = f"Wilson on {c} clusters (all alike: no bootstrap)"
    else:
        low, high = _bootstrap(sums, sizes, seed)
        low, high = min(low, difference), max(high, difference)
        method = f"paired bootstrap over {c} {'rows' if clusters is None else 'clusters'}"
    count = None if clusters is None else c
    return Comparison(difference, low, high, p, n01, n10, n, method, count, _sign_flips(sums))


def _sign_flips(sums: Floats) -> float:
    """Share of all 2^c sign flips of whole numbers whose sum is as far from 0, or farther. sums: shape [c]."""
    sizes = np.abs(sums).round().astype(np.int64)
    total, reach = int(sizes.sum()), abs(round(float(sums.sum())))
    chance = np.zeros(2 * total + 1)  # of every sum from -total to total, exactly
    chance[total] = 1.0
    for size in sizes[sizes > 0]:
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2  # what wraps around is 0
    far = np.abs(np.arange(-total, total + 1)) >= reach
    return min(1.0, float(chance[far].sum()))


def above_draws(
    a: Sequence[bool], draws: Sequence[Sequence[bool]], clusters: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """An attack held against several draws of a control on the same rows.

    Args:
        a: Shape: [n].
        draws: Shape: [draws, n].
        clusters: Source question of each row. Shape: [n].
        seed: Seed of the bootstrap.

    Returns:
        The difference of the rate of `a` and the mean rate of the draws with its interval, which knows the spread
        between draws; how many of the `draws` reach the rate of `a`; and `p` = (1 + that) / (1 + draws).
    """
    attack, control = np.asarray(a, dtype=np.float64), np.asarray(draws, dtype=np.float64)
    names = [str(row) for row in range(len(attack))] if clusters is None else clusters
    rises = attack[None] - control  # shape: [draws, n]
    mean, low, high, c = _two_way(rises, names, seed)
    if np.ptp(rises) == 0:
        low, high = (2 * bound - 1 for bound in wilson((mean + 1) / 2, c))
    reached = int((control.mean(axis=1) >= attack.mean()).sum())
    return {
        "difference": mean, "low": min(low, mean), "high": max(high, mean), "draws": len(control), "reached": reached,
        "p_draws": (1 + reached) / (1 + len(control)),
    }  # fmt: skip


def wilson(rate: float, n: float) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion `rate` in `n` > 0 rows (or an effective number of rows)."""
    z2 = _Z * _Z
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    low = 0.0 if rate == 0 else max(0.0, centre - half)
    high = 1.0 if rate == 1 else min(1.0, centre + half)
    return low, high


def _by_cluster(values: Floats, clusters: Sequence[str] | None) -> tuple[Floats, Floats, bool]:
    """Sum and size of every cluster in the order of their names, shape [c]; and whether rows share any."""
    if clusters is None:
        return values, np.ones_like(values), False
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} rows need as many clusters, not {len(clusters)}")
    names, index = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    c = len(names)
    sums = np.bincount(index, weights=values, minlength=c).astype(np.float64)
    sizes = np.bincount(index, minlength=c).astype(np.float64)
    return sums, sizes, c < len(values)


def _bootstrap(sums: Floats, sizes: Floats, seed: int) -> tuple[float, float]:
    """Percentile interval of sum / size over clusters drawn with replacement. sums, sizes: shape [c]."""
    rng = np.random.default_rng(seed)
    c = len(sums)
    means = np.empty(DRAWS)
    step = max(1, _CHUNK // c)
    for start in range(0, DRAWS, step):
        size = min(step, DRAWS - start)
        drawn = rng.integers(c, size=(size, c))  # shape: [size, c]
        means[start : start + size] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def _two_way(values: Floats, clusters: Sequence[str], seed: int) -> tuple[float, float, float, int]:
    """Mean and percentile interval of values [draws, n], draws and clusters drawn with replacement; and clusters."""
    names, index = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    draws, c = len(values), len(names)
    member = np.eye(c)[index]  # shape: [n, c]
    sums, sizes = values @ member, member.sum(axis=0)  # shapes: [draws, c], [c]
    rng = np.random.default_rng(seed)
    of_draws = rng.multinomial(draws, np.full(draws, 1 / draws), size=DRAWS).astype(np.float64)
    of_clusters = rng.multinomial(c, np.full(c, 1 / c), size=DRAWS).astype(np.float64)
    means = ((of_draws @ sums) * of_clusters).sum(axis=1) / (draws * (of_clusters @ sizes))
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(values.mean()), float(low), float(high), c


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
