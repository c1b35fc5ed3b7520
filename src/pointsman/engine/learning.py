"""`Learner`: what the model says under a routing that is being learnt, with gradients with respect to the routing.

Only what is added to the router logits is learnt; the model's weights stay as they are. The choice of
experts has no gradient: it flows through the weights with which the chosen experts enter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointsman.engine.batching import in_batches
from pointsman.engine.channels import given
from pointsman.engine.types import Cost, Prompt
from pointsman.errors import BadLogits, UsageError
from pointsman.routing.control import Controller
from pointsman.routing.plan import Trainable

BACKWARD = 8
"""A row of a forward with its backward needs about so many times the memory of one without."""


@dataclass(frozen=True)
class Lesson:
    """A prompt, and the answer that counts.

    Attributes:
        prompt: The prompt.
        answer: Token ids, with the end token if the answer is whole. Shape: [A], at least one.
        source: Its source question: lessons that share it are one cluster.
    """

    prompt: Prompt
    answer: tuple[int, ...]
    source: str = ""


@dataclass(frozen=True)
class Said:
    """Log-probabilities at the answers of some lessons, padded on the left.

    Attributes:
        log_p: Of every token of the vocabulary. Shape: [B, A, V].
        mask: 1 at answer tokens but for the opening of an answer. Shape: [B, A].
        answers: The answer tokens; 0 where `mask` is. Shape: [B, A].
    """

    log_p: Tensor
    mask: Tensor
    answers: Tensor

    def answer(self) -> Tensor:
        """log p(answer) of each lesson, in nats. Shape: [B]."""
        return self._summed(self.log_p.gather(-1, self.answers[..., None])[..., 0])

    def divergence(self, other: Said) -> Tensor:
        """KL(other || self) summed over the answer tokens of each lesson, in nats. Shape: [B]."""
        p = other.log_p.exp()
        apart = (p * (other.log_p - self.log_p)).masked_fill(p == 0, 0.0)  # a token that is ruled out has -inf
        return self._summed(apart.sum(-1))

    def _summed(self, each: Tensor) -> Tensor:
        """Over the answer tokens; whatever stands at padding, also infinities. Shape: [B, A] -> [B]."""
        return each.masked_fill(self.mask == 0, 0.0).sum(-1)


class Learner:
    """Made by an engine's `learner`; of use within its block.

    Args:
        model, controller: Attached.
        pad: Ids and mask of rows, padded on the left. Shapes: [B, T].
        forward: Logits at the last positions. Shape: [B, keep, V].
        rows_that_fit: Rows of a number of tokens that one forward without gradients may hold.
        cost: Where forwards are counted; a backward counts as two.
        layers: Decoder layers.
        name: Of the model, for errors.
        opening: Of answers (`EngineInfo.opening`): read, and not learnt.
    """

    def __init__(
        self,
        controller: Controller,
        pad: Callable[[Sequence[tuple[int, ...]]], tuple[Tensor, Tensor]],
        forward: Callable[[Tensor, Tensor, int], Tensor],
        rows_that_fit: Callable[[int], int],
        cost: Cost,
        layers: int,
        name: str,
        opening: Sequence[int] = (),
    ) -> None:
        self._controller = controller
        self._pad = pad
        self._forward = forward
        self._rows_that_fit = rows_that_fit
        self._cost = cost
        self._layers = layers
        self._name = name
        self._opening = opening

    def gradients(
        self,
        lessons: Sequence[Lesson],
        parameters: Sequence[Tensor],
        objective: Callable[[Sequence[Lesson]], Tensor],
    ) -> tuple[float, list[Tensor]]:
        """Mean of an objective over lessons and its gradient, in parts that fit into memory.

        Args:
            parameters: What the gradient is with respect to.
            objective: Of some of the lessons, one number each. Shape: [B].

        Returns:
            The mean, and the gradients, shaped like the parameters.

        Raises:
            OutOfMemory: Not even one row fits.
        """
        summed = [torch.zeros_like(parameter) for parameter in parameters]

        def part(some: Sequence[Lesson]) -> list[float]:
            started = time.perf_counter()
            before = self._cost.seconds
            each = objective(some)
            if not each.requires_grad:
                raise UsageError(
                    f"{self._name} passes no gradient from what it says to its routers",
                    "Leave through_model out of the refinements of the grid",
                )
            found = torch.autograd.grad(each.sum() / len(lessons), list(parameters), allow_unused=True)
            for total, gradient in zip(summed, found, strict=True):
                if gradient is not None:
                    total += gradient
            self._cost.seconds += time.perf_counter() - started - (self._cost.seconds - before)
            values: list[float] = each.detach().tolist()
            return values

        rows = max(1, self._fit(lessons) // BACKWARD)
        ordered = sorted(lessons, key=lambda lesson: -len(lesson.prompt) - len(lesson.answer))
        return sum(in_batches(ordered, rows, part)) / len(lessons), summed

    def unsteered(self, lessons: Sequence[Lesson], together: int) -> Iterator[Tensor]:
        """What the model says at the answers without anything learnt, lesson by lesson.

        Args:
            together: Lessons in a forward, at most.

        Yields:
            Log-probabilities of each answer. Shape: [A, V].
        """

        def part(some: Sequence[Lesson]) -> list[Tensor]:
            said = self.say(some)
            return [said.log_p[n, -len(lesson.answer) :] for n, lesson in enumerate(some)]

        yield from in_batches(lessons, min(together, self._fit(lessons)), part)

    def _fit(self, lessons: Sequence[Lesson]) -> int:
        """Rows of the longest of these that one forward without gradients may hold."""
        longest = max((len(lesson.prompt) + len(lesson.answer) for lesson in lessons), default=1)
        return max(1, self._rows_that_fit(longest))

    def say(self, lessons: Sequence[Lesson], learnt: Trainable | None = None) -> Said:
        """What the model says at the answers, each token given those before it.

        Args:
            lessons: As many as one forward holds.
            learnt: Added to the raw router logits; None adds nothing, and has no gradient. Answer tokens are decode
                phase.

        Raises:
            BadLogits: The model returned NaN or infinite logits.
        """
        started = time.perf_counter()
        most = max(len(lesson.answer) for lesson in lessons)
        ids, mask = self._pad([lesson.prompt.ids + lesson.answer[:-1] for lesson in lessons])
        self._controller.set(None, prompt_lengths=[len(lesson.prompt) for lesson in lessons])
        self._controller.trainable = learnt
        try:
            with torch.set_grad_enabled(learnt is not None):
                logits = self._forward(ids, mask, most)  # shape: [B, A, V]
                log_p = F.log_softmax(logits.float(), dim=-1)
        finally:
            self._controller.trainable = None
        answers = torch.zeros(len(lessons), most, dtype=torch.long, device=log_p.device)
        said = torch.zeros(len(lessons), most, device=log_p.device)
        for row, lesson in enumerate(lessons):
            answers[row, most - len(lesson.answer) :] = torch.tensor(lesson.answer, device=log_p.device)
            said[row, most - len(lesson.answer) + given(lesson.answer, self._opening) :] = 1
        if not bool(torch.isfinite(log_p.detach()[said.bool()].amax(-1)).all()):
            raise BadLogits(f"{self._name} returned NaN or infinite logits", "Try another dtype, such as bfloat16")
        self._cost.forwards += 1
        self._cost.tokens += ids.numel()
        self._cost.token_layers += ids.numel() * self._layers
        self._cost.seconds += time.perf_counter() - started
        return Said(log_p, said, answers)


@contextmanager
def weights_held(model: nn.Module) -> Iterator[None]:
    """No gradients for the model's weights; afterwards as before."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
