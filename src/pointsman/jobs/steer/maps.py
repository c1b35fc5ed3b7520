"""A conditional mask: where it was learnt, and the rule that it makes (METHODS section 10)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pointsman.routing.intervention import Intervention, Phase
from pointsman.routing.low_rank import LowRank

Maps = Mapping[int, LowRank]
"""By MoE layer, in logit units at alpha 1."""


@dataclass(frozen=True, eq=False)
class TrainedMaps:
    """A conditional mask and where it comes from.

    Attributes:
        maps: Of every steered layer.
        step: Optimisation steps after which it was taken.
        rank, hold, decay, threshold: As in `Conditional`.
        phase: That it was learnt for.
        norms: Mean norm of a row of the weight of every router. Shape: [L].
        seed: Of the method, where it is not the run's own.
    """

    maps: Maps
    step: int
    rank: int
    hold: float
    decay: float
    threshold: bool
    phase: Phase
    norms: tuple[float, ...]
    seed: int | None = None

    @property
    def name(self) -> str:
        """Short and unique among the masks of a run."""
        threshold = "/threshold" if self.threshold else ""
        seed = f"/seed={self.seed}" if self.seed is not None else ""
        return f"conditional/rank={self.rank}/hold={self.hold:g}/decay={self.decay:g}{threshold}/step={self.step}{seed}"

    def mask(self, alpha: float) -> Intervention:
        """``alpha * B A x`` added to the raw logits."""
        return conditional_of(self.maps, alpha, self.phase)


def conditional_of(maps: Maps, alpha: float, phase: Phase) -> Intervention:
    """``alpha * B A x`` added to the raw logits."""
    return Intervention.conditional(maps, alpha=alpha, phase=phase)


def size_of(maps: Maps, norms: Sequence[float]) -> float:
    """Sum over layers of |B A| / |W| (Frobenius), with sqrt(E) times the mean norm of a row for |W|."""
    return sum(
        float(np.linalg.norm(one.product)) / (norms[layer] * math.sqrt(one.experts)) for layer, one in maps.items()
    )


def shuffled_experts(maps: Maps, rng: np.random.Generator) -> Maps:
    """The same directions of the input, moving other experts of the same layer: the control."""
    return {
        layer: LowRank(one.down, one.up[rng.permutation(one.experts)], one.threshold)
        for layer, one in sorted(maps.items())
    }
