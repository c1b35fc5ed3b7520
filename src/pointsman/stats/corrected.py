"""A rate corrected for the errors of the judge who counted it, as measured against people (METHODS section 7).

The estimate is Rogan and Gladen's (1978), the interval Lang and Reiczigel's (2014), which knows that the errors of the
judge are estimated, too. Neither is worth more than its assumption: that the judge errs on the answers that were
counted as it did on those that people labelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pointsman.stats.intervals import Z
from pointsman.stats.rates import Rate
from pointsman.stats.resampling import sums_by_cluster

LEAST_YOUDEN = 0.3
"""Below this sensitivity + specificity - 1 the interval is all that can be said: there is no corrected rate."""


@dataclass(frozen=True)
class JudgeErrors:
    """How a judge errs, measured against people.

    Attributes:
        sensitivity: Of what people call a success, how much the judge calls one.
        specificity: Of what they do not, how much it does not.
        effective: Of how many independent answers the two are worth, since answers to one source question are alike.
    """

    sensitivity: Rate
    specificity: Rate
    effective: tuple[float, float]

    @staticmethod
    def of(
        said: Sequence[bool], truth: Sequence[bool], clusters: Sequence[str] | None = None, seed: int = 0
    ) -> JudgeErrors:
        """Of what a judge said of answers that people labelled. Shape of each: [n].

        The answers must not have been chosen by what the judge said of them: a sheet that holds as many of its
        successes as of its failures makes every judge look more sensitive than it is.
        """

        def right_of(wanted: bool) -> tuple[Rate, float]:
            rows = [row for row, true in enumerate(truth) if true is wanted]
            right = [said[row] is wanted for row in rows]
            sources = None if clusters is None else [clusters[row] for row in rows]
            return Rate.of(right, sources, seed), effective_n(right, sources)

        (sensitivity, of_se), (specificity, of_sp) = right_of(True), right_of(False)
        return JudgeErrors(sensitivity, specificity, (of_se, of_sp))

    @property
    def youden(self) -> float | None:
        """Sensitivity + specificity - 1: 1 for a judge without errors, 0 for one who guesses; None if not measured."""
        if self.sensitivity.rate is None or self.specificity.rate is None:
            return None
        return self.sensitivity.rate + self.specificity.rate - 1


@dataclass(frozen=True)
class Corrected:
    """A rate corrected for the errors of its judge.

    Attributes:
        rate: None where the judge hardly tells the two apart, or its errors were not measured.
        low, high: 95 % interval, within [0, 1].
        method: How both were made, or why there is no rate, in words.
    """

    rate: float | None
    low: float
    high: float
    method: str

    @staticmethod
    def of(said: Sequence[bool], errors: JudgeErrors, clusters: Sequence[str] | None = None) -> Corrected:
        """The rate of what a judge said, corrected for its `errors`. Shape of `said` and `clusters`: [n]."""
        youden = errors.youden
        if not said or youden is None:
            return Corrected(None, 0.0, 1.0, "no answers" if not said else "its errors were not measured")
        if youden <= 0:
            return Corrected(None, 0.0, 1.0, "the judge does no better than chance")
        shares = (rate.k / rate.n for rate in (errors.sensitivity, errors.specificity))
        sensitivity, specificity = zip(shares, errors.effective, strict=True)
        observed = sum(said) / len(said), effective_n(said, clusters)
        rate, low, high = rogan_gladen(observed, sensitivity, specificity)
        method = "Rogan-Gladen, Lang-Reiczigel interval"
        if youden < LEAST_YOUDEN:
            return Corrected(None, low, high, f"{method}; no rate: sensitivity + specificity - 1 is {youden:.2f}")
        return Corrected(rate, low, high, method)


def rogan_gladen(
    observed: tuple[float, float], sensitivity: tuple[float, float], specificity: tuple[float, float]
) -> tuple[float, float, float]:
    """A corrected rate with its interval.

    Args:
        observed, sensitivity, specificity: Each a share, and the number of independent answers that it is of.
            Sensitivity and specificity must sum to more than 1.

    Returns:
        Rate, low and high, within [0, 1].
    """
    (p, n), (se, n_se), (sp, n_sp) = observed, sensitivity, specificity
    rate = _within((p + sp - 1) / (se + sp - 1))
    z2 = Z * Z
    p, n = (n * p + z2 / 2) / (n + z2), n + z2
    se, n_se = (n_se * se + 1) / (n_se + 2), n_se + 2
    sp, n_sp = (n_sp * sp + 1) / (n_sp + 2), n_sp + 2
    youden = se + sp - 1
    if youden <= 0:
        return rate, 0.0, 1.0
    centre = (p + sp - 1) / youden
    of_se, of_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * z2 * (centre * of_se - (1 - centre) * of_sp)
    variance = (p * (1 - p) / n + centre**2 * of_se + (1 - centre) ** 2 * of_sp) / youden**2
    half = Z * math.sqrt(variance)
    low, high = _within(centre + shift - half), _within(centre + shift + half)
    return rate, min(low, rate), max(high, rate)


def effective_n(successes: Sequence[bool], clusters: Sequence[str] | None) -> float:
    """As how many independent rows some rows count whose clusters are alike: never more than there are."""
    values = np.asarray(successes, dtype=np.float64)
    n = len(values)
    sums, sizes, clustered = sums_by_cluster(values, clusters)
    c = len(sizes)
    if not clustered or n == 0:
        return float(n)
    rate = float(values.mean())
    variance = float(((sums - rate * sizes) ** 2).sum()) / n**2 * c / max(1, c - 1)
    if np.ptp(sums / sizes) == 0 or variance == 0:
        return float(c)
    return float(min(n, max(1.0, rate * (1 - rate) / variance)))


def labels_needed(precision: float) -> int:
    """How many answers people must label so that no rate among them is known less well than +- `precision`.

    Half the width of Wilson's interval is largest at one half: z / (2 sqrt(n + z^2)).
    """
    return max(1, math.ceil(Z * Z * (1 / (4 * precision**2) - 1)))


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))
