"""Permutation p-values that are corrected for how many things were looked at (METHODS section 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pointsman.stats.intervals import Floats
from pointsman.stats.resampling import sums_by_cluster

PERMUTATIONS = 9999
_CELLS = 2_000_000  # numbers of one block of permutations: bounded memory, about 50 MB
_TINY = 1e-12  # sums of the same numbers in another order count as equal


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
        scores: How much router l matters on prompt q. Shape: [Q, L].
        sources: Source question of each prompt. Shape: [Q].
        permutations: How many are drawn.
        seed: Of the permutations.

    Returns:
        Shape: [L], each in (0, 1].
    """
    sums = sums_by_cluster(scores, sources)[0] / len(scores)  # shape: [C, L]
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
