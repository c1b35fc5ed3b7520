"""Intervals: against scipy, against brute force, and against the truth they should cover."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pointsman.stats.intervals import wilson
from pointsman.stats.rates import Mean, Rate
from pointsman.stats.resampling import DRAWS


def test_known_value() -> None:
    """Newcombe 1998, table I: 81 of 263 has the Wilson interval 0.2553 to 0.3662."""
    rate = Rate.of([True] * 81 + [False] * 182)
    assert (rate.k, rate.n, rate.method, rate.clusters) == (81, 263, "Wilson", None)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)


def test_effective_n_is_n_of_independent_rows_and_the_clusters_where_each_is_all_alike() -> None:
    flags = [True, False, True, True, False, True]
    assert Rate.of(flags).effective_n == pytest.approx(6)
    assert Rate.of([True] * 40, [str(n // 4) for n in range(40)]).effective_n == pytest.approx(10)
    assert Rate.of([]).effective_n is None


def test_effective_n_is_n_over_the_design_effect() -> None:
    """Ten rows a cluster: as many as there are clusters if they are copies, all of them if they are independent."""
    rng, names = np.random.default_rng(1), [str(n // 10) for n in range(1000)]
    copies = np.repeat(rng.random(100) < 0.4, 10).tolist()
    free = (rng.random(1000) < 0.4).tolist()
    assert Rate.of(copies, names).effective_n == pytest.approx(100, rel=0.1)
    assert Rate.of(free, names).effective_n == pytest.approx(1000, rel=0.3)
    half = [copy if n % 2 else one for n, (copy, one) in enumerate(zip(copies, free, strict=True))]
    found = Rate.of(half, names).effective_n
    assert found is not None
    assert 150 < found < 500  # correlation 1/4, or so: a design effect of about 3


def test_effective_n_is_never_more_than_there_are_rows() -> None:
    alternating = [n % 2 == 0 for n in range(100)]  # every cluster is half and half: surer than by chance
    assert Rate.of(alternating, [str(n // 2 % 25) for n in range(100)]).effective_n <= 100


def test_distinct_clusters_are_independent_rows() -> None:
    flags = [True, False, True, True]
    assert Rate.of(flags, list("abcd")) == Rate(3, 4, 0.75, *wilson(0.75, 4), "Wilson", 4)


def test_bootstrap_against_brute_force() -> None:
    """All 3^3 draws of three unequal clusters, exactly."""
    data = {"a": [1, 1, 0], "b": [0], "c": [1, 0]}
    exact: Counter[Fraction] = Counter()
    for draw in itertools.product(data.values(), repeat=3):
        pooled = [x for rows in draw for x in rows]
        exact[Fraction(sum(pooled), len(pooled))] += 1
    cumulative, quantiles = 0, []
    for q in (0.025, 0.975):
        cumulative = 0
        for value in sorted(exact):
            cumulative += exact[value]
            if cumulative / 27 >= q:
                quantiles.append(float(value))
                break
    rows, clusters = [x for v in data.values() for x in v], [c for c, v in data.items() for _ in v]
    mean = Mean.of(rows, clusters)
    assert (mean.low, mean.high) == pytest.approx(quantiles)
    assert mean.method == "bootstrap over 3 clusters"
    rate = Rate.of([bool(x) for x in rows], clusters)  # few clusters: never narrower than Wilson on them
    widest = wilson(3 / 6, 3)
    assert (rate.low, rate.high) == pytest.approx((min(quantiles[0], widest[0]), max(quantiles[1], widest[1])))


def test_intervals_near_the_boundary_do_not_shrink() -> None:
    clusters = [str(n // 2) for n in range(200)]
    edges = [Rate.of([n < k for n in range(200)], clusters).high for k in (0, 1, 2, 4)]
    assert edges == sorted(edges)


def test_the_rate_of_draws_knows_their_spread() -> None:
    """Two draws, one that always works and one that never does: the interval is that of two draws, not of 100 rows."""
    alike = Rate.over_draws([[True] * 25 + [False] * 25] * 2)
    apart = Rate.over_draws([[True] * 50, [False] * 50])
    assert (apart.rate, apart.n) == (alike.rate, alike.n) == (0.5, 50)
    assert (apart.low, apart.high) == (0.0, 1.0)
    assert alike.high - alike.low < 0.4


def test_what_does_not_vary_has_no_interval() -> None:
    assert Mean.of([1.0, 1.0]) == Mean(1.0, None, None, 2, "all alike: no interval")


def test_bootstrap_standard_error() -> None:
    """With equal clusters the bootstrap agrees with the textbook error of a mean of cluster means."""
    rng = np.random.default_rng(0)
    p = rng.beta(2, 2, size=80)
    flags = (rng.random((80, 5)) < p[:, None]).ravel()
    rate = Rate.of(flags.tolist(), [f"q{i // 5}" for i in range(400)])
    error = flags.reshape(80, 5).mean(axis=1).std() / math.sqrt(80)
    assert rate.high - rate.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    naive = Rate.of(flags.tolist())
    assert rate.high - rate.low > 1.2 * (naive.high - naive.low), "rows of one source are not independent"


@pytest.mark.parametrize("value", [True, False])
def test_a_bootstrap_without_spread_falls_back(value: bool) -> None:
    rate = Rate.of([value] * 30, [f"q{i // 3}" for i in range(30)])
    assert (rate.low, rate.high) == wilson(float(value), 10), "ten clusters, not thirty rows"
    assert "Wilson on 10 clusters" in rate.method
    alike = Rate.of([True, False] * 6, [f"q{i // 2}" for i in range(12)])
    assert (alike.low, alike.high) == wilson(0.5, 6)
    one = Rate.of([True, False, True], ["q"] * 3)
    assert (one.low, one.high) == wilson(2 / 3, 1)


def test_no_rows() -> None:
    rate = Rate.of([])
    assert (rate.k, rate.n, rate.low, rate.high) == (0, 0, 0.0, 1.0)
    assert rate.rate is None, "no number may be mistaken for a measurement"
    assert str(rate) == "no rows"


flags_and_clusters = st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh")), min_size=1, max_size=30)


@settings(deadline=None)
@given(flags_and_clusters)
def test_rate_is_within_its_interval_and_blind_to_order(rows: list[tuple[bool, str]]) -> None:
    flags, clusters = [f for f, _ in rows], [c for _, c in rows]
    rate = Rate.of(flags, clusters)
    assert 0 <= rate.low <= rate.rate <= rate.high <= 1
    assert rate.low < rate.high
    assert Rate.of(flags[::-1], clusters[::-1]) == rate


def test_text() -> None:
    assert str(Rate.of([True, False])) == "50.0 % [9.5, 90.5], 1 of 2"


def test_clusters_must_match_rows() -> None:
    with pytest.raises(ValueError, match="2 rows need as many clusters"):
        Rate.of([True, False], ["a"])


def test_coverage_of_the_clustered_interval() -> None:
    """Over 200 worlds with 40 clusters of 5, the interval holds the truth about as often as it says."""
    rng = np.random.default_rng(7)
    clusters = [f"q{i // 5}" for i in range(200)]
    held = 0
    for world in range(200):
        p = rng.beta(1.2, 2.8, size=40)
        rate = Rate.of((rng.random((40, 5)) < p[:, None]).ravel().tolist(), clusters, seed=world)
        held += rate.low <= 0.3 <= rate.high
    assert 0.89 <= held / 200 <= 0.99


def test_mean_of_independent_values_is_students() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    mean = Mean.of(values)
    low, high = stats.t.interval(0.95, 3, loc=4.0, scale=stats.sem(values))
    assert (mean.mean, mean.low, mean.high) == pytest.approx((4.0, low, high))
    assert Mean.of(values, list("abcd")).low == mean.low


def test_mean_of_clusters() -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=60)
    values = (centres[:, None] + 0.1 * rng.normal(size=(60, 4))).ravel()
    mean = Mean.of(values.tolist(), [f"q{i // 4}" for i in range(240)])
    error = values.reshape(60, 4).mean(axis=1).std() / math.sqrt(60)
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert (mean.n, mean.clusters) == (240, 60)


def test_mean_of_too_little() -> None:
    for mean in (Mean.of([]), Mean.of([2.0]), Mean.of([2.0, 3.0], ["q", "q"])):
        assert (mean.low, mean.high) == (None, None)
    with pytest.raises(ValueError, match="not finite"):
        Mean.of([1.0, math.nan])


def test_transfer_rate_against_a_loop() -> None:
    """The bootstrap draws source questions, each as route and as behaviour at once; same-source cells do not count."""
    rng = np.random.default_rng(1)
    success = rng.random((6, 6)) < np.linspace(0.1, 0.9, 6)[:, None]
    sources = ["p", "q", "q", "r", "s", "t"]
    rate = Rate.over_pairs(success, sources, seed=3)
    cells = [(i, j) for i in range(6) for j in range(6) if sources[i] != sources[j]]
    assert (rate.n, rate.k) == (len(cells), sum(bool(success[c]) for c in cells)) == (28, rate.k)
    names = sorted(set(sources))
    means = []
    for counts in np.random.default_rng(3).multinomial(5, [0.2] * 5, size=DRAWS)[:2000]:
        times = dict(zip(names, counts.tolist(), strict=True))
        weights = [times[sources[i]] * times[sources[j]] for i, j in cells]
        if sum(weights):
            hits = sum(w for w, c in zip(weights, cells, strict=True) if success[c])
            means.append(hits / sum(weights))
    low, high = np.quantile(means, [0.025, 0.975])
    assert rate.low == pytest.approx(low, abs=0.03)
    assert rate.high == pytest.approx(high, abs=0.03)
    assert rate.low < rate.rate < rate.high
    assert "two-way" in rate.method


def test_transfer_rate_is_wider_than_one_that_takes_cells_for_rows() -> None:
    """Routes that transfer everywhere or nowhere: 12 of them tell as much as 12 rows, not as 132."""
    success = np.repeat(np.arange(12) % 2 == 0, 12).reshape(12, 12)
    rate = Rate.over_pairs(success, [str(n) for n in range(12)])
    assert rate.rate == pytest.approx(0.5)
    assert rate.high - rate.low > 0.45


@pytest.mark.parametrize(("m", "value"), [(5, False), (5, True), (2, True), (3, False)])
def test_transfer_rates_without_spread(m: int, value: bool) -> None:
    rate = Rate.over_pairs(np.full((m, m), value), [str(n) for n in range(m)])
    assert rate.rate == value
    assert rate.high - rate.low > 0.3
    assert "Wilson" in rate.method


def test_transfer_between_one_source_is_no_rate() -> None:
    rate = Rate.over_pairs(np.ones((2, 2), dtype=bool), ["a", "a"])
    assert rate.n == 0
    assert rate.rate is None
