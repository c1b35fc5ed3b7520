"""How far a ranking of routers can be believed: its agreement over prompts and halves of them (METHODS section 1).

Everything here takes scores[q, l], how much router l matters on prompt q; halves also take the source question of every
prompt. Prompts of one source are not independent, so sources are what is halved, never single prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pointsman.stats.intervals import DECIMAL_TAILS, Floats, Interval, percentiles, spanning
from pointsman.stats.resampling import FEWER_DRAWS, sums_by_cluster, times_drawn

HALVES = 200
"""Random splits into two halves."""


@dataclass(frozen=True)
class SplitHalf:
    """Rankings of two halves of the prompts, compared; over random halves.

    Attributes:
        mean: Of Spearman's correlations between the routers' mean scores on the two halves; None if there
            are none. It is that of half the prompts: no Spearman-Brown correction is made.
        low, high: Between them lie 95 % of the correlations. It is a range of halves, not a confidence interval.
        halves: Splits that had a correlation (scores that are all equal have none).
    """

    mean: float | None
    low: float | None
    high: float | None
    halves: int


@dataclass(frozen=True)
class Stability:
    """How stable a ranking of routers is over prompts.

    Attributes:
        kendall_w: As the function of that name gives it.
        split_half: None if no split had a correlation.
        top_n: How many routers count as top.
        top: By layer, the share of halves in which its router is among the `top_n`; those that never are left out.
    """

    kendall_w: float | None
    split_half: SplitHalf | None
    top_n: int
    top: dict[str, float]


def kendall_w(scores: Floats) -> float | None:
    """Kendall's coefficient of concordance of the prompts' rankings of the routers, corrected for ties.

    1: every prompt ranks the routers alike; near 1 / Q: as if at random.

    Args:
        scores: Shape: [Q, L].

    Returns:
        In [0, 1]; None with fewer than two prompts or routers, or if every prompt scores all routers the same.
    """
    prompts, routers = scores.shape
    if prompts < 2 or routers < 2:
        return None
    ranks = stats.rankdata(scores, axis=1)  # shape: [Q, L], ties get their mean rank
    ties = sum(float((n**3 - n).sum()) for n in (np.unique(row, return_counts=True)[1] for row in ranks))
    most = prompts**2 * (routers**3 - routers) - prompts * ties
    if most <= 0:
        return None
    totals = ranks.sum(axis=0)  # shape: [L]
    return float(12 * ((totals - totals.mean()) ** 2).sum() / most)


def split_half(
    scores: Floats, sources: Sequence[str], *, top_n: int = 1, halves: int = HALVES, seed: int = 0
) -> tuple[SplitHalf, tuple[float, ...]]:
    """Rank the routers on one random half of the source questions and on the other, and compare; many times.

    Args:
        scores: Shape: [Q, L].
        sources: Source question of each prompt. Shape: [Q].
        top_n: How many routers count as top.
        halves: Random splits.
        seed: Of the splits.

    Returns:
        The correlations; and of every router, the share of halves (two for each split) in which it is among the
        `top_n`, shape [L]. Nothing but zeros with fewer than two sources.
    """
    sums, sizes, _ = sums_by_cluster(scores, sources)
    many, routers = sums.shape
    if many < 2:
        return SplitHalf(None, None, None, 0), (0.0,) * routers
    rng = np.random.default_rng(seed)
    found = []
    top = np.zeros(routers)
    for _ in range(halves):
        order = rng.permutation(many)
        means = [sums[part].sum(axis=0) / sizes[part].sum() for part in (order[: many // 2], order[many // 2 :])]
        found.append(spearman(*means))
        for mean in means:
            top[np.argsort(-mean, kind="stable")[:top_n]] += 1
    kept = np.array([r for r in found if r is not None])
    share = tuple(float(t) for t in top / (2 * halves))
    if not len(kept):
        return SplitHalf(None, None, None, 0), share
    return SplitHalf(float(kept.mean()), *percentiles(kept, DECIMAL_TAILS), len(kept)), share


def spearman(a: Floats, b: Floats) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None if either is constant. Shapes: [L]."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def spearman_interval(a: Floats, b: Floats, sources: Sequence[str], seed: int = 0) -> Interval | None:
    """95 % percentile interval of Spearman's correlation between two means, with sources drawn with replacement.

    A source is drawn for both at once: prompts are what is drawn, and the routers stay.

    Args:
        a, b: Scores of the same prompts. Shapes: [Q, L].
        sources: Source question of each prompt. Shape: [Q].
        seed: Of the draws.

    Returns:
        It spans the correlation itself. None with fewer than two sources, or if there is no correlation.
    """
    (of_a, sizes, _), (of_b, _, _) = sums_by_cluster(a, sources), sums_by_cluster(b, sources)
    whole = spearman(of_a.sum(axis=0), of_b.sum(axis=0))
    if len(sizes) < 2 or whole is None:
        return None
    drawn = times_drawn(np.random.default_rng(seed), len(sizes), FEWER_DRAWS)  # shape: [draws, c]
    prompts = (drawn @ sizes)[:, None]
    found = [spearman(*means) for means in zip(drawn @ of_a / prompts, drawn @ of_b / prompts, strict=True)]
    return spanning(percentiles(np.array([r for r in found if r is not None] or [whole])), whole)


def kendall_tau(a: Floats, b: Floats) -> float | None:
    """Kendall's rank correlation tau-b, corrected for ties; None if either is constant. Shapes: [L]."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.kendalltau(a, b).statistic)


def stability(scores: Floats, sources: Sequence[str], *, top_n: int, seed: int = 0) -> Stability:
    """How stable the ranking by `scores` is over prompts; arguments as those of `split_half`."""
    halves, top = split_half(scores, sources, top_n=top_n, seed=seed)
    shares = {str(layer): share for layer, share in enumerate(top) if share > 0}
    return Stability(kendall_w(scores), halves if halves.halves else None, top_n, shares)
