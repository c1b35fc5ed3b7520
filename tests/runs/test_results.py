"""What follows from figures, and results on their way to disk and back."""

from __future__ import annotations

import pytest

from pointsman.runs.results import verdict_of_difference
from pointsman.stats.paired import AboveDraws, Comparison


def paired(low: float, high: float, p: float) -> Comparison:
    return Comparison((low + high) / 2, low, high, p_mcnemar=0.5, p_clustered=p, n01=0, n10=0, n=9, method="made up")


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (paired(0.1, 0.5, 0.01), "holds"),
        (paired(0.1, 0.5, 0.05), "in doubt"),
        (paired(-0.1, 0.5, 0.01), "in doubt"),
        (paired(0.0, 0.5, 0.01), "in doubt"),
        (paired(-0.5, 0.0, 0.01), "in doubt"),
        (paired(-0.5, -0.1, 0.2), "fails"),
        (AboveDraws(0.3, 0.1, 0.5, draws=2, reached=1, p_draws=2 / 3), "holds"),
        (AboveDraws(0.3, -0.1, 0.5, draws=2, reached=0, p_draws=1 / 3), "in doubt"),
        (AboveDraws(-0.3, -0.5, -0.1, draws=2, reached=2, p_draws=1.0), "fails"),
    ],
)
def test_a_difference_holds_fails_or_is_in_doubt(difference: Comparison | AboveDraws, verdict: str) -> None:
    assert verdict_of_difference(difference) == verdict
