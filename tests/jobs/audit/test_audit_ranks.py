"""Which ranks mean something: from the p of a router and its placebo alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pointsman.jobs.audit.claims import conclude
from pointsman.jobs.audit.ranks import meaning_of, meaningful
from pointsman.jobs.audit.results import AuditResults, Masked, Rise, RouterScore
from pointsman.stats.intervals import difference_of_independent
from pointsman.stats.rates import Mean

SURE, LUCK = 0.001, 0.5
RISE, SMALL, ALIKE = Rise(0.4, 0.3, 0.5), Rise(0.01, 0.0, 0.02), Rise(0.38, 0.3, 0.46)
NONE = Rise(None, None, None)


@pytest.mark.parametrize(
    ("p", "placebo", "said"),
    [
        (SURE, SMALL, "means something"),
        (LUCK, SMALL, "means nothing: not above the other routers"),
        (SURE, ALIKE, "means nothing: as large on benign prompts"),
        (LUCK, ALIKE, "means nothing: not above the other routers, and as large on benign prompts"),
        (SURE, None, "not tested: no placebo"),
        (SURE, NONE, "not tested: no placebo"),
        (None, SMALL, "not tested: no p"),
        (None, ALIKE, "means nothing: as large on benign prompts"),
        (LUCK, None, "means nothing: not above the other routers"),
        (None, None, "not tested: no p, and no placebo"),
    ],
)
def test_a_rank_must_pass_both(p: float | None, placebo: Rise | None, said: str) -> None:
    assert str(meaning_of(p, RISE, placebo)) == said


def test_the_difference_to_the_placebo_has_an_interval() -> None:
    found = meaning_of(SURE, RISE, ALIKE)
    assert found.difference == pytest.approx(0.02)
    assert found.low == pytest.approx(0.02 - np.hypot(0.1, 0.08))
    assert found.high == pytest.approx(0.02 + np.hypot(0.1, 0.08))


def test_that_interval_is_about_the_bootstrap_of_two_samples() -> None:
    """Square-and-add of two intervals against drawing the clusters of both."""
    rng = np.random.default_rng(0)
    a, b = rng.beta(2, 3, 60), rng.beta(1, 8, 50)
    one, two = (Mean.of(x.tolist(), [str(n // 2) for n in range(len(x))]) for x in (a, b))
    assert None not in (one.mean, one.low, one.high, two.mean, two.low, two.high)
    low, high = difference_of_independent(one.mean, (one.low, one.high), two.mean, (two.low, two.high))  # type: ignore[arg-type]

    def drawn(x: np.ndarray) -> np.ndarray:
        pairs = x.reshape(-1, 2)
        return pairs[rng.integers(len(pairs), size=(4000, len(pairs)))].mean(axis=(1, 2))

    draws = np.quantile(drawn(a) - drawn(b), [0.025, 0.975])
    assert [low, high] == pytest.approx(draws.tolist(), abs=0.01)
    assert low < a.mean() - b.mean() < high


def rows(results: AuditResults, sound: int) -> tuple[RouterScore, ...]:
    """Routers of which as many of the first ranks mean something."""
    return tuple(
        replace(row, mean=0.4, low=0.3, high=0.5, p=SURE if row.rank <= sound else LUCK, placebo=SMALL)
        for row in results.rosais
    )


@pytest.mark.parametrize(
    ("sound", "verdict", "said"),
    [
        (3, "holds", "2 of the 2 do, and of all 6 routers 3: "),
        (1, "in doubt", "1 of the 2 do, and of all 6 routers 1: "),
        (0, "in doubt", "0 of the 2 do, and of all 6 routers 0;"),
    ],
)
def test_the_claim_counts_them(results: AuditResults, sound: int, verdict: str, said: str) -> None:
    found = conclude(replace(results, rosais=rows(results, sound))).claim("masked_ranks_mean_something")
    assert found is not None
    assert found.verdict == verdict
    assert found.because.startswith(said)
    assert [row.rank for row in meaningful(rows(results, sound))] == list(range(1, sound + 1))


def test_without_placebo_or_masks_it_is_not_measured(results: AuditResults) -> None:
    bare = replace(results, rosais=tuple(replace(row, placebo=None, p=SURE) for row in results.rosais))
    plain: tuple[Masked, ...] = tuple(row for row in results.masking if not row.routers)
    for changed in (bare, replace(results, masking=plain)):
        found = conclude(changed).claim("masked_ranks_mean_something")
        assert found is not None
        assert found.verdict == "not measured"
