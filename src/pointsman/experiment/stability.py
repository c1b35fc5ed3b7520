"""How far a ranking of routers can be believed: permutation p-values and stability over prompts (METHODS section 1).

Everything here takes scores[q, l], how much router l matters on prompt q, and the source question of every prompt.
Prompts of one source are not independent, so sources are what is permuted and halved, never single prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

PERMUTATIONS = 9999
HALVES = 200
_CELLS = 2_000_000  # numbers of one block of permutations: bounded memory, about 50 MB
_TINY = 1e-12  # sums of the same numbers in another order count as equal

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SplitHalf:
    """Rankings of two halves of the prompts, compared; over random halves.

    Attributes:
        mean: Of Spearman's correlations between the routers' mean scores on the two halves; NaN if there are none
            (None in JSON). It is that of half the prompts: no Spearman-Brown correction is made.
        low, high: Between them lie 95 % of the correlations. It is a range of halves, not a confidence interval.
        halves: Splits that had a correlation (scores that are all equal have none).
        top: Of every router, the share of halves (two for each split) in which it is among the `top_n`. Shape: [L].
        top_n: How many routers count as top.
    """

    mean: float
    low: float
    high: float
    halves: int
    top: tuple[float, ...]
    top_n: int

    def to_json(self) -> dict[str, Any]:
        """As in ``results.json``, without `top`; what is not finite is None."""
        return {"mean": _or_none(self.mean), "low": _or_none(self.low), "high": _or_none(self.high),
                "halves": self.halves}  # fmt: skip


def permutation_p(
    scores: Floats, sources: Sequence[str], *, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, ...]:
    """Is a router more important than any would be by chance? One p-value a router, corrected for their number.

    Under the null hypothesis the labels of the routers mean nothing: on every source question they could be
    exchanged. So the labels are permuted, independently for every source but in the same way on all prompts of one
    source (whose scores depend on each other in ways that are then kept), and the largest mean over all routers is
    noted. A router's p-value is the share of permutations whose largest mean reaches its own mean,
    ``(1 + count) / (1 + permutations)``: the chance of one false alarm or more is at most p (family-wise error).
    One important router lifts the null of the others, so their p-values are too large rather than too small.

    Args:
        scores: Shape: [Q, L].
        sources: Source question of each prompt. Shape: [Q].
        permutations: How many are drawn.
        seed: Of the permutations.

    Returns:
        Shape: [L], each in (0, 1].
    """
    sums = _by_source(scores, sources)[0] / len(scores)  # shape: [C, L]
    observed = sums.sum(axis=0)  # shape: [L], the means over prompts
    reach = observed - _TINY * max(1.0, float(np.abs(sums).sum(axis=0).max(initial=0.0)))
    rng = np.random.default_rng(seed)
    counts = np.zeros(len(observed), dtype=np.int64)
    block = max(1, _CELLS // sums.size)
    for start in range(0, permutations, block):
        size = min(block, permutations - start)
        shuffled = rng.permuted(np.broadcast_to(sums, (size, *sums.shape)), axis=2)  # shape: [size, C, L]
        largest = shuffled.sum(axis=1).max(axis=1)  # shape: [size]
        counts += (largest[:, None] >= reach).sum(axis=0)
    return tuple(float(p) for p in (1 + counts) / (1 + permutations))


def kendall_w(scores: Floats) -> float:
    """Kendall's coefficient of concordance of the prompts' rankings of the routers, corrected for ties.

    1: every prompt ranks the routers alike; near 1 / Q: as if at random.

    Args:
        scores: Shape: [Q, L].

    Returns:
        In [0, 1]; NaN with fewer than two prompts or routers, or if every prompt scores all routers the same.
    """
    prompts, routers = scores.shape
    if prompts < 2 or routers < 2:
        return math.nan
    ranks = stats.rankdata(scores, axis=1)  # shape: [Q, L], ties get their mean rank
    ties = sum(float((n**3 - n).sum()) for n in (np.unique(row, return_counts=True)[1] for row in ranks))
    most = prompts**2 * (routers**3 - routers) - prompts * ties
    if most <= 0:
        return math.nan
    totals = ranks.sum(axis=0)  # shape: [L]
    return float(12 * ((totals - totals.mean()) ** 2).sum() / most)


def split_half(
    scores: Floats, sources: Sequence[str], *, top_n: int = 1, halves: int = HALVES, seed: int = 0
) -> SplitHalf:
    """Rank the routers on one random half of the source questions and on the other, and compare; many times.

    Args:
        scores: Shape: [Q, L].
        sources: Source question of each prompt. Shape: [Q].
        top_n: How many routers count as top.
        halves: Random splits.
        seed: Of the splits.

    Returns:
        NaN, and shares of 0, with fewer than two sources.
    """
    sums, sizes = _by_source(scores, sources)
    many, routers = sums.shape
    if many < 2:
        return SplitHalf(math.nan, math.nan, math.nan, 0, (0.0,) * routers, top_n)
    rng = np.random.default_rng(seed)
    found: list[float] = []
    top = np.zeros(routers)
    for _ in range(halves):
        order = rng.permutation(many)
        means = [sums[part].sum(axis=0) / sizes[part].sum() for part in (order[: many // 2], order[many // 2 :])]
        found.append(spearman(*means))
        for mean in means:
            top[np.argsort(-mean, kind="stable")[:top_n]] += 1
    kept = np.array([r for r in found if math.isfinite(r)])
    share = tuple(float(t) for t in top / (2 * halves))
    if not len(kept):
        return SplitHalf(math.nan, math.nan, math.nan, 0, share, top_n)
    low, high = np.quantile(kept, [0.025, 0.975])
    return SplitHalf(float(kept.mean()), float(low), float(high), len(kept), share, top_n)


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN if either is constant. Shapes: [L]."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def stability(scores: Floats, sources: Sequence[str], *, top_n: int, seed: int = 0) -> dict[str, Any]:
    """Rank stability over prompts, as in ``results.json``; None where it is not defined.

    Returns:
        ``kendall_w``; ``split_half`` with mean, low, high; ``top``, of every layer the share of halves in which its
        router is among the first ``top_n``, those that never are left out.
    """
    halves = split_half(scores, sources, top_n=top_n, seed=seed)
    return {
        "kendall_w": _or_none(kendall_w(scores)),
        "split_half": halves.to_json() if halves.halves else None,
        "top_n": top_n,
        "top": {str(layer): share for layer, share in enumerate(halves.top) if share > 0},
    }


def _by_source(scores: Floats, sources: Sequence[str]) -> tuple[Floats, Floats]:
    """Sum of the scores and number of prompts of every source, in the order of their names. Shapes: [C, L], [C]."""
    if len(scores) != len(sources):
        raise ValueError(f"{len(scores)} prompts need as many sources, not {len(sources)}")
    names, index = np.unique(np.asarray(sources, dtype=np.str_), return_inverse=True)
    sums = np.zeros((len(names), scores.shape[1]))
    np.add.at(sums, index, scores)
    return sums, np.bincount(index, minlength=len(names)).astype(np.float64)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
