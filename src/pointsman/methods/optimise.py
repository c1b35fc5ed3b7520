"""Optimisation through the model: what a routing is learnt by, whatever its form. METHODS sections 5 and 10.

With theta the numbers that are learnt, a step of Adam on

    mean_i -log p(wanted answer_i | context_i, theta)
      + hold * sum over held groups of mean_j KL(unsteered || steered) at the answers of the unsteered model
      + a penalty of the form's own

The choice of experts has no gradient; the weights of the chosen ones have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pointsman.engine.learning import Learner, Lesson, Said
from pointsman.errors import DataError, UsageError
from pointsman.methods.steps import Steps, stream
from pointsman.routing.plan import Trainable

if TYPE_CHECKING:
    from pointsman.engine.abilities import Learns

UNIT = 25  # optimisation steps in one stored unit
_CACHE = 512 * 2**20  # bytes of unsteered log-probabilities that are kept
_TOGETHER = 16  # lessons in one of their forwards


class Form(Protocol):
    """What is learnt: some arrays of numbers, and the routing that they make."""

    def begin(self) -> list[Tensor]:
        """The numbers before the first step."""
        ...

    def leaves(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        """What gradients are taken with respect to."""
        ...

    def routing(self, leaves: Sequence[Tensor]) -> Trainable:
        """What is made of them; once for every backward."""
        ...

    def gradients(self, numbers: Sequence[Tensor], found: Sequence[Tensor], done: float) -> list[Tensor]:
        """Of the numbers, from those of the leaves; with that of the penalty when this share of the steps is done."""
        ...


@dataclass(frozen=True)
class Learnt:
    """The numbers after some steps.

    Attributes:
        step: Steps taken.
        numbers: Shaped as the form began.
        wanted: Mean -log p(wanted answer) of each step's batch so far, in nats. Shape: [step].
        held: Sum over the held groups of the mean divergence, in nats. Shape: [step].
    """

    step: int
    numbers: tuple[np.ndarray, ...]
    wanted: tuple[float, ...]
    held: tuple[float, ...]


@dataclass(frozen=True)
class Course:
    """How an optimisation goes.

    Attributes:
        stream: Name of the random stream of its batches.
        steps: Steps of Adam.
        batch: Contexts of each step, and as many of each held group.
        lr: Learning rate; it falls along a cosine to a twentieth.
        hold: Weight of the divergence on what is held.
        seed: Of the batches.
    """

    stream: str
    steps: int
    batch: int
    lr: float
    hold: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "Give at least 1")

    def run(
        self,
        form: Form,
        engine: Learns,
        wanted: Sequence[Lesson],
        held: Mapping[str, Sequence[Lesson]],
        *,
        key: str,
        steps: Steps | None = None,
    ) -> Iterator[Learnt]:
        """Optimise, in stored units of `UNIT` steps; what is learnt so far is given after each.

        Args:
            form: What is learnt.
            engine: The model.
            wanted: Contexts of the discovery split with the answers they should get.
            held: Groups of contexts with the unsteered model's answers, which should not move; may be empty.
            key, steps: How units are remembered.

        Raises:
            DataError: There is nothing to learn from.
        """
        if not wanted:
            raise DataError("There are no contexts to learn from", "Give conversations that the model falls for")
        steps = steps or Steps()
        groups = {name: list(lessons) for name, lessons in sorted(held.items()) if lessons}
        state = _State.new(form.begin())
        known = _Unsteered(groups)
        losses: list[list[float]] = []
        for first in range(0, self.steps, UNIT):
            last = min(first + UNIT, self.steps)

            def compute(first: int = first, last: int = last, state: _State = state) -> dict[str, Any]:
                with engine.learner() as learner:
                    known.fill(learner)
                    said = [
                        self._step(form, learner, state, step, wanted, groups, known) for step in range(first, last)
                    ]
                return {"state": state.to_json(), "losses": said}

            unit = steps.unit(f"{key}/{first}", engine, compute, last - first)
            state = _State.from_json(unit["state"])
            losses += unit["losses"]
            numbers = tuple(vector.numpy().copy() for vector in state.vectors)
            yield Learnt(last, numbers, tuple(a for a, _ in losses), tuple(b for _, b in losses))

    def _step(
        self,
        form: Form,
        learner: Learner,
        state: _State,
        step: int,
        wanted: Sequence[Lesson],
        groups: Mapping[str, Sequence[Lesson]],
        known: _Unsteered,
    ) -> list[float]:
        """One step of Adam, in place; the gradient of a batch is gathered over parts that fit. Returns both losses."""
        leaves = [leaf.requires_grad_(True) for leaf in form.leaves(state.vectors)]
        rng = stream(self.seed, self.stream, step)

        def unlikely(part: Sequence[Lesson]) -> Tensor:
            return -learner.say(part, form.routing(leaves)).answer()

        said, gradients = learner.gradients(_draw(rng, wanted, self.batch), leaves, unlikely)
        moved = 0.0
        for lessons in groups.values():

            def divergence(part: Sequence[Lesson]) -> Tensor:
                return learner.say(part, form.routing(leaves)).divergence(known.of(learner, part))

            mean, more = learner.gradients(_draw(rng, lessons, self.batch), leaves, divergence)
            gradients = [a + self.hold * b for a, b in zip(gradients, more, strict=True)]
            moved += mean
        rate = self.lr * (0.525 + 0.475 * math.cos(math.pi * step / self.steps))
        done = step / max(self.steps - 1, 1)
        state.adam(form.gradients(state.vectors, [gradient.cpu() for gradient in gradients], done), rate)
        return [said, moved]


@dataclass
class _State:
    """What is learnt, and the moments of Adam, all in float32 on the host."""

    vectors: list[Tensor]
    mean: list[Tensor]
    square: list[Tensor]
    step: int = 0

    @staticmethod
    def new(vectors: list[Tensor]) -> _State:
        return _State(vectors, [torch.zeros_like(v) for v in vectors], [torch.zeros_like(v) for v in vectors])

    def adam(self, gradients: Sequence[Tensor], lr: float) -> None:
        """One step as torch.optim.Adam takes it (beta .9, .999, eps 1e-8)."""
        self.step += 1
        for vector, mean, square, g in zip(self.vectors, self.mean, self.square, gradients, strict=True):
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
