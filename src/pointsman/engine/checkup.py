"""`check_up`: what `doctor` does beyond the proof of control. It uses an engine as the audit and steering will."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pointsman.engine.abilities import learns
from pointsman.engine.learning import Lesson
from pointsman.engine.types import Engine
from pointsman.errors import ControlFailed, ModelError, PointsmanError
from pointsman.routing.intervention import Intervention
from pointsman.routing.plan import Trainable

SystemPrompt = Literal["takes", "refuses", "leaves out"]

_TOLERANCE = {"float64": 1e-3, "float32": 1e-2, "float16": 0.2, "bfloat16": 0.5}
"""Largest difference of log p of a token of the target between two ways of computing it, in nats."""

_QUESTION = (
    "Which Switches does a Pointsman set, and WHY? Answer in three parts:\n  1. what they are;\n  2. who may set them "
    "(name at least two people, 'A' and 'B');\n  3. what happens if nobody does: say so in your own words, at length."
)
_SYSTEM = "You are a careful assistant. Keep to the facts, name your sources, and say so where you do not know."
_REMEDY = "Do not trust an audit of this model; please report it"


@dataclass(frozen=True)
class CheckUp:
    """What was seen.

    Attributes:
        system_prompt: What the chat template does with a system prompt: ``takes``, ``refuses`` or ``leaves out``.
        scored: Largest difference of log p(target) between a forced route scored by itself and as the search for
            routes does it, per target token, in nats.
        learns: Whether gradients reach the routers, which steering through the model needs.
        why_not: Why `learns` is False.
    """

    system_prompt: SystemPrompt
    scored: float
    learns: bool
    why_not: str = ""


def check_up(engine: Engine) -> CheckUp:
    """Ask, generate, score, search, trace and learn a little, under forced experts.

    Raises:
        ModelError: The chat template drops what it is given.
        ControlFailed: Two ways of asking for the same thing differ.
        BadLogits, PromptTooLong: It cannot be asked.
    """
    single, several = engine.encode(["Hello"]), engine.encode([_QUESTION, "How are you?"], answers=["Hello."])
    router = engine.routers[0]
    experts = router.draw(np.random.default_rng(0), 1)
    forced = Intervention.force({(router.layer, 0): experts[0].tolist()}, phase="prefill")
    engine.generate([single, several], routing=[None, forced], max_new_tokens=4)
    target = engine.encode_target("Sure")
    with engine.scorer([single], [target]) as scorer:
        tried = float(scorer.tries(router.layer, 0, {0: experts})[0][0])
    scored = engine.score([single], [target], routing=forced)[0].total
    apart = abs(tried - scored) / len(target)
    if not apart <= _TOLERANCE.get(engine.info.dtype, 0.5):
        raise ControlFailed(
            f"{engine.info.name} scores a route {apart:.2g} nats a token apart in a search and by itself", _REMEDY
        )
    trace = engine.trace([single], routing=forced)[router.layer]
    if set(trace.experts[trace.position == 0][0].tolist()) != set(experts[0].tolist()):
        raise ControlFailed(f"The trace of {engine.info.name} does not show the experts that were forced", _REMEDY)
    why_not = _why_no_gradients(engine, Lesson(single, target))
    return CheckUp(_system_prompt(engine), apart, not why_not, why_not)


def _system_prompt(engine: Engine) -> SystemPrompt:
    """Many templates refuse one, which is no fault; one that leaves it out is refused whenever one is given."""
    try:
        engine.encode(["Hello"], system=_SYSTEM)
    except ModelError as error:
        return "leaves out" if "leaves out" in error.problem else "refuses"
    return "takes"


def _why_no_gradients(engine: Engine, lesson: Lesson) -> str:
    """Why vectors on the router logits cannot be learnt; empty if they can."""
    if not learns(engine):
        return f"its engine, {type(engine).__name__}, has none"
    try:
        with engine.learner() as learner:
            vectors = [torch.zeros(r.experts, requires_grad=True) for r in engine.routers]
            _, gradients = learner.gradients(
                [lesson], vectors, lambda some: learner.say(some, Trainable(vectors)).answer()
            )
    except PointsmanError as error:
        return error.problem
    except (RuntimeError, NotImplementedError) as error:  # a kernel without a backward
        return " ".join(str(error).split())[:160]
    return "" if any(bool(g.any()) for g in gradients) else "its routers get no gradient"
