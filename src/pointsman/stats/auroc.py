"""How well a score tells label 1 from label 0: the area under the ROC curve, with an interval that knows of clusters.

AUROC is the chance that a row of label 1 scores higher than a row of label 0 (a tie counts half). It measures the
surrogate (METHODS section 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.stats.intervals import DECIMAL_TAILS, FEW, Floats, percentiles, spanning, wilson
from pointsman.stats.resampling import FEWER_DRAWS, times_drawn

_CHUNK = 4_000_000  # cells of one block of the bootstrap: bounded memory


@dataclass(frozen=True)
class Auroc:
    """An AUROC with its 95 % interval.

    Attributes:
        value: In [0, 1]; None if one of the labels is missing.
        low, high: 95 % interval: bootstrap over clusters drawn with replacement.
        n: Rows.
    """

    value: float | None
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
            return Auroc(None, 0.0, 1.0, n)
        order = np.argsort(score, kind="stable")
        score, label, names = score[order], label[order].astype(bool), names[order]
        ties = np.flatnonzero(np.diff(score, prepend=-math.inf))  # where each distinct score begins
        _, cluster = np.unique(names, return_inverse=True)
        value = float(_weighted(np.ones((1, n)), label, ties)[0])
        found = _bootstrap(cluster, label, ties, seed)
        interval = percentiles(found, DECIMAL_TAILS) if len(found) else (0.0, 1.0)
        held = min(len(np.unique(cluster[label])), len(np.unique(cluster[~label])))
        if held < FEW or value in (0.0, 1.0):
            interval = spanning(interval, *wilson(value, held))
        return Auroc(value, *spanning(interval, value), n)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Auroc:
        """The inverse of `dataclasses.asdict`."""
        value = None if data["value"] is None else float(data["value"])
        return Auroc(value, float(data["low"]), float(data["high"]), int(data["n"]))


def _bootstrap(
    cluster: npt.NDArray[np.intp], label: npt.NDArray[np.bool_], ties: npt.NDArray[np.intp], seed: int
) -> Floats:
    """AUROC of each draw of clusters in which both labels occur. cluster, label: shape [n], by ascending score."""
    c, n = int(cluster.max()) + 1, len(cluster)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(n, c))
    found = []
    for start in range(0, FEWER_DRAWS, step):
        drawn = times_drawn(rng, c, min(step, FEWER_DRAWS - start))  # shape: [step, c]
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
