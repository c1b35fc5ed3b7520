"""Permutation p-values and rank stability: against scipy, slow loops, full enumeration, and the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pointsman.experiment import stability as module
from pointsman.experiment.stability import kendall_w, permutation_p, spearman, split_half, stability


def names(count: int) -> list[str]:
    return [f"s{n:03d}" for n in range(count)]


def exact_p(scores: np.ndarray, sources: list[str]) -> list[float]:
    """All permutations of every source's labels, one common to its prompts; share whose largest mean reaches."""
    prompts, routers = scores.shape
    observed = scores.mean(axis=0)
    groups = sorted(set(sources))
    reached = np.zeros(routers)
    total = 0
    for chosen in itertools.product(itertools.permutations(range(routers)), repeat=len(groups)):
        of = dict(zip(groups, chosen, strict=True))
        sums = [0.0] * routers
        for q in range(prompts):
            for layer in range(routers):
                sums[layer] += scores[q, of[sources[q]][layer]]
        reached += max(s / prompts for s in sums) >= observed - 1e-9
        total += 1
    return [float(r) / total for r in reached]


@pytest.mark.parametrize("sources", [["a", "b", "c", "d"], ["a", "b", "a", "c"], ["a", "a", "a", "a"]])
def test_p_values_are_those_of_all_permutations(sources: list[str]) -> None:
    scores = np.random.default_rng(3).gamma(1.0, size=(4, 3))
    found = permutation_p(scores, sources, permutations=20_000)
    for p, exact in zip(found, exact_p(scores, sources), strict=True):
        assert p == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 20_000))


def test_one_source_can_show_nothing() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.2, 0.1]])
    assert permutation_p(scores, ["a", "a"], permutations=99)[0] == 1.0


def test_equal_scores_are_no_evidence() -> None:
    assert permutation_p(np.full((5, 4), 0.1), names(5), permutations=199) == (1.0,) * 4
    assert permutation_p(np.full((5, 1), 0.1), names(5), permutations=9) == (1.0,)


def test_p_values_are_uniform_under_the_null() -> None:
    """The smallest p is corrected for all routers; prompts of one source share most of their scores."""
    rng = np.random.default_rng(0)
    smallest = []
    for n in range(300):
        shared = np.repeat(rng.gamma(1.0, size=(6, 5)), 3, axis=0)
        scores = shared + 0.1 * rng.random((18, 5))
        smallest.append(min(permutation_p(scores, np.repeat(names(6), 3).tolist(), permutations=199, seed=n)))
    assert stats.kstest(smallest, "uniform").pvalue > 0.01
    assert sum(p <= 0.05 for p in smallest) / 300 == pytest.approx(0.05, abs=0.03)


def test_without_clusters_dependence_would_look_like_evidence() -> None:
    rng = np.random.default_rng(0)
    wrong = []
    for n in range(60):
        scores = np.repeat(rng.gamma(1.0, size=(4, 5)), 6, axis=0)
        wrong.append(min(permutation_p(scores, names(24), permutations=99, seed=n)))
    assert sum(p <= 0.05 for p in wrong) > 30


def test_a_planted_router_is_found_and_others_are_not() -> None:
    scores = np.random.default_rng(1).gamma(1.0, size=(40, 6))
    scores[:, 2] += 1.0
    p = permutation_p(scores, names(40))
    assert p[2] == 1 / 10_000
    assert min(p[:2] + p[3:]) > 0.5


def test_blocks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(1).random((7, 5))
    whole = permutation_p(scores, names(7), permutations=500, seed=4)
    monkeypatch.setattr(module, "_CELLS", 35 * 7)
    assert permutation_p(scores, names(7), permutations=500, seed=4) == whole


def test_kendalls_w_is_friedmans_statistic() -> None:
    rng = np.random.default_rng(0)
    for ties in (False, True):
        scores = rng.random((9, 5)) + np.arange(5) * 0.2
        if ties:
            scores = np.round(scores, 1)
        expected = stats.friedmanchisquare(*scores.T).statistic / (9 * 4)  # scipy's, with its own tie correction
        assert kendall_w(scores) == pytest.approx(expected, abs=1e-12)


def test_kendalls_w_at_its_ends() -> None:
    assert kendall_w(np.tile([0.3, 0.1, 0.2], (4, 1))) == 1.0
    assert kendall_w(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])) == 0.0
    for nothing in (np.zeros((4, 3)), np.ones((1, 3)), np.ones((4, 1))):
        assert math.isnan(kendall_w(nothing))


def test_spearman_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 8).astype(float), rng.integers(0, 5, 8).astype(float)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert math.isnan(spearman(np.ones(4), np.arange(4.0)))
    assert math.isnan(spearman(np.ones(1), np.ones(1)))


def test_halves_are_those_of_a_slow_loop() -> None:
    """Sources of unequal sizes; the mean of a half is over its prompts, as the mean of all is."""
    rng = np.random.default_rng(5)
    sources = ["a", "a", "a", "b", "c", "c", "d", "e"]
    scores = rng.random((8, 4)) + np.arange(4) * 0.3
    found = split_half(scores, sources, top_n=2, halves=50, seed=9)
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
    assert found.top == pytest.approx([t / 100 for t in top])


def test_stable_and_unstable_rankings_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((40, 8))
    stable = stability(noise + np.arange(8), names(40), top_n=2)
    loose = stability(noise, names(40), top_n=2)
    assert stable["split_half"]["mean"] == pytest.approx(1.0)
    assert stable["top"] == {"6": 1.0, "7": 1.0}
    assert stable["kendall_w"] > 0.9 > 0.1 > loose["kendall_w"]
    assert abs(loose["split_half"]["mean"]) < 0.4
    assert sum(loose["top"].values()) == pytest.approx(2.0)


def test_what_is_not_defined_is_none() -> None:
    assert stability(np.random.default_rng(0).random((1, 3)), ["a"], top_n=1) == {
        "kendall_w": None, "split_half": None, "top_n": 1, "top": {},
    }  # fmt: skip
    same = stability(np.zeros((4, 3)), names(4), top_n=1)
    assert same["kendall_w"] is None
    assert same["split_half"] is None


def test_prompts_and_sources_must_match() -> None:
    with pytest.raises(ValueError, match="as many sources"):
        permutation_p(np.zeros((3, 2)), ["a"])
