"""How far two judges agree on the same answers: observed agreement, Cohen's kappa, and the table both are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pointsman.stats.intervals import DECIMAL_TAILS, FEW, Floats, Interval, percentiles, spanning, wilson
from pointsman.stats.rates import Rate
from pointsman.stats.resampling import FEWER_DRAWS, numbered, times_drawn


@dataclass(frozen=True)
class Confusion:
    """What one judge called what another called otherwise.

    Attributes:
        labels: Of the rows and of the columns.
        counts: Answers by the label of the first judge (rows), then of the second (columns).
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(a: Sequence[str], b: Sequence[str], order: Sequence[str] = ()) -> Confusion:
        """Of the labels of the same answers; labels that occur stand in this order, others behind them.

        Raises:
            ValueError: `a` and `b` differ in length.
        """
        occur = {*a, *b}
        labels = (*(label for label in order if label in occur), *sorted(occur - {*order}))
        place = {label: number for number, label in enumerate(labels)}
        counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
        for first, second in zip(a, b, strict=True):
            counts[place[first], place[second]] += 1
        return Confusion(labels, tuple(tuple(int(n) for n in row) for row in counts))


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same answers.

    Attributes:
        n: Answers.
        agreed: On how many both say the same. Read it beside kappa, which is small where nearly all answers are alike.
        kappa: Agreement beyond chance; None where it is undefined: there are no answers, or all have one label.
        low, high: 95 % interval of kappa; None where there is no kappa.
        standard_error: Of kappa by the large-sample formula (Fleiss, Cohen and Everitt 1969), which takes rows for
            independent: a check of the interval, not its source.
        method: How the interval was made, in words.
        clusters: Number of source questions, or None if the rows were not clustered.
    """

    n: int
    agreed: Rate
    kappa: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    method: str
    clusters: int | None = None

    @staticmethod
    def of(a: Sequence[bool], b: Sequence[bool], clusters: Sequence[str] | None = None, seed: int = 0) -> Agreement:
        """The agreement of two judges who each say yes or no.

        Args:
            a, b: Of the same answers in the same order. Shape: [n].
            clusters: Source question of each answer; None if they are independent. Shape: [n].
            seed: Of the bootstrap over clusters.

        Raises:
            ValueError: `a` and `b` differ in length.
        """
        if len(a) != len(b):
            raise ValueError(f"agreement needs the same answers: {len(a)} and {len(b)}")
        same = [bool(x) == bool(y) for x, y in zip(a, b, strict=True)]
        agreed = Rate.of(same, clusters, seed)
        c, cells = _by_cluster(a, b, clusters)  # shape: [c, 2, 2]
        count = None if clusters is None else c
        table = cells.sum(axis=0)
        kappa, error = kappa_of(table)
        if kappa is None:
            why = "no answers" if not same else "undefined: both always say the same one thing"
            return Agreement(len(same), agreed, None, None, None, None, why, count)
        interval, method = _interval(cells, agreed, kappa, seed)
        return Agreement(len(same), agreed, kappa, *interval, error, method, count)


def kappa_of(table: Floats | Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Cohen's kappa of a table of counts, and its large-sample standard error; None where it is undefined.

    Args:
        table: Counts by the label of the first judge, then of the second. Shape: [L, L].
    """
    counts = np.asarray(table, dtype=np.float64)
    n = counts.sum()
    if n == 0:
        return None, None
    p = counts / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    same, chance = float(np.trace(p)), float(rows @ columns)
    if chance >= 1:
        return None, None
    k = (same - chance) / (1 - chance)
    on = np.diag(p) @ (1 - (rows + columns) * (1 - k)) ** 2
    off = p * (columns[:, None] + rows[None, :]) ** 2
    variance = on + (1 - k) ** 2 * (off.sum() - np.trace(off)) - (k - chance * (1 - k)) ** 2
    return float(k), math.sqrt(max(0.0, float(variance)) / n) / (1 - chance)


def _by_cluster(a: Sequence[bool], b: Sequence[bool], clusters: Sequence[str] | None) -> tuple[int, Floats]:
    """The table of every cluster. Shape: [c, 2, 2]."""
    c, index = (len(a), np.arange(len(a))) if clusters is None else numbered(clusters)
    cells = np.zeros((c, 2, 2))
    if len(a):
        np.add.at(cells, (index, np.asarray(a, dtype=np.intp), np.asarray(b, dtype=np.intp)), 1)
    return c, cells


def _interval(cells: Floats, agreed: Rate, kappa: float, seed: int) -> tuple[Interval, str]:
    """Of kappa: clusters are drawn with replacement; where few of them differ, Wilson's on the agreement as well."""
    c = len(cells)
    drawn = times_drawn(np.random.default_rng(seed), c, FEWER_DRAWS) @ cells.reshape(c, 4)  # shape: [draws, 4]
    p = drawn / drawn.sum(axis=1, keepdims=True)
    same, first, second = p[:, 0] + p[:, 3], p[:, 2] + p[:, 3], p[:, 1] + p[:, 3]
    chance = first * second + (1 - first) * (1 - second)
    defined = chance < 1 - 1e-12
    interval, method = (kappa, kappa), f"bootstrap over {c} clusters"
    if defined.any():
        interval = percentiles((same - chance)[defined] / (1 - chance)[defined], DECIMAL_TAILS)
    table = cells.sum(axis=0)
    occurs = [(cells.sum(axis=axis)[:, label] > 0).sum() for axis in (1, 2) for label in (0, 1)]
    differ = cells[:, 0, 1] + cells[:, 1, 0] > 0
    if min(*occurs, differ.sum(), (~differ).sum()) < FEW:  # there the bootstrap is too narrow
        rows, columns = table.sum(axis=1) / table.sum(), table.sum(axis=0) / table.sum()
        by_chance = float(rows @ columns)
        assert agreed.rate is not None
        edges = [(edge - by_chance) / (1 - by_chance) for edge in wilson(agreed.rate, c)]
        interval, method = spanning(interval, *edges), f"{method}, widened to Wilson of the agreement on them"
    low, high = spanning(interval, kappa)
    return (max(low, -1.0), min(high, 1.0)), method
