"""Whether probabilities can be taken at their word: bins and the expected calibration error (METHODS section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.stats.intervals import Floats

BINS = 10
"""Bins of a calibration."""


@dataclass(frozen=True)
class CalibrationBin:
    """The rows whose probabilities lie in one bin.

    Attributes:
        p: Their mean probability; None if there are none.
        observed: Their share of label 1; None if there are none.
        n: Rows.
    """

    p: float | None
    observed: float | None
    n: int


@dataclass(frozen=True)
class Calibration:
    """Probabilities against what happened.

    Attributes:
        ece: Expected calibration error: mean over rows of abs(mean probability - share of label 1) of their bin.
        bins: Ten of equal width.
    """

    ece: float
    bins: tuple[CalibrationBin, ...]

    @staticmethod
    def of(probabilities: Floats, labels: npt.NDArray[np.int64]) -> Calibration:
        """The calibration of `probabilities` of label 1 against the `labels`, 0 or 1. Shapes: [n], n >= 1."""
        which = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
        bins = []
        error = 0.0
        for place in range(BINS):
            here = which == place
            n = int(here.sum())
            p, observed = (float(probabilities[here].mean()), float(labels[here].mean())) if n else (None, None)
            bins.append(CalibrationBin(p, observed, n))
            error += n * abs(p - observed) if p is not None and observed is not None else 0.0
        return Calibration(error / len(labels), tuple(bins))

    @staticmethod
    def from_json(data: dict[str, Any]) -> Calibration:
        """The inverse of `dataclasses.asdict`."""
        bins = tuple(CalibrationBin(b["p"], b["observed"], int(b["n"])) for b in data["bins"])
        return Calibration(float(data["ece"]), bins)
