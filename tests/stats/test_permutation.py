"""Permutation p-values: against a literal loop, full enumeration, and the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pointsman.stats import permutation as module
from pointsman.stats.permutation import permutation_p


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


def test_prompts_and_sources_must_match() -> None:
    with pytest.raises(ValueError, match="as many clusters"):
        permutation_p(np.zeros((3, 2)), ["a"])


@pytest.mark.parametrize("seed", range(5))
def test_p_values_are_those_of_a_literal_loop(seed: int) -> None:
    """The same permutations, counted by hand; scores are eighths, so that sums are exact and ties are frequent."""
    rng = np.random.default_rng(100 + seed)
    prompts, routers = int(rng.integers(2, 9)), int(rng.integers(1, 6))
    scores = rng.integers(0, 9, (prompts, routers)) / 8
    sources = [f"s{n}" for n in rng.integers(0, prompts, prompts)]
    rows = [
        [sum(scores[q, layer] for q in range(prompts) if sources[q] == name) for layer in range(routers)]
        for name in sorted(set(sources))
    ]
    observed = [sum(row[layer] for row in rows) for layer in range(routers)]
    draws, reached = np.random.default_rng(seed), [0] * routers
    for _ in range(300):
        shuffled = draws.permuted(np.array([rows]), axis=2)[0].tolist()  # each source's labels, independently
        largest = max(sum(row[layer] for row in shuffled) for layer in range(routers))
        for layer in range(routers):
            reached[layer] += largest >= observed[layer]
    expected = tuple((1 + count) / 301 for count in reached)
    assert permutation_p(scores, sources, permutations=300, seed=seed) == expected
