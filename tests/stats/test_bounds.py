"""A rate against a limit: as exact fractions say."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pointsman.stats.bounds import ROUNDING, exceeds, excess, most_lost, rows_needed

_counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n)))


@given(_counts, st.integers(0, 1000))
def test_a_loss_exceeds_its_limit_as_fractions_say(counts: tuple[int, int, int], thousandths: int) -> None:
    before, after, n = counts
    loss, limit = before / n - after / n, thousandths / 1000
    exact = Fraction(before - after, n) - Fraction(thousandths, 1000)
    assert exceeds(loss, limit) == (exact > 0)
    assert (excess(loss, limit) > ROUNDING) == (exact > 0)
    assert exceeds(limit, loss) == (exact < 0)


def test_what_rounding_makes_is_no_excess() -> None:
    assert 0.07 - 0.05 > 0.02
    assert not exceeds(0.07 - 0.05, 0.02)
    assert excess(0.07 - 0.05, 0.02) == 0.0
    assert not exceeds(0.02 + 1e-9, 0.02)
    assert exceeds(0.02 + 2e-9, 0.02)
    assert excess(0.5, 0.02) == 0.48
    assert excess(0.0, 0.02) == -0.02


def first(k: int, n: int = 150) -> list[bool]:
    return [row < k for row in range(n)]


@pytest.mark.parametrize("k", [0, 1, 2, 5, 40, 149, 150])
def test_without_rows_that_were_regained_it_is_clopper_and_pearson_s_bound(k: int) -> None:
    exact = stats.binomtest(k, 150, alternative="less").proportion_ci(0.8).high
    assert most_lost(first(k), first(0), None, 0.8) == pytest.approx(exact, abs=1e-12)


def test_rows_that_were_regained_count_against_those_lost() -> None:
    regained = [row > 147 for row in range(150)]
    assert most_lost(first(2), regained, None, 0.8) < most_lost(first(2), first(0), None, 0.8)
    assert most_lost(first(2), regained, None, 0.8) > 0, "the difference is 0, and is not surely so"


def test_clusters_are_worth_less_and_nothing_lost_is_worth_a_row_each() -> None:
    names = [str(row // 5) for row in range(150)]
    assert most_lost(first(0), first(0), names, 0.8) == pytest.approx(1 - 0.2 ** (1 / 30), abs=1e-12)
    bounds = [most_lost(first(k), first(0), names, 0.8) for k in range(20)]
    assert bounds == sorted(bounds), "what was lost is never surer than nothing lost"
    assert all(b >= most_lost(first(k), first(0), None, 0.8) for k, b in enumerate(bounds))


@settings(deadline=None)
@given(st.lists(st.integers(-1, 1), min_size=1, max_size=60), st.sampled_from([0.5, 0.8, 0.95]))
def test_the_bound_is_a_share_at_or_above_what_was_lost(changes: list[int], confidence: float) -> None:
    lost, regained = [c < 0 for c in changes], [c > 0 for c in changes]
    bound = most_lost(lost, regained, None, confidence)
    assert (sum(lost) - sum(regained)) / len(changes) - 1e-12 <= bound <= 1 + 1e-12
    assert bound <= most_lost(lost, regained, None, 0.99) + 1e-12


@pytest.mark.parametrize(("lost", "regained"), [(0.02, 0.0), (0.03, 0.01), (0.05, 0.05), (0.3, 0.1)])
def test_the_true_loss_lies_below_it_as_often_as_is_said(lost: float, regained: float) -> None:
    u = np.random.default_rng(3).random((400, 150))
    held = [most_lost((row < lost).tolist(), (row > 1 - regained).tolist(), None, 0.8) >= lost - regained for row in u]
    assert np.mean(held) >= 0.75


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("limit", [0.001, 0.02, 0.1, 0.5])
def test_so_many_rows_are_needed_and_no_fewer(limit: float, confidence: float) -> None:
    n = rows_needed(limit, confidence)
    assert n is not None
    assert most_lost([False] * n, [False] * n, None, confidence) <= limit + ROUNDING
    assert n == 1 or most_lost([False] * (n - 1), [False] * (n - 1), None, confidence) > limit


def test_a_limit_of_nothing_cannot_be_shown_and_one_of_everything_needs_a_row() -> None:
    assert rows_needed(0.0, 0.8) is None
    assert rows_needed(1.0, 0.8) == 1
