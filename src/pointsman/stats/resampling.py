"""Bootstraps: rows that share a source question are drawn together, with replacement (METHODS section 0).

Random numbers are drawn as indices of clusters (`bootstrap_mean`) or as counts of how often each was drawn. The two say
the same of a population, but the last digits of an interval depend on which it was, so each statistic keeps its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pointsman.stats.intervals import DECIMAL_TAILS, Floats, Interval, percentiles

DRAWS = 10_000
"""Bootstrap draws of rates, means and differences."""

FEWER_DRAWS = 2_000
"""Bootstrap draws of AUROCs, of shares of matched pairs and of medians."""

_CHUNK = 4_000_000  # cells of one block of the bootstrap: bounded memory, about 100 MB


def numbered(clusters: Sequence[str]) -> tuple[int, npt.NDArray[np.intp]]:
    """How many clusters there are, and which of them, in the order of their names, each row is of. Shape: [n]."""
    names, index = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    return len(names), index


def sums_by_cluster(values: Floats, clusters: Sequence[str] | None) -> tuple[Floats, Floats, bool]:
    """The sum of the values and the number of rows of every cluster, and whether any rows share one.

    Args:
        values: One row each. Shape: [n] or [n, L].
        clusters: Source question of each row; None if every row is its own. Shape: [n].

    Returns:
        Clusters in the order of their names. Shapes: [c] or [c, L], and [c].

    Raises:
        ValueError: There are not as many clusters as rows.
    """
    if clusters is None:
        return values, np.ones(len(values)), False
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} rows need as many clusters, not {len(clusters)}")
    c, index = numbered(clusters)
    sums = np.zeros((c, *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums, np.bincount(index, minlength=c).astype(np.float64), c < len(values)


def times_drawn(rng: np.random.Generator, c: int, draws: int) -> npt.NDArray[np.int64]:
    """How often each of `c` is drawn, when c are drawn with replacement. Shape: [draws, c]."""
    return rng.multinomial(c, np.full(c, 1 / c), size=draws)


def bootstrap_mean(sums: Floats, sizes: Floats, seed: int) -> Interval:
    """Percentile interval of sum / size over clusters drawn with replacement.

    Args:
        sums, sizes: As `sums_by_cluster` gives them. Shape: [c], c >= 1.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    c = len(sums)
    means = np.empty(DRAWS)
    step = max(1, _CHUNK // c)
    for start in range(0, DRAWS, step):
        size = min(step, DRAWS - start)
        drawn = rng.integers(c, size=(size, c))  # shape: [size, c]
        means[start : start + size] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return percentiles(means)


def bootstrap_mean_of_draws(values: Floats, clusters: Sequence[str], seed: int) -> tuple[float, Interval, int]:
    """The mean of several draws of a control, with draws and clusters both drawn with replacement.

    Args:
        values: Shape: [draws, n].
        clusters: Source question of each row. Shape: [n].
        seed: Of the bootstrap.

    Returns:
        The mean, its percentile interval, and the number of clusters.
    """
    c, index = numbered(clusters)
    member = np.eye(c)[index]  # shape: [n, c]
    sums, sizes = values @ member, member.sum(axis=0)  # shapes: [draws, c], [c]
    rng = np.random.default_rng(seed)
    of_draws = times_drawn(rng, len(values), DRAWS).astype(np.float64)
    of_clusters = times_drawn(rng, c, DRAWS).astype(np.float64)
    means = ((of_draws @ sums) * of_clusters).sum(axis=1) / (len(values) * (of_clusters @ sizes))
    return float(values.mean()), percentiles(means), c


def bootstrap_mean_of_pairs(sums: Floats, sizes: Floats, seed: int) -> Interval:
    """Percentile interval of sum / size over ordered pairs of clusters, where clusters are drawn with replacement.

    A cluster is drawn as first and as second of a pair at once, so a pair counts as often as both were drawn together.

    Args:
        sums, sizes: By first, then second cluster. Shape: [c, c].
        seed: Of the draws.
    """
    drawn = times_drawn(np.random.default_rng(seed), len(sums), DRAWS).astype(np.float64)  # shape: [DRAWS, c]
    weights = ((drawn @ sizes) * drawn).sum(axis=1)  # shape: [DRAWS]
    means = ((drawn @ sums) * drawn).sum(axis=1)[weights > 0] / weights[weights > 0]
    return percentiles(means)


def bootstrap_median(values: Sequence[float] | Floats, seed: int = 0) -> tuple[float, float, float]:
    """Median of independent values, in their unit, with its 95 % percentile interval. Shape: [n], n >= 1."""
    x = np.asarray(values, dtype=np.float64)
    drawn = np.median(np.random.default_rng(seed).choice(x, (FEWER_DRAWS, len(x))), axis=1)
    return float(np.median(x)), *percentiles(drawn, DECIMAL_TAILS)
