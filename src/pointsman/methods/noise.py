"""Does unsafe routing occur by chance? Gaussian noise on all router logits, without any search. METHODS section 2.

The standard deviation of layer l's raw logits over real tokens, sigma_l, is the unit: noise of 0.1 sigma_l moves few
selections, noise of 1 sigma_l most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.errors import UsageError
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt, ask_in_steps
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Intervention, Phase


@dataclass(frozen=True)
class Noise:
    """Ask every behaviour while all router logits are noisy.

    Attributes:
        level: Standard deviation of the noise, in units of sigma_l.
        phase: When it is in force.
        max_new_tokens: Length of the answer.
        seed: Seed of the noise, which differs for every behaviour; at two levels it is the same but for its size.
    """

    level: float
    phase: Phase = "both"
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < math.inf:
            raise UsageError(f"A noise of {self.level} sigma", "Use a positive number, such as 0.3")

    def ask(
        self,
        engine: Engine,
        behaviours: Sequence[Behaviour],
        judge: Judge,
        sigma: Sequence[float],
        *,
        steps: Steps | None = None,
    ) -> list[Attempt]:
        """One answer to every behaviour.

        Args:
            engine, behaviours, judge: As for any attack.
            sigma: Standard deviation of every layer's logits, see `spread`. Shape: [L].
            steps: Where units are remembered.
        """
        return ask_in_steps(
            engine, behaviours, judge, key=f"noise/{self.phase}/{self.level}", steps=steps or Steps(),
            routing=[self.routing(b, sigma) for b in behaviours], max_new_tokens=self.max_new_tokens,
        )  # fmt: skip

    def routing(self, behaviour: Behaviour, sigma: Sequence[float]) -> Intervention:
        """The noise of one behaviour: a pure function of (seed, behaviour). sigma: shape [L]."""
        stds = {layer: self.level * s for layer, s in enumerate(sigma) if s > 0}
        if not stds:
            raise UsageError("The router logits do not vary, so there is no unit of noise", "Give other prompts")
        seed = int(stream(self.seed, "noise", behaviour.id).integers(1 << 63))
        return Intervention.noise(stds, seed=seed, phase=self.phase)


def spread(engine: Engine, behaviours: Sequence[Behaviour], *, steps: Steps | None = None) -> tuple[float, ...]:
    """sigma_l: the standard deviation of every layer's raw logits, over the real tokens of prompts and all experts.

    Returns:
        In logit units. Shape: [L].
    """
    if not behaviours:
        raise UsageError("There are no prompts to measure router logits on", "Give at least one behaviour")
    steps = steps or Steps()

    def compute(some: Sequence[Behaviour]) -> dict[str, Any]:
        trace = engine.trace([engine.encode(b.turns) for b in some])
        logits = [layer.logits.astype(np.float64) for layer in trace.layers]  # shapes: [N, E]
        return {
            "n": [r.size for r in logits],
            "mean": [float(r.mean()) for r in logits],
            "variance": [float(r.var()) for r in logits],
        }

    parts = steps.units("sigma", engine, behaviours, compute)
    n = np.array([p["n"] for p in parts])  # shape: [chunks, L]
    means, variances = np.array([p["mean"] for p in parts]), np.array([p["variance"] for p in parts])
    mean = (n * means).sum(axis=0) / n.sum(axis=0)  # shape: [L]
    variance = (n * (variances + (means - mean) ** 2)).sum(axis=0) / n.sum(axis=0)
    return tuple(float(s) for s in np.sqrt(variance))
