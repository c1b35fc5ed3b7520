"""Paired comparisons: against scipy, slow loops and what is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pointsman.stats.intervals import wilson
from pointsman.stats.paired import Comparison, above_draws, compare, exchange_p, mcnemar_p


def test_an_attack_is_held_against_every_draw() -> None:
    attack = [True] * 40 + [False] * 10
    found = above_draws(attack, [[False] * 50, [True] * 45 + [False] * 5, [True] * 10 + [False] * 40])
    assert found.difference == pytest.approx(0.8 - (0 + 0.9 + 0.2) / 3)
    assert (found.draws, found.reached, found.p_draws) == (3, 1, 0.5)
    assert found.low < 0  # one of three does better
    never = above_draws([True] * 3, [[False] * 3])
    assert never.low < 1  # three rows are no certainty


def test_compare_known_values() -> None:
    """8 against 1 discordant pairs: exact McNemar p = 2 * (C(9,0) + C(9,1)) / 2^9."""
    a = [True] * 8 + [False] * 1 + [True] * 10 + [False] * 11
    b = [False] * 8 + [True] * 1 + [True] * 10 + [False] * 11
    result = compare(a, b)
    assert (result.n10, result.n01, result.n) == (8, 1, 30)
    assert result.p_mcnemar == pytest.approx(20 / 512)
    assert result.difference == pytest.approx(7 / 30)
    deltas = np.array(a, float) - np.array(b, float)
    assert result.high - result.low == pytest.approx(2 * 1.96 * deltas.std() / math.sqrt(30), rel=0.08)
    assert result.low > 0
    back = compare(b, a)
    assert back.difference == -result.difference
    assert back.p_mcnemar == result.p_mcnemar
    assert (back.n10, back.n01) == (1, 8)


def test_pairing_matters() -> None:
    """The same two rates: when they agree row by row, a small difference is certain; when not, it is not."""
    a = [True] * 60 + [False] * 40
    agree = [True] * 50 + [False] * 50
    clash = [False] * 40 + [True] * 50 + [False] * 10
    assert compare(a, agree).p_mcnemar < 0.01 < compare(a, clash).p_mcnemar
    assert compare(a, agree).low > 0 > compare(a, clash).low


def test_compare_clusters_widen() -> None:
    a = ([True] * 5 + [False] * 5) * 8
    b = [False] * 80
    clusters = [f"q{i // 5}" for i in range(80)]
    rows, grouped = compare(a, b), compare(a, b, clusters)
    assert grouped.high - grouped.low > 1.8 * (rows.high - rows.low)
    assert grouped.clusters == 16


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_scipys_binomial_test_and_a_literal_sum(n10: int, n01: int) -> None:
    p = mcnemar_p(n10, n01)
    n = n10 + n01
    if n == 0:
        assert p == 1.0
        return
    assert p == pytest.approx(stats.binomtest(n01, n, 0.5, alternative="two-sided").pvalue, abs=1e-12)
    tail = sum(math.comb(n, i) for i in range(min(n10, n01) + 1))
    assert p == pytest.approx(min(1.0, 2 * tail / 2**n), abs=1e-12)
    pairs = [(True, False)] * n10 + [(False, True)] * n01 + [(True, True)] * 3
    assert compare([a for a, _ in pairs], [b for _, b in pairs]).p_mcnemar == p


def test_exchange_without_differences() -> None:
    assert exchange_p(np.zeros(0)) == exchange_p(np.zeros(4)) == 1.0
    assert exchange_p(np.array([3.0])) == 1.0  # one cluster can show nothing


def test_exchange_of_clusters_is_that_of_a_slow_loop() -> None:
    """All 2^c exchanges of the two in whole clusters."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.random(14) < 0.7, rng.random(14) < 0.4
        clusters = [f"c{n}" for n in rng.integers(0, 6, 14)]
        sums = [sum(int(a[i]) - int(b[i]) for i in range(14) if clusters[i] == name) for name in sorted(set(clusters))]
        flips = [abs(sum(f * s for f, s in zip(signs, sums, strict=True)))
                 for signs in itertools.product((-1, 1), repeat=len(sums))]  # fmt: skip
        expected = sum(f >= abs(sum(sums)) for f in flips) / len(flips)
        assert compare(a.tolist(), b.tolist(), clusters).p_clustered == pytest.approx(expected, abs=1e-12)


def test_exchange_of_single_rows_is_mcnemars() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = (rng.random(30) < 0.6).tolist(), (rng.random(30) < 0.4).tolist()
        for clusters in (None, [str(n) for n in range(30)]):
            result = compare(a, b, clusters)
            assert result.p_clustered == pytest.approx(result.p_mcnemar, abs=1e-12)
    repeated = compare([True] * 20, [False] * 20, ["a"] * 10 + ["b"] * 10)
    assert repeated.p_mcnemar < 1e-5
    assert repeated.p_clustered == 0.5  # two clusters can show no more


def test_compare_without_spread() -> None:
    same = compare([True, False] * 20, [True, False] * 20)
    assert (same.difference, same.p_mcnemar) == (0.0, 1.0)
    assert same.high == -same.low == wilson(0.0, 40)[1]
    total = compare([True] * 20, [False] * 20, [f"q{i // 2}" for i in range(20)])
    assert (total.difference, total.high) == (1.0, 1.0)
    assert total.low == pytest.approx(2 * wilson(1.0, 10)[0] - 1)
    none = compare([], [])
    assert (none.difference, none.low, none.high) == (None, -1.0, 1.0)
    assert (none.p_mcnemar, none.p_clustered) == (1.0, 1.0)
    with pytest.raises(ValueError, match="same rows"):
        compare([True], [])


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abcde")), min_size=1, max_size=30))
def test_comparison_holds_its_difference(rows: list[tuple[bool, bool, str]]) -> None:
    a, b, c = ([row[i] for row in rows] for i in range(3))
    result: Comparison = compare(a, b, c)  # type: ignore[arg-type]
    assert -1 <= result.low <= result.difference <= result.high <= 1
    assert result.low < result.high
    assert result.difference == pytest.approx(sum(a) / len(a) - sum(b) / len(b))  # type: ignore[arg-type]
    assert 0 <= result.p_mcnemar <= 1


@pytest.mark.parametrize("clustered", [False, True])
def test_an_attack_against_draws_without_any_spread(clustered: bool) -> None:
    clusters = [str(n // 2) for n in range(8)] if clustered else None
    found = above_draws([True] * 8, [[False] * 8] * 3, clusters)
    assert (found.difference, found.high) == (1.0, 1.0)
    assert found.low == 2 * wilson(1.0, 4 if clustered else 8)[0] - 1
