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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pointsman.engine.learning import Learner, Lesson, Said
from pointsman.errors import DataError, UsageError
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Phase
from pointsman.routing.plan import Trainable

if TYPE_CHECKING:
    from pointsman.engine.abilities import Learns

UNIT = 25  # optimisation steps in one stored unit
_CACHE = 512 * 2**20  # bytes of unsteered log-probabilities that are kept
_TOGETHER = 16  # lessons in one of their forwards


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
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "Give at least 1")

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
        if not wanted:
            raise DataError("There are no contexts to learn from", "Give conversations that the model falls for")
        steps = steps or Steps()
        groups = {name: list(lessons) for name, lessons in sorted(held.items()) if lessons}
        begin = start or [np.zeros(router.experts, dtype=np.float32) for router in engine.routers]
        state = _State.new(begin)
        known = _Unsteered(groups)
        losses: list[list[float]] = []
        for first in range(0, self.steps, UNIT):
            last = min(first + UNIT, self.steps)

            def compute(first: int = first, last: int = last, state: _State = state) -> dict[str, Any]:
                with engine.learner() as learner:
                    known.fill(learner)
                    said = [
                        self._step(learner, state, step, wanted, groups, sigma, known) for step in range(first, last)
                    ]
                return {"state": state.to_json(), "losses": said}

            unit = steps.unit(f"{key}/{first}", engine, compute, last - first)
            state = _State.from_json(unit["state"])
            losses += unit["losses"]
        raw = tuple(vector.numpy().copy() for vector in state.vectors)
        values = tuple(np.where(np.abs(vector) > self.cut, vector, 0.0).astype(np.float32) for vector in raw)
        return Refined(values, raw, tuple(a for a, _ in losses), tuple(b for _, b in losses))

    def _step(
        self,
        learner: Learner,
        state: _State,
        step: int,
        wanted: Sequence[Lesson],
        groups: Mapping[str, Sequence[Lesson]],
        sigma: Sequence[float],
        known: _Unsteered,
    ) -> list[float]:
        """One step of Adam, in place; the gradient of a batch is gathered over parts that fit. Returns both losses."""
        shifts = [  # logit units
            (vector * float(s)).requires_grad_(True) for vector, s in zip(state.vectors, sigma, strict=True)
        ]
        rng = stream(self.seed, "through_model", step)

        def unlikely(part: Sequence[Lesson]) -> Tensor:
            return -learner.say(part, Trainable(shifts, self.phase)).answer()

        said, gradients = learner.gradients(_draw(rng, wanted, self.batch), shifts, unlikely)
        moved = 0.0
        for lessons in groups.values():

            def divergence(part: Sequence[Lesson]) -> Tensor:
                return learner.say(part, Trainable(shifts, self.phase)).divergence(known.of(learner, part))

            mean, more = learner.gradients(_draw(rng, lessons, self.batch), shifts, divergence)
            gradients = [a + self.hold * b for a, b in zip(gradients, more, strict=True)]
            moved += mean
        gradients = [gradient.cpu() * float(s) for gradient, s in zip(gradients, sigma, strict=True)]
        rate = self.lr * (0.525 + 0.475 * math.cos(math.pi * step / self.steps))
        state.adam(gradients, rate, self.lambda_)
        return [said, moved]


@dataclass
class _State:
    """S and the moments of Adam, all in float32 on the host. Shapes: [E_l]."""

    vectors: list[Tensor]
    mean: list[Tensor]
    square: list[Tensor]
    step: int = 0

    @staticmethod
    def new(start: Sequence[np.ndarray]) -> _State:
        vectors = [torch.from_numpy(np.array(vector, dtype=np.float32)) for vector in start]
        return _State(vectors, [torch.zeros_like(v) for v in vectors], [torch.zeros_like(v) for v in vectors])

    def adam(self, gradients: Sequence[Tensor], lr: float, lambda_: float) -> None:
        """One step as torch.optim.Adam takes it (beta .9, .999, eps 1e-8), with the subgradient of lambda * norm1."""
        self.step += 1
        for vector, mean, square, gradient in zip(self.vectors, self.mean, self.square, gradients, strict=True):
            g = gradient + lambda_ * torch.sign(vector)
            mean.mul_(0.9).add_(g, alpha=0.1)
            square.mul_(0.999).addcmul_(g, g, value=0.001)
            corrected = square.sqrt() / math.sqrt(1 - 0.999**self.step) + 1e-8
            vector.addcdiv_(mean, corrected, value=-lr / (1 - 0.9**self.step))

    def to_json(self) -> dict[str, Any]:
        parts = {name: [v.tolist() for v in getattr(self, name)] for name in ("vectors", "mean", "square")}
        return {**parts, "step": self.step}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> _State:
        def tensors(name: str) -> list[Tensor]:
            return [torch.tensor(v, dtype=torch.float32) for v in data[name]]

        return _State(tensors("vectors"), tensors("mean"), tensors("square"), int(data["step"]))


class _Unsteered:
    """What the unsteered model says at the held answers: what fits into memory, computed once, in fixed batches."""

    def __init__(self, groups: Mapping[str, Sequence[Lesson]]) -> None:
        self._lessons = [lesson for lessons in groups.values() for lesson in lessons]
        self._kept: dict[int, Tensor] | None = None  # by identity of the lesson. Shapes: [A, V]

    def fill(self, learner: Learner) -> None:
        """Compute them, unless that was done: the same batches whatever was done before."""
        if self._kept is not None:
            return
        self._kept, filled = {}, 0
        for lesson, row in zip(self._lessons, learner.unsteered(self._lessons, _TOGETHER), strict=False):
            filled += row.numel() * row.element_size()
            if filled > _CACHE:
                return
            self._kept[id(lesson)] = row.clone()

    def of(self, learner: Learner, lessons: Sequence[Lesson]) -> Said:
        """Log-probabilities of these lessons' answers, padded on the left."""
        kept = self._kept or {}
        if any(id(lesson) not in kept for lesson in lessons):
            return learner.say(lessons)
        rows = [kept[id(lesson)] for lesson in lessons]
        most = max(len(row) for row in rows)
        log_p = rows[0].new_zeros(len(rows), most, rows[0].shape[-1])  # shape: [B, A, V]
        mask = rows[0].new_zeros(len(rows), most)
        for n, row in enumerate(rows):
            log_p[n, most - len(row) :] = row
            mask[n, most - len(row) :] = 1
        return Said(log_p, mask, mask.long())


def _draw(rng: np.random.Generator, lessons: Sequence[Lesson], count: int) -> list[Lesson]:
    """At most `count` different lessons."""
    return [lessons[int(n)] for n in rng.permutation(len(lessons))[:count]]
