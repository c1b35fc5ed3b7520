"""Learn a steering matrix through the model itself (METHODS section 5, closing the surrogate gap).

A matrix that turns the surrogate round need not turn the model. Here S is optimised on what the model says:

    mean_i -log p(wanted answer_i | context_i, r + sigma * S)
      + hold * sum over held groups of mean_j KL(unsteered || steered) at the answers of the unsteered model
      + lambda * norm1(S)

The choice of experts has no gradient; the weights of the chosen ones have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pointsman.engine.learning import Lesson
from pointsman.errors import UsageError
from pointsman.methods.optimise import Course
from pointsman.methods.steps import Steps
from pointsman.routing.intervention import Phase
from pointsman.routing.plan import Trainable

if TYPE_CHECKING:
    from pointsman.engine.abilities import Learns


@dataclass(frozen=True)
class Refined:
    """A matrix learnt through the model.

    Attributes:
        values: S after the cut, in units of sigma_l. Shapes: [E_l].
        raw: S before it.
        wanted: Mean -log p(wanted answer) of each step's batch, in nats. Shape: [steps].
        held: Sum over the held groups of the mean divergence, in nats. Shape: [steps].
    """

    values: tuple[np.ndarray, ...]
    raw: tuple[np.ndarray, ...]
    wanted: tuple[float, ...]
    held: tuple[float, ...]


@dataclass(frozen=True)
class ThroughModel:
    """Parameters of the optimisation.

    Attributes:
        lambda_: Weight of norm1(S), in nats.
        phase: Tokens that are steered.
        steps: Steps of Adam.
        batch: Contexts of each step, and as many of each held group.
        lr: Learning rate; it falls along a cosine to a twentieth.
        hold: Weight of the divergence on what is held.
        cut: Entries with abs(S) at most this become 0 at the end.
        seed: Of the batches.
    """

    lambda_: float = 1e-2
    phase: Phase = "prefill"
    steps: int = 150
    batch: int = 16
    lr: float = 0.05
    hold: float = 1.0
    cut: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lambda_) and self.lambda_ >= 0):
            raise UsageError(f"lambda is {self.lambda_}", "Give a finite weight of 0 or more, such as 0.01")
        Course("through_model", self.steps, self.batch, self.lr, self.hold, self.seed)

    def learn(
        self,
        engine: Learns,
        wanted: Sequence[Lesson],
        held: Mapping[str, Sequence[Lesson]],
        sigma: Sequence[float],
        *,
        start: Sequence[np.ndarray] | None = None,
        key: str = "through_model",
        steps: Steps | None = None,
    ) -> Refined:
        """Optimise S, in stored units of `UNIT` steps.

        Args:
            engine: The model.
            wanted: Contexts of the discovery split with the answers they should get.
            held: Groups of contexts with the unsteered model's answers, which should not move; may be empty.
            sigma: Standard deviation of each layer's logits, in logit units. Shape: [L].
            start: S to begin with; zero if None. Shapes: [E_l].
            key, steps: How units are remembered.

        Raises:
            DataError: There is nothing to learn from.
        """
        begin = start or [np.zeros(router.experts, dtype=np.float32) for router in engine.routers]
        form = _Constant(begin, sigma, self.lambda_, self.phase)
        course = Course("through_model", self.steps, self.batch, self.lr, self.hold, self.seed)
        *_, last = course.run(form, engine, wanted, held, key=key, steps=steps)
        values = tuple(np.where(np.abs(vector) > self.cut, vector, 0.0).astype(np.float32) for vector in last.numbers)
        return Refined(values, last.numbers, last.wanted, last.held)


@dataclass(frozen=True)
class _Constant:
    """S, as a form of what is learnt.

    Attributes:
        start: Shapes: [E_l].
        sigma: Shape: [L].
        lambda_: Weight of norm1(S).
        phase: Tokens that are steered.
    """

    start: Sequence[np.ndarray]
    sigma: Sequence[float]
    lambda_: float
    phase: Phase

    def begin(self) -> list[Tensor]:
        return [torch.from_numpy(np.array(vector, dtype=np.float32)) for vector in self.start]

    def leaves(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        return [vector * float(s) for vector, s in zip(numbers, self.sigma, strict=True)]  # logit units

    def routing(self, leaves: Sequence[Tensor]) -> Trainable:
        return Trainable(leaves, self.phase)

    def gradients(self, numbers: Sequence[Tensor], found: Sequence[Tensor], done: float) -> list[Tensor]:
        return [
            gradient * float(s) + self.lambda_ * torch.sign(vector)  # the subgradient of lambda * norm1
            for vector, gradient, s in zip(numbers, found, self.sigma, strict=True)
        ]
