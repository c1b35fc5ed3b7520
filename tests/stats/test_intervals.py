"""Wilson's interval against scipy, at its ends, and what lies between percentiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pointsman.stats.intervals import (
    DECIMAL_TAILS,
    LEVEL,
    TAILS,
    percentiles,
    rows_of_wilson,
    spanning,
    wilson,
    wilson_of_difference,
)


def test_wilson_is_scipys() -> None:
    for n in (1, 2, 7, 50, 400):
        for k in {0, 1, n // 3, n // 2, n - 1, n}:
            expected = stats.binomtest(k, n).proportion_ci(method="wilson")
            assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys_for_any_count(counts: tuple[int, int]) -> None:
    k, n = counts
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson(k / n, n)
    assert 0 <= low <= k / n <= high <= 1


def test_wilson_ends_exactly_at_none_and_all() -> None:
    """Rounding would leave 1e-17 there for some numbers of rows."""
    for n in range(1, 400):
        assert wilson(0.0, n)[0] == 0.0
        assert wilson(1.0, n)[1] == 1.0


def test_wilson_takes_an_effective_number_of_rows() -> None:
    assert wilson(0.3, 10)[0] < wilson(0.3, 10.5)[0] < wilson(0.3, 11)[0]


@given(st.floats(0, 1), st.floats(1, 5000))
def test_rows_of_wilson_is_its_inverse(rate: float, n: float) -> None:
    low, high = wilson(rate, n)
    assert rows_of_wilson(rate, high - low) == pytest.approx(n, rel=1e-6)


def test_an_interval_without_width_is_of_endless_rows_and_one_of_everything_of_none() -> None:
    assert rows_of_wilson(0.4, 0.0) == math.inf
    assert rows_of_wilson(0.4, 1.0) == 0.0


def test_wilson_of_a_difference_is_that_of_a_share_stretched() -> None:
    low, high = wilson_of_difference(0.0, 12)
    assert -low == pytest.approx(high)
    assert wilson_of_difference(1.0, 12) == (2 * wilson(1.0, 12)[0] - 1, 1.0)
    assert wilson_of_difference(-1.0, 12) == (-1.0, 2 * wilson(0.0, 12)[1] - 1)


@pytest.mark.parametrize("tails", [TAILS, DECIMAL_TAILS])
def test_percentiles_are_interpolated_as_by_hand(tails: tuple[float, float]) -> None:
    draws = np.random.default_rng(0).normal(size=777)
    expected = []
    for q in tails:
        place = q * 776
        below, above = sorted(draws)[math.floor(place)], sorted(draws)[math.floor(place) + 1]
        expected.append(below + (above - below) * (place - math.floor(place)))
    assert percentiles(draws, tails) == pytest.approx(tuple(expected), abs=1e-12)
    assert percentiles(np.array([0.5])) == (0.5, 0.5)


def test_the_two_tails_differ_by_rounding_alone() -> None:
    """Results that are stored were made with either, and must be made again to the last digit."""
    assert TAILS == (0.5 - LEVEL / 2, 0.5 + LEVEL / 2) != DECIMAL_TAILS == (0.025, 0.975)
    assert pytest.approx(DECIMAL_TAILS, abs=1e-16) == TAILS


def test_spanning() -> None:
    assert spanning((0.2, 0.4), 0.3) == (0.2, 0.4)
    assert spanning((0.2, 0.4), 0.1, 0.5) == (0.1, 0.5)
    assert spanning((0.2, 0.4), 0.5) == (0.2, 0.5)
