"""AUROC: against a literal loop over all pairs, and at its ends."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.stats import auroc as module
from pointsman.stats.auroc import Auroc
from pointsman.stats.intervals import wilson
from pointsman.stats.resampling import FEWER_DRAWS


def test_auroc_counts_pairs_and_ties() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=60)
    scores = np.round(labels + rng.normal(size=60), 1)
    literal = np.mean([
        (a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]
    ])  # fmt: skip
    found = Auroc.of(scores, labels.tolist())
    assert found.value == pytest.approx(literal, abs=1e-12)
    assert found.low < found.value < found.high
    # each row ten times is not ten times as many source questions
    often = Auroc.of(np.repeat(scores, 10), np.repeat(labels, 10).tolist(), [str(i // 10) for i in range(600)])
    assert (often.low, often.high) == pytest.approx((found.low, found.high), abs=0.03)
    assert Auroc.from_json(asdict(often)) == often


def test_auroc_at_its_ends() -> None:
    perfect = Auroc.of([0.0, 1.0], [0, 1])
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low < 0.3
    assert Auroc.of([1.0, 1.0], [0, 1]).value == 0.5
    missing = Auroc.of([0.0, 1.0], [1, 1])
    assert missing == Auroc.from_json(asdict(missing)) == Auroc(None, 0.0, 1.0, 2)
    for scores, labels in (([0.0], [0, 1]), ([np.nan, 0.0], [0, 1]), ([0.0, 1.0], [0, 2])):
        with pytest.raises(ValueError, match="one finite score"):
            Auroc.of(scores, labels)


def literal_auroc(scores: list[float], labels: list[int], times: list[int]) -> float | None:
    """Over all pairs of a row of label 1 and one of label 0, each as often as both rows were drawn."""
    won, pairs = 0.0, 0
    for score, label, time in zip(scores, labels, times, strict=True):
        for other, other_label, other_time in zip(scores, labels, times, strict=True):
            if (label, other_label) == (1, 0):
                won += time * other_time * (1.0 if score > other else 0.5 if score == other else 0.0)
                pairs += time * other_time
    return won / pairs if pairs else None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1), st.sampled_from("abcde")), min_size=1, max_size=25))
def test_auroc_is_that_of_all_pairs(rows: list[tuple[int, int, str]]) -> None:
    scores, labels, groups = [float(s) for s, _, _ in rows], [label for _, label, _ in rows], [g for _, _, g in rows]
    found = Auroc.of(scores, labels, groups)
    expected = literal_auroc(scores, labels, [1] * len(rows))
    if expected is None:
        assert (found.value, found.low, found.high) == (None, 0.0, 1.0)
    else:
        assert found.value == expected
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high


@pytest.mark.parametrize("seed", range(3))
def test_its_interval_is_that_of_a_literal_bootstrap(seed: int) -> None:
    """Clusters are drawn as counts, draws without one of the labels are left out; the ends are 0.025 and 0.975."""
    rng = np.random.default_rng(100 + seed)
    groups = [f"g{i // 2:02d}" for i in range(24)]
    labels = [i % 2 for i in range(24)]  # every cluster holds both: not too few of either
    scores = (rng.integers(0, 6, 24) + 2 * np.array(labels)).astype(float).tolist()
    drawn = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12), size=FEWER_DRAWS).tolist()
    each = [literal_auroc(scores, labels, [times[i // 2] for i in range(24)]) for times in drawn]
    low, high = np.quantile([value for value in each if value is not None], [0.025, 0.975])
    assert Auroc.of(scores, labels, groups, seed) == Auroc(literal_auroc(scores, labels, [1] * 24), low, high, 24)


@pytest.mark.parametrize("wrong", [False, True])
def test_none_and_all_end_exactly(wrong: bool) -> None:
    """Told apart without a mistake, or always wrong: the ends are 0 and 1, for any number of clusters."""
    for n in range(1, 60):
        found = Auroc.of([0.0] * n + [1.0] * n, [int(wrong)] * n + [int(not wrong)] * n)
        assert (found.low == 0.0) == wrong
        assert (found.high == 1.0) == (not wrong)
        widest = wilson(found.value, n)
        assert (found.low, found.high) == widest


def test_blocks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = np.random.default_rng(1).random(40), [0, 1] * 20
    whole = Auroc.of(scores, labels)
    monkeypatch.setattr(module, "_CHUNK", 40 * 300)
    assert Auroc.of(scores, labels) == whole
