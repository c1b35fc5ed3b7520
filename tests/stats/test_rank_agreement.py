"""Rank agreement and stability: against scipy, literal formulas, slow loops, and the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pointsman.stats.rank_agreement import (
    SplitHalf,
    Stability,
    kendall_tau,
    kendall_w,
    spearman,
    spearman_interval,
    split_half,
    stability,
)


def names(count: int) -> list[str]:
    return [f"s{n:03d}" for n in range(count)]


def test_kendalls_w_is_friedmans_statistic() -> None:
    rng = np.random.default_rng(0)
    for ties in (False, True):
        scores = rng.random((9, 5)) + np.arange(5) * 0.2
        if ties:
            scores = np.round(scores, 1)
        expected = stats.friedmanchisquare(*scores.T).statistic / (9 * 4)  # scipy's, with its own tie correction
        assert kendall_w(scores) == pytest.approx(expected, abs=1e-12)


def test_kendalls_tau_counts_pairs_and_corrects_for_ties() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 3.0]), np.array([2.0, 1.0, 3.0, 4.0])
    # of the six pairs, one is tied in a; of the others four are alike and one is not
    assert kendall_tau(a, b) == pytest.approx((4 - 1) / np.sqrt(5 * 6))
    assert kendall_tau(a, np.ones(4)) is None
    assert kendall_tau(a[:1], b[:1]) is None


def literal_w(table: list[list[int]]) -> float:
    """12 S / (m^2 (n^3 - n) - m T) of m rankings of n, S over squared deviations of rank sums, T over tied groups."""
    m, n = len(table), len(table[0])
    totals, ties = [0.0] * n, 0
    for row in table:
        for item, score in enumerate(row):
            totals[item] += sum(other < score for other in row) + (row.count(score) + 1) / 2  # its mean rank
        ties += sum(row.count(score) ** 3 - row.count(score) for score in set(row))
    s = sum((total - m * (n + 1) / 2) ** 2 for total in totals)
    return 12 * s / (m**2 * (n**3 - n) - m * ties)


_tables = st.tuples(st.integers(2, 6), st.integers(2, 6)).flatmap(
    lambda shape: st.lists(st.lists(st.integers(0, 3), min_size=shape[1], max_size=shape[1]), min_size=shape[0],
                           max_size=shape[0])
)  # fmt: skip


@settings(deadline=None)
@given(_tables)
def test_kendalls_w_is_its_literal_formula(table: list[list[int]]) -> None:
    found = kendall_w(np.array(table, dtype=float))
    if all(len(set(row)) == 1 for row in table):
        assert found is None
    else:
        assert found == pytest.approx(literal_w(table), abs=1e-12)
        assert -1e-12 <= found <= 1 + 1e-12


def test_kendalls_w_at_its_ends() -> None:
    assert kendall_w(np.tile([0.3, 0.1, 0.2], (4, 1))) == 1.0
    assert kendall_w(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])) == 0.0
    for nothing in (np.zeros((4, 3)), np.ones((1, 3)), np.ones((4, 1))):
        assert kendall_w(nothing) is None


def test_spearman_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 8).astype(float), rng.integers(0, 5, 8).astype(float)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(np.ones(4), np.arange(4.0)) is None
    assert spearman(np.ones(1), np.ones(1)) is None


def test_halves_are_those_of_a_slow_loop() -> None:
    """Sources of unequal sizes; the mean of a half is over its prompts, as the mean of all is."""
    rng = np.random.default_rng(5)
    sources = ["a", "a", "a", "b", "c", "c", "d", "e"]
    scores = rng.random((8, 4)) + np.arange(4) * 0.3
    found, shares = split_half(scores, sources, top_n=2, halves=50, seed=9)
    draws = np.random.default_rng(9)
    correlations, top = [], [0] * 4
    for _ in range(50):
        order = [sorted(set(sources))[n] for n in draws.permutation(5)]
        means = []
        for part in (order[:2], order[2:]):
            rows = [scores[q] for q in range(8) if sources[q] in part]
            means.append([sum(r[layer] for r in rows) / len(rows) for layer in range(4)])
            for layer in sorted(range(4), key=lambda n: -means[-1][n])[:2]:
                top[layer] += 1
        correlations.append(stats.spearmanr(*means).statistic)
    assert found.mean == pytest.approx(np.mean(correlations))
    assert (found.low, found.high) == pytest.approx(np.quantile(correlations, [0.025, 0.975]))
    assert shares == pytest.approx([t / 100 for t in top])


@pytest.mark.parametrize("seed", range(3))
def test_the_range_of_halves_ends_where_it_is_typed(seed: int) -> None:
    """Digit for digit: at 0.025 and 0.975, which is not where the intervals of rates end. Scores are whole numbers."""
    scores = np.random.default_rng(100 + seed).integers(0, 99, (12, 9)).astype(float)
    draws, correlations = np.random.default_rng(seed), []
    for _ in range(200):
        order = draws.permutation(12)
        correlations.append(spearman(*(scores[part].sum(axis=0) / 6 for part in (order[:6], order[6:]))))
    low, high = np.quantile(correlations, [0.025, 0.975])
    found, _ = split_half(scores, names(12), seed=seed)
    assert (found.low, found.high, found.halves) == (low, high, 200)


def test_the_interval_of_a_correlation_draws_sources_and_not_prompts() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.random((30, 9)) + np.arange(9) / 9
    other = noisy + 0.5 * rng.random((30, 9))
    sources = [f"s{n // 3}" for n in range(30)]
    slow, draws = [], np.random.default_rng(0).multinomial(10, [0.1] * 10, size=2000)
    for drawn in draws:
        rows = np.repeat(np.arange(30), np.repeat(drawn, 3))
        slow.append(stats.spearmanr(noisy[rows].mean(axis=0), other[rows].mean(axis=0)).statistic)
    found = spearman_interval(noisy, other, sources)
    assert found == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.02)
    assert found[0] < spearman(noisy.mean(axis=0), other.mean(axis=0)) <= found[1]
    twice = [np.repeat(each, 2, axis=0) for each in (noisy, other)]
    assert spearman_interval(*twice, np.repeat(sources, 2).tolist()) == pytest.approx(found), "no new sources"
    assert spearman_interval(noisy[:3], other[:3], sources[:3]) is None
    assert spearman_interval(noisy, np.zeros((30, 9)), sources) is None


def test_stable_and_unstable_rankings_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((40, 8))
    stable = stability(noise + np.arange(8), names(40), top_n=2)
    loose = stability(noise, names(40), top_n=2)
    assert stable.split_half.mean == pytest.approx(1.0)
    assert stable.top == {"6": 1.0, "7": 1.0}
    assert stable.kendall_w > 0.9 > 0.1 > loose.kendall_w
    assert abs(loose.split_half.mean) < 0.4
    assert sum(loose.top.values()) == pytest.approx(2.0)


def test_what_is_not_defined_is_none() -> None:
    one = np.random.default_rng(0).random((1, 3))
    assert stability(one, ["a"], top_n=1) == Stability(None, None, 1, {})
    assert split_half(one, ["a"]) == (SplitHalf(None, None, None, 0), (0.0,) * 3)
    same = stability(np.zeros((4, 3)), names(4), top_n=1)
    assert (same.kendall_w, same.split_half) == (None, None)
