"""How well a score tells label 1 from label 0: area under the ROC curve, clustered intervals, calibration.

AUROC is the chance that a row of label 1 scores higher than a row of label 0 (a tie counts half).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

DRAWS = 2_000
"""Bootstrap draws."""

BINS = 10
"""Bins of a calibration."""

_FEW = 10  # clusters that hold a label
_CHUNK = 4_000_000  # cells of one block of the bootstrap: bounded memory

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Auroc:
    """An AUROC with its 95 % interval.

    Attributes:
        value: In [0, 1]; NaN if one of the labels is missing (None in JSON).
        low, high: 95 % interval: bootstrap over clusters drawn with replacement.
        n: Rows.
    """

    value: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(
        scores: Sequence[float] | Floats, labels: Sequence[int], groups: Sequence[str] | None = None, seed: int = 0
    ) -> Auroc:
        """The AUROC of `scores`.

        Where few clusters hold a label, or they are told apart without a mistake, the bootstrap is too narrow: the
        interval then also covers Wilson's on as many rows as there are clusters of the rarer label.

        Args:
            scores: Higher for label 1. Finite. Shape: [n].
            labels: 0 or 1. Shape: [n].
            groups: Source question of each row; None if the rows are independent. Shape: [n].
            seed: Seed of the bootstrap.

        Raises:
            ValueError: The lengths differ, a score is not finite, or a label is neither 0 nor 1.
        """
        score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels)
        n = len(score)
        names = np.arange(n) if groups is None else np.asarray(groups, dtype=np.str_)
        if not n == len(label) == len(names) or not np.isfinite(score).all() or not np.isin(label, (0, 1)).all():
            raise ValueError("an AUROC needs one finite score, one label 0 or 1 and one group for each row")
        if len(np.unique(label)) < 2:
            return Auroc(math.nan, 0.0, 1.0, n)
        order = np.argsort(score, kind="stable")
        score, label, names = score[order], label[order].astype(bool), names[order]
        ties = np.flatnonzero(np.diff(score, prepend=-math.inf))  # where each distinct score begins
        _, cluster = np.unique(names, return_inverse=True)
        value = float(_weighted(np.ones((1, n)), label, ties)[0])
        found = _bootstrap(cluster, label, ties, seed)
        low, high = (float(q) for q in np.quantile(found, [0.025, 0.975])) if len(found) else (0.0, 1.0)
        held = min(len(np.unique(cluster[label])), len(np.unique(cluster[~label])))
        if held < _FEW or value in (0.0, 1.0):
            widest = _wilson(value, held)
            low, high = min(low, widest[0]), max(high, widest[1])
        return Auroc(value, min(low, value), max(high, value), n)

    def to_json(self) -> dict[str, Any]:
        """As in ``results.json``; `value` is None if it is not defined."""
        value = self.value if math.isfinite(self.value) else None
        return {"value": value, "low": self.low, "high": self.high, "n": self.n}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Auroc:
        """The inverse of `to_json`."""
        value = math.nan if data["value"] is None else float(data["value"])
        return Auroc(value, float(data["low"]), float(data["high"]), int(data["n"]))


@dataclass(frozen=True)
class Calibration:
    """Probabilities against what happened.

    Attributes:
        ece: Expected calibration error: mean over rows of abs(mean probability - share of label 1) of their bin.
        bins: Ten of equal width: mean probability, share of label 1 (both None if it is empty) and rows.
    """

    ece: float
    bins: tuple[tuple[float | None, float | None, int], ...]

    @staticmethod
    def of(probabilities: Floats, labels: npt.NDArray[np.int64]) -> Calibration:
        """Of n >= 1 rows."""
        which = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
        bins: list[tuple[float | None, float | None, int]] = []
        error = 0.0
        for place in range(BINS):
            here = which == place
            n = int(here.sum())
            p, observed = (float(probabilities[here].mean()), float(labels[here].mean())) if n else (None, None)
            bins.append((p, observed, n))
            error += n * abs(p - observed) if p is not None and observed is not None else 0.0
        return Calibration(error / len(labels), tuple(bins))

    def to_json(self) -> dict[str, Any]:
        """As in ``results.json``."""
        return {"ece": self.ece, "bins": [{"p": p, "observed": observed, "n": n} for p, observed, n in self.bins]}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Calibration:
        """The inverse of `to_json`."""
        return Calibration(float(data["ece"]), tuple((b["p"], b["observed"], int(b["n"])) for b in data["bins"]))


def auroc(
    scores: Sequence[float] | Floats, labels: Sequence[int], groups: Sequence[str] | None = None, seed: int = 0
) -> tuple[float, float, float]:
    """Value, low and high of `Auroc.of`."""
    found = Auroc.of(scores, labels, groups, seed)
    return found.value, found.low, found.high


def mean_by_cluster(
    values: Sequence[float] | Floats, groups: Sequence[str], seed: int = 0
) -> tuple[float, float, float]:
    """Mean of numbers in [0, 1] with its 95 % interval, clusters drawn with replacement; n >= 1.

    Widened to Wilson's on the clusters where they are few or all alike.
    """
    x = np.asarray(values, dtype=np.float64)
    names, cluster = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    c = len(names)
    sums, sizes = np.bincount(cluster, weights=x, minlength=c), np.bincount(cluster, minlength=c)
    drawn = np.random.default_rng(seed).multinomial(c, np.full(c, 1 / c), size=DRAWS)  # shape: [draws, c]
    low, high = (float(q) for q in np.quantile((drawn @ sums) / (drawn @ sizes), [0.025, 0.975]))
    mean = float(x.mean())
    if c < _FEW or np.ptp(x) == 0:
        widest = _wilson(mean, c)
        low, high = min(low, widest[0]), max(high, widest[1])
    return mean, min(low, mean), max(high, mean)


def _bootstrap(
    cluster: npt.NDArray[np.intp], label: npt.NDArray[np.bool_], ties: npt.NDArray[np.intp], seed: int
) -> Floats:
    """AUROC of each draw of clusters in which both labels occur. cluster, label: shape [n], by ascending score."""
    c, n = int(cluster.max()) + 1, len(cluster)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(n, c))
    found = []
    for start in range(0, DRAWS, step):
        drawn = rng.multinomial(c, np.full(c, 1 / c), size=min(step, DRAWS - start))  # shape: [step, c]
        values = _weighted(drawn[:, cluster].astype(np.float64), label, ties)
        found.append(values[np.isfinite(values)])
    return np.concatenate(found)


def _weighted(weights: Floats, label: npt.NDArray[np.bool_], ties: npt.NDArray[np.intp]) -> Floats:
    """AUROC under row weights, shape [draws, n], rows by ascending score; NaN where a label has no weight."""
    ones = np.add.reduceat(weights * label, ties, axis=1)  # shape: [draws, distinct scores]
    zeros = np.add.reduceat(weights * ~label, ties, axis=1)
    below = np.cumsum(zeros, axis=1) - zeros / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((ones * below).sum(axis=1) / (ones.sum(axis=1) * zeros.sum(axis=1)))


def _wilson(rate: float, n: float) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion in `n` > 0 rows."""
    z = float(stats.norm.ppf(0.975))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
