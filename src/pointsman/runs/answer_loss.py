"""What routings take from the model's own answers to benign requests, and from right ones where they are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.data.types import Behaviour
from pointsman.methods.answer_loss import AnswerLoss, answer_losses
from pointsman.methods.attempts import Attempt
from pointsman.methods.steps import Steps
from pointsman.runs.bench import Bench
from pointsman.runs.tasks import Arm


@dataclass(frozen=True)
class AnswersUnder:
    """What answers lose under one routing.

    Attributes:
        name: Of the routing.
        own: Answers of the model as it is.
        right: Beginnings of right answers, where benign requests have a target; None where none has.
    """

    name: str
    own: AnswerLoss
    right: AnswerLoss | None


def measure_answers(
    bench: Bench[Any],
    behaviours: Sequence[Behaviour],
    said: Sequence[Attempt],
    arms: Sequence[Arm],
    *,
    seed: int,
    system: str | None = None,
) -> tuple[AnswersUnder, ...]:
    """Score the answers under each routing.

    Args:
        behaviours: Benign requests; a routing that is a list has one for each of them.
        said: What the model said to them as it is.
        seed: Of bootstraps.
    """
    own = [(n, a.response) for n, a in enumerate(said) if a.response.strip()]
    right = [(n, b.target) for n, b in enumerate(behaviours) if b.target.strip()]

    def loss(arm: Arm, kind: str, rows: Sequence[tuple[int, str]], steps: Steps) -> AnswerLoss:
        routing = [arm.routing[n] for n, _ in rows] if isinstance(arm.routing, list) else arm.routing
        losses = answer_losses(
            bench.engine, [behaviours[n] for n, _ in rows], [text for _, text in rows], routing,
            key=f"answers/{kind}/{arm.name}", steps=steps, system=system,
        )  # fmt: skip
        return AnswerLoss.of(losses, [said[n].source for n, _ in rows], seed)

    if not own:
        return ()
    with bench.stage("answers", "Own answers", len(arms) * (len(own) + len(right))) as steps:
        return tuple(
            AnswersUnder(arm.name, loss(arm, "own", own, steps), loss(arm, "right", right, steps) if right else None)
            for arm in arms
        )
