"""A rate against a limit: as exact fractions say."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pointsman.stats.bounds import ROUNDING, exceeds, excess

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
