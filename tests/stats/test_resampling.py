"""Bootstraps against literal loops over the same draws, digit for digit.

Where values are added they are whole numbers or eighths, so that sums in any order are the same numbers.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.stats import resampling as module
from pointsman.stats.intervals import wilson
from pointsman.stats.rates import mean_by_cluster
from pointsman.stats.resampling import (
    DRAWS,
    FEWER_DRAWS,
    bootstrap_mean,
    bootstrap_mean_of_draws,
    bootstrap_mean_of_pairs,
    bootstrap_median,
    sums_by_cluster,
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.sampled_from(["b", "a", "ü", "10", "9"])), max_size=30))
def test_sums_by_cluster_are_those_of_a_dictionary(rows: list[tuple[int, str]]) -> None:
    values, clusters = np.array([float(v) for v, _ in rows]), [c for _, c in rows]
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values.tolist(), clusters, strict=True):
        groups[cluster].append(value)
    sums, sizes, shared = sums_by_cluster(values, clusters)
    assert sums.tolist() == [sum(groups[name]) for name in sorted(groups)]
    assert sizes.tolist() == [len(groups[name]) for name in sorted(groups)]
    assert shared == (len(groups) < len(rows))
    table = sums_by_cluster(np.stack([values, -values], axis=1), clusters)[0]  # shape: [c, 2]
    assert np.array_equal(table, np.stack([sums, -sums], axis=1))
    alone, ones, shared = sums_by_cluster(values, None)
    assert (alone.tolist(), ones.tolist(), shared) == (values.tolist(), [1.0] * len(rows), False)


def test_rows_and_clusters_must_match() -> None:
    with pytest.raises(ValueError, match="2 rows need as many clusters, not 1"):
        sums_by_cluster(np.zeros(2), ["a"])


@pytest.mark.parametrize("seed", range(4))
def test_bootstrap_of_a_mean(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    sums, sizes = rng.integers(-7, 8, 9).astype(float), rng.integers(1, 6, 9).astype(float)
    draws = np.random.default_rng(seed).integers(9, size=(DRAWS, 9)).tolist()
    means = [sum(sums[i] for i in drawn) / sum(sizes[i] for i in drawn) for drawn in draws]
    low, high = np.quantile(means, [0.5 - 0.95 / 2, 0.5 + 0.95 / 2])
    assert bootstrap_mean(sums, sizes, seed) == (low, high)


def test_blocks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, sizes = np.arange(7.0), np.full(7, 3.0)
    whole = bootstrap_mean(sums, sizes, 2)
    monkeypatch.setattr(module, "_CHUNK", 7 * 300)
    assert bootstrap_mean(sums, sizes, 2) == whole


@pytest.mark.parametrize("seed", range(4))
def test_bootstrap_of_the_mean_of_draws(seed: int) -> None:
    """Every draw of the control and every cluster counts as often as it was drawn."""
    values = (np.random.default_rng(100 + seed).random((3, 7)) < 0.4).astype(float)
    clusters = ["a", "b", "b", "c", "d", "d", "d"]
    rng = np.random.default_rng(seed)
    of_draws = rng.multinomial(3, [1 / 3] * 3, size=DRAWS).tolist()
    of_clusters = rng.multinomial(4, [1 / 4] * 4, size=DRAWS).tolist()
    means = []
    for times_draw, times_cluster in zip(of_draws, of_clusters, strict=True):
        total, rows = 0.0, 0
        for row, cluster in enumerate(clusters):
            times = times_cluster["abcd".index(cluster)]
            rows += times
            total += times * sum(times_draw[draw] * values[draw, row] for draw in range(3))
        means.append(total / (3 * rows))
    low, high = np.quantile(means, [0.5 - 0.95 / 2, 0.5 + 0.95 / 2])
    assert bootstrap_mean_of_draws(values, clusters, seed) == (values.mean(), (low, high), 4)


@pytest.mark.parametrize("seed", range(4))
def test_bootstrap_of_the_mean_of_pairs(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    sizes = rng.integers(1, 5, (5, 5)).astype(float)
    sums = np.floor(sizes * rng.random((5, 5)))
    np.fill_diagonal(sizes, 0.0)
    np.fill_diagonal(sums, 0.0)
    means = []
    for times in np.random.default_rng(seed).multinomial(5, [0.2] * 5, size=DRAWS).tolist():
        weight = sum(times[i] * times[j] * sizes[i, j] for i in range(5) for j in range(5))
        if weight:
            means.append(sum(times[i] * times[j] * sums[i, j] for i in range(5) for j in range(5)) / weight)
    low, high = np.quantile(means, [0.5 - 0.95 / 2, 0.5 + 0.95 / 2])
    assert len(means) < DRAWS  # one cluster five times has no pair
    assert bootstrap_mean_of_pairs(sums, sizes, seed) == (low, high)


@pytest.mark.parametrize("seed", range(4))
def test_mean_by_cluster(seed: int) -> None:
    """Its clusters are drawn as counts, and its interval ends at 0.025 and 0.975 as they are typed."""
    values = np.random.default_rng(100 + seed).integers(0, 9, 30) / 8
    groups = [f"g{i % 11:02d}" for i in range(30)]
    means = []
    for times in np.random.default_rng(seed).multinomial(11, np.full(11, 1 / 11), size=FEWER_DRAWS).tolist():
        rows = sum(times[i % 11] for i in range(30))
        means.append(sum(times[i % 11] * values[i] for i in range(30)) / rows)
    low, high = np.quantile(means, [0.025, 0.975])
    assert mean_by_cluster(values, groups, seed) == (values.mean(), low, high)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 200])
def test_bootstrap_of_a_median(count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count)
    drawn = np.random.default_rng(0).choice(values, (FEWER_DRAWS, count)).tolist()
    medians = [(sorted(d)[(count - 1) // 2] + sorted(d)[count // 2]) / 2 for d in drawn]
    low, high = np.quantile(medians, [0.025, 0.975])
    assert bootstrap_median(values.tolist()) == (np.median(values), low, high)


def test_mean_by_cluster_without_spread() -> None:
    for value in (0.0, 1.0):
        for c in (1, 3, 25):
            found = mean_by_cluster([value] * 2 * c, [str(i // 2) for i in range(2 * c)])
            assert found == (value, *wilson(value, c))
