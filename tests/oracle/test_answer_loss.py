"""The loss of answers against a literal loop: one row, one token, one full forward at a time."""

from __future__ import annotations

import numpy as np
import pytest

from plain_engine import PlainEngine
from pointsman.data.types import Behaviour
from pointsman.methods.answer_loss import MARGIN, AnswerLoss, answer_losses
from pointsman.methods.steps import Steps
from pointsman.routing.intervention import Intervention

ASKED = [Behaviour(str(n), f"take the rope number {n}", "", source=str(n // 2)) for n in range(5)]
SAID = ["Sure here is", "take", "the rope and how no", "go go", "sorry"]
MASKS = [Intervention.force({0: [n, n + 1], 2: [0, 5 - n]}, phase="both") for n in range(4)]


def literal(behaviour: Behaviour, answer: str, routing: Intervention | None) -> float:
    engine = PlainEngine()
    prompt, total = engine.encode(behaviour.turns), 0.0
    ids = engine.encode_target(answer)
    for place, token in enumerate(ids):
        logits = engine._logits(prompt, ids[:place], routing)[-1]
        total += float(logits[token] - np.log(np.exp(logits).sum()))
    return total / len(ids)


def test_it_is_the_literal_loop() -> None:
    each = [*MASKS, None]
    found = answer_losses(PlainEngine(), ASKED, SAID, each, key="loss")
    expected = [literal(b, a, None) - literal(b, a, r) for b, a, r in zip(ASKED, SAID, each, strict=True)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[-1] == 0
    assert max(map(abs, found)) > 0.01


def test_one_routing_is_the_same_for_all_and_units_are_remembered() -> None:
    memory: dict[str, object] = {}

    def remember(key: str, compute: object) -> object:
        return memory[key] if key in memory else memory.setdefault(key, compute())  # type: ignore[operator]

    engine = PlainEngine()
    one = answer_losses(engine, ASKED, SAID, MASKS[0], key="loss", steps=Steps(remember))
    forwards = engine.cost.forwards
    assert answer_losses(engine, ASKED, SAID, MASKS[0], key="loss", steps=Steps(remember)) == one
    assert engine.cost.forwards == forwards
    assert one == answer_losses(engine, ASKED, SAID, [MASKS[0]] * 5, key="other")


def test_what_loses_more_than_the_margin_is_lost() -> None:
    found = AnswerLoss.of([0.0, MARGIN, MARGIN + 0.1, -1.0], ["a", "a", "b", "b"])
    assert found.lost.k == 1
    assert found.mean.mean == pytest.approx((2 * MARGIN + 0.1 - 1) / 4)
