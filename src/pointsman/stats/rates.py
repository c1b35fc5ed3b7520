"""Rates and means with their 95 % intervals (METHODS section 0).

Rows that are independent get a Wilson interval (rates) or a t interval (means). Rows that share a source
question are not: then clusters are drawn with replacement, and the interval runs between the 2.5 and 97.5
percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from pointsman.stats.intervals import (
    DECIMAL_TAILS,
    FEW,
    LEVEL,
    Floats,
    percentiles,
    rows_of_wilson,
    spanning,
    wilson,
)
from pointsman.stats.resampling import (
    FEWER_DRAWS,
    bootstrap_mean,
    bootstrap_mean_of_draws,
    bootstrap_mean_of_pairs,
    numbered,
    sums_by_cluster,
    times_drawn,
)

_FEWEST = 4  # clusters that pairs of clusters are drawn from


@dataclass(frozen=True)
class Rate:
    """Successes among rows.

    Attributes:
        k: Successes.
        n: Rows.
        rate: k / n; None if there are no rows.
        low, high: 95 % interval, within [0, 1].
        method: How the interval was made, in words.
        clusters: Number of source questions, or None if the rows were not clustered.
    """

    k: int
    n: int
    rate: float | None
    low: float
    high: float
    method: str
    clusters: int | None = None

    @property
    def effective_n(self) -> float | None:
        """How many independent rows would know the rate as well: those whose Wilson interval is as wide as this one.

        It is n / the design effect, at most n; None if there are no rows. It follows from the interval, so it is known
        of every rate that was ever stored.
        """
        if self.rate is None:
            return None
        return min(float(self.n), max(1.0, rows_of_wilson(self.rate, self.high - self.low)))

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
            return Rate(0, 0, None, 0.0, 1.0, "no rows", None if clusters is None else 0)
        sums, sizes, clustered = sums_by_cluster(values, clusters)
        c = len(sizes)
        rate = k / n
        if not clustered:
            return Rate(k, n, rate, *wilson(rate, n), "Wilson", None if clusters is None else c)
        if np.ptp(sums / sizes) == 0:
            return Rate(k, n, rate, *wilson(rate, c), f"Wilson on {c} clusters (all alike: no bootstrap)", c)
        interval, method = bootstrap_mean(sums, sizes, seed), f"bootstrap over {c} clusters"
        if min((sums > 0).sum(), (sums < sizes).sum()) < FEW:  # close to 0 or 1 the bootstrap is too narrow
            interval, method = spanning(interval, *wilson(rate, c)), f"{method}, widened to Wilson on them"
        return Rate(k, n, rate, *spanning(interval, rate), method, c)

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
        mean, interval, c = bootstrap_mean_of_draws(values, names, seed)
        method = f"two-way bootstrap over {draws} draws and {c} clusters"
        if np.ptp(values) == 0 or min((values > 0).any(0).sum(), (values < 1).any(0).sum()) < FEW:
            interval, method = spanning(interval, *wilson(mean, c)), f"{method}, widened to Wilson on them"
        return Rate(round(mean * n), n, mean, *spanning(interval, mean), method, c)

    @staticmethod
    def over_pairs(success: npt.NDArray[np.bool_], clusters: Sequence[str], seed: int = 0) -> Rate:
        """The rate of what was found for one row and tried on another, where the two are of different clusters.

        Cells of a row share what was found, those of a column what it was tried on. So source questions are drawn with
        replacement, each as row and as column at once, and a cell counts as often as both were drawn together.

        Args:
            success: By the row it was found for, then the row it was tried on. Shape: [m, m], bool.
            clusters: Source question of each row. Shape: [m].
            seed: Seed of the bootstrap.
        """
        c, index = numbered(clusters)
        member = np.eye(c)[index]  # shape: [m, c]
        cells = member.T @ np.ones_like(success, dtype=np.float64) @ member  # shape: [c, c]
        hits = member.T @ success.astype(np.float64) @ member
        np.fill_diagonal(cells, 0.0)
        np.fill_diagonal(hits, 0.0)
        n, k = int(cells.sum()), int(hits.sum())
        if n == 0:
            return Rate(0, 0, None, 0.0, 1.0, "no rows", c)
        rate = k / n
        if c < _FEWEST or k in (0, n):
            method = f"Wilson on {c} clusters (too few or all alike: no bootstrap)"
            return Rate(k, n, rate, *wilson(rate, c), method, c)
        interval = spanning(bootstrap_mean_of_pairs(hits, cells, seed), rate)
        return Rate(k, n, rate, *interval, f"two-way bootstrap over {c} clusters", c)

    def __str__(self) -> str:
        if self.rate is None:
            return "no rows"
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}], {self.k} of {self.n}"


@dataclass(frozen=True)
class Mean:
    """A mean of numbers.

    Attributes:
        mean: In the unit of the values; None if there are none.
        low, high: 95 % interval; None if there are too few values to tell, or all are alike.
        n: Rows.
        method: How the interval was made, in words.
        clusters: Number of source questions, or None if the rows were not clustered.
    """

    mean: float | None
    low: float | None
    high: float | None
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
            return Mean(None, None, None, 0, "no rows", None if clusters is None else 0)
        sums, sizes, clustered = sums_by_cluster(x, clusters)
        c, mean = len(sizes), float(x.mean())
        count = None if clusters is None else c
        if c == 1:
            return Mean(mean, None, None, n, "one cluster: no interval" if clustered else "one row", count)
        if np.ptp(x) == 0:
            return Mean(mean, None, None, n, "all alike: no interval", count)
        if not clustered:
            half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * float(x.std(ddof=1)) / math.sqrt(n)
            return Mean(mean, mean - half, mean + half, n, "t", count)
        interval = spanning(bootstrap_mean(sums, sizes, seed), mean)
        return Mean(mean, *interval, n, f"bootstrap over {c} clusters", c)


def mean_by_cluster(
    values: Sequence[float] | Floats, groups: Sequence[str], seed: int = 0
) -> tuple[float, float, float]:
    """Mean of numbers in [0, 1] with its 95 % interval, clusters drawn with replacement; n >= 1.

    Widened to Wilson's on the clusters where they are few or all alike. Unlike `Mean.of` it knows that the numbers have
    bounds, and so has an interval for any number of clusters.

    Args:
        values: Shares, such as 0, 1 and 1/2 for a tie. Shape: [n].
        groups: Source question of each value. Shape: [n].
        seed: Seed of the bootstrap.

    Returns:
        Mean, low and high.
    """
    x = np.asarray(values, dtype=np.float64)
    sums, sizes, _ = sums_by_cluster(x, groups)
    c = len(sizes)
    drawn = times_drawn(np.random.default_rng(seed), c, FEWER_DRAWS)  # shape: [draws, c]
    interval = percentiles((drawn @ sums) / (drawn @ sizes), DECIMAL_TAILS)
    mean = float(x.mean())
    if c < FEW or np.ptp(x) == 0:
        interval = spanning(interval, *wilson(mean, c))
    return mean, *spanning(interval, mean)
