"""What follows from figures, and results on their way to disk and back."""

from __future__ import annotations

import pytest

from pointsman.runs.results import Claim, Figure, verdict_of_difference
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
        (paired(-0.5, -0.1, 0.01), "fails"),
        (paired(-0.5, -0.1, 0.2), "in doubt"),
        (AboveDraws(0.3, 0.1, 0.5, draws=2, reached=1, p_draws=2 / 3), "holds"),
        (AboveDraws(0.3, -0.1, 0.5, draws=2, reached=0, p_draws=1 / 3), "in doubt"),
        (AboveDraws(-0.3, -0.5, -0.1, draws=2, reached=2, p_draws=1.0), "fails"),
    ],
)
def test_a_difference_holds_fails_or_is_in_doubt(difference: Comparison | AboveDraws, verdict: str) -> None:
    assert verdict_of_difference(difference) == verdict


@pytest.mark.parametrize(
    ("difference", "because"),
    [
        (paired(0.1, 0.5, 0.01), "the whole interval of the paired difference lies above zero, and p = 0.01 is below"),
        (paired(0.1, 0.5, 0.07), "lies above zero, and p = 0.07 is not below 0.05"),
        (paired(-0.1, 0.5, 0.07), "holds zero, and p = 0.07 is not below 0.05"),
        (paired(-0.5, -0.1, 0.01), "the whole interval of the paired difference lies below zero"),
        (AboveDraws(0.3, -0.1, 0.5, draws=2, reached=0, p_draws=1 / 3), "the interval of the paired difference holds"),
    ],
)
def test_a_claim_says_why(difference: Comparison | AboveDraws, because: str) -> None:
    claim = Claim.of_difference("more", "More", Figure("a"), Figure("b"), difference)
    assert because in claim.because
    assert (claim.verdict, claim.difference) == (verdict_of_difference(difference), difference)
    assert claim.because.endswith("0.05") == isinstance(difference, Comparison)
