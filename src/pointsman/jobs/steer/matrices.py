"""A steering matrix: where it was learnt, and the mask that it makes (METHODS section 5.4, 5.5)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pointsman.methods.mascing import Matrix
from pointsman.routing.intervention import Intervention, Phase


@dataclass(frozen=True)
class TrainedMatrix:
    """A steering matrix and where it comes from.

    Attributes:
        refinement: ``surrogate``, ``on_policy`` or ``through_model``.
        lambda_: Weight of norm1(S).
        values: S after the cut, in units of sigma. Shapes: [E_l].
        phase: That it was learnt for; None: any, since the surrogate reads prompts alone.
        turned: Share of the discovery contexts whose surrogate verdict is turned; None if no surrogate was asked.
        start: What an optimisation through the model started from.
        hold: Weight of what should stay as it is, in an optimisation through the model.
        seed: Of the method, where it is not the run's own.
    """

    refinement: str
    lambda_: float
    values: tuple[np.ndarray, ...]
    phase: Phase | None = None
    turned: float | None = None
    start: str | None = None
    hold: float | None = None
    seed: int | None = None

    @staticmethod
    def on_surrogate(matrix: Matrix, refinement: str) -> TrainedMatrix:
        """One that was learnt on a surrogate."""
        values = tuple(row.astype(np.float32) for row in matrix.values)
        return TrainedMatrix(refinement, matrix.lambda_, values, turned=matrix.turned)

    @property
    def name(self) -> str:
        """Short and unique among the matrices of one seed."""
        phase = f"/{self.phase}" if self.phase else ""
        start = f"/from-{self.start}" if self.start else ""
        hold = f"/hold={self.hold:g}" if self.hold is not None else ""
        seed = f"/seed={self.seed}" if self.seed is not None else ""
        return f"{self.refinement}/lambda={self.lambda_:g}{hold}{start}{seed}{phase}"

    @property
    def key(self) -> str:
        """Its name and a digest: two matrices share it only if they are equal."""
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(row).tobytes() for row in self.values)).hexdigest()
        return f"{self.name}/{digest[:12]}"

    def mask(self, sigma: Sequence[float], alpha: float, phase: Phase) -> Intervention:
        """``alpha * sigma_l * S[l]`` added to the raw logits; nothing, if S is zero."""
        return mask_of(self.values, sigma, alpha, phase)


def mask_of(values: Sequence[np.ndarray], sigma: Sequence[float], alpha: float, phase: Phase) -> Intervention:
    """``alpha * sigma_l * S[l]`` added to the raw logits; no rule at all, if S is zero."""
    vectors = {n: s * row.astype(np.float64) for n, (row, s) in enumerate(zip(values, sigma, strict=True)) if row.any()}
    return Intervention.bias(vectors, alpha=alpha, phase=phase) if vectors else Intervention()


def norm1(values: Sequence[np.ndarray]) -> float:
    """Sum of the absolute values of a matrix, in units of sigma."""
    return float(sum(np.abs(row).sum() for row in values))
