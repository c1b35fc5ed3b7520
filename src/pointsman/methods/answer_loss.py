"""How improbable a routing makes the answers that the untouched model gives: a price in nats, without a judge.

The loss of an answer is the mean over its tokens of log p as the model is, less log p under the routing.
It is no divergence: tokens that the model did not say do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine, Routing
from pointsman.methods.steps import Steps
from pointsman.routing.given import plain
from pointsman.routing.intervention import Intervention
from pointsman.stats.rates import Mean, Rate

MARGIN = 0.5
"""Nats per token; an answer that loses more counts as lost."""


@dataclass(frozen=True)
class AnswerLoss:
    """What answers lose under a routing, each against itself without one.

    Attributes:
        mean: Nats per token, over answers.
        lost: Answers that lose more than `MARGIN`.
    """

    mean: Mean
    lost: Rate

    @staticmethod
    def of(losses: Sequence[float], sources: Sequence[str], seed: int = 0) -> AnswerLoss:
        """Of the loss of each answer; `sources` are the source questions, `seed` is of the bootstrap."""
        return AnswerLoss(Mean.of(losses, sources, seed), Rate.of([loss > MARGIN for loss in losses], sources, seed))


def answer_losses(
    engine: Engine,
    behaviours: Sequence[Behaviour],
    answers: Sequence[str],
    routing: Routing,
    *,
    key: str,
    steps: Steps | None = None,
    system: str | None = None,
) -> list[float]:
    """The loss of each answer under its routing, in stored units.

    Args:
        answers: What the model said as it is, or what would be right; none is empty. As many tokens of each as the
            context holds.
    """
    given = plain(routing)

    def compute(rows: Sequence[int]) -> dict[str, Any]:
        rules = given if given is None or isinstance(given, Intervention) else [given[n] for n in rows]
        prompts = [engine.encode(behaviours[n].turns, system=system) for n in rows]
        targets = [
            engine.encode_target(answers[n])[: engine.info.context - len(prompt)]
            for n, prompt in zip(rows, prompts, strict=True)
        ]
        before = engine.score(prompts, targets)
        after = engine.score(prompts, targets, routing=rules)
        return {"losses": [(b.total - a.total) / len(b.tokens) for b, a in zip(before, after, strict=True)]}

    units = (steps or Steps()).units(key, engine, range(len(behaviours)), compute)
    return [loss for unit in units for loss in unit["losses"]]
