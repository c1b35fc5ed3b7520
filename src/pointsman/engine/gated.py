"""`Gated`: an engine that steers a request only if a gate flags it. METHODS section 5, gated steering.

Every prompt is prefilled without the steering, and the gate reads the raw router logits of its last user message. Rows
that it flags are then answered under the steering, from a prefill of their own; the others as if there were none. Every
turn of a conversation is a request of its own: a turn that is flagged is answered under the steering, and the next one
is asked about anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pointsman.engine.last_message import Logits, last_message_logits
from pointsman.engine.scorer import FullScorer
from pointsman.engine.types import (
    Ability,
    Completion,
    Engine,
    Prompt,
    RouteScorer,
    Routing,
    Score,
    refuse_no_prompts,
    refuse_rows,
    refuse_unable,
)
from pointsman.errors import InterventionError, UsageError
from pointsman.routing.given import HasIntervention, plain
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import Router
from pointsman.routing.trace import RouteTrace


class FlagsRequests(Protocol):
    """A gate, as `methods.gate.FittedGate` is one."""

    @property
    def identity(self) -> str:
        """A hash of all that decides what it flags."""
        ...

    def check(self, routers: Sequence[Router], fingerprint: str) -> None:
        """Refuse a model that it was not made for.

        Raises:
            InterventionError: It was made for another (`WrongModel`), or for other layers.
        """
        ...

    def flags(self, contexts: Sequence[Sequence[Logits]]) -> npt.NDArray[np.bool_]:
        """Which requests it is for, from the raw router logits of their last user messages. Shape: [B].

        Args:
            contexts: Of each, one array a MoE layer. Shapes: [T, E_l].
        """
        ...


@dataclass
class GateUse:
    """What a gate has done so far, and what it has cost; its prefills are part of `Engine.cost`, too.

    Attributes:
        rows: Prompts that it was asked about.
        flagged: Those that it flagged.
        tokens: Prompt tokens that were prefilled for it.
        again: Prompt tokens of flagged rows: any deployment prefills them twice, under the steering once more.
        seconds: Of its prefills.
    """

    rows: int = 0
    flagged: int = 0
    tokens: int = 0
    again: int = 0
    seconds: float = 0.0


class Gated:
    """An engine with a steering behind a gate: itself an `Engine`, so any job asks it.

    A `routing` that it is given acts on every row, while the gate reads as well: it belongs to whoever asks, as an
    attack on the gated model does. What goes around the gate is not offered: gradients, residual streams, the module.

    Attributes:
        use: What the gate has done and cost.
    """

    resumes = "forwards are not resumed: every score asks the gate anew"
    resumes_fully = False

    def __init__(self, engine: Engine, gate: FlagsRequests, steering: Intervention | HasIntervention) -> None:
        """Put the steering of an engine behind a gate.

        Args:
            engine: What is asked.
            gate: Flags requests.
            steering: In force for those that are flagged.

        Raises:
            UsageError: The engine shows no router logits.
            InterventionError: The engine cannot carry the steering out, it names rows, or the gate is another model's.
        """
        if not callable(getattr(engine, "trace", None)):
            raise UsageError(
                f"{engine.info.name} has no trace for a gate to read: its engine ({type(engine).__name__}) shows no "
                "router logits",
                "Steer it without a gate, or load the model with transformers, as pointsman.load does",
            )
        gate.check(engine.routers, engine.info.fingerprint)
        refuse_rows([plain(steering)])
        refuse_unable(engine, steering, "The steering behind the gate")
        self._engine, self._gate, self._steering = engine, gate, steering
        self.info, self.routers, self.cost, self.proof = engine.info, engine.routers, engine.cost, engine.proof
        self.use = GateUse()

    @property
    def weights(self) -> str:
        """See `Engine.weights`."""
        return self._engine.weights

    @property
    def settings(self) -> dict[str, str]:
        """See `Engine.settings`: the gate and what is behind it are two of them."""
        rules = json.dumps(plain(self._steering).to_json(), sort_keys=True)
        behind = hashlib.sha256(rules.encode()).hexdigest()[:16]
        return {**self._engine.settings, "gate": self._gate.identity, "behind the gate": behind}

    # -- text --------------------------------------------------------------------------------------------------

    def encode(
        self, turns: str | Sequence[str], *, answers: str | Sequence[str] = (), system: str | None = None
    ) -> Prompt:
        """See `Engine.encode`."""
        return self._engine.encode(turns, answers=answers, system=system)

    def encode_target(self, text: str) -> tuple[int, ...]:
        """See `Engine.encode_target`."""
        return self._engine.encode_target(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Engine.decode`."""
        return self._engine.decode(ids)

    @property
    def end_token(self) -> int | None:
        """See `Engine.end_token`."""
        return self._engine.end_token

    # -- asking ------------------------------------------------------------------------------------------------

    def can(self, routing: Routing) -> Ability:
        """Whether the engine can carry this routing out, alone and with the steering."""
        able = self._engine.can(routing)
        if not able:
            return able
        try:
            return self._engine.can([self._steered(one) for one in _listed(routing)])
        except InterventionError as error:
            return Ability(error.problem, error.remedy)

    def flags(self, prompts: Sequence[Prompt], *, routing: Routing = None) -> npt.NDArray[np.bool_]:
        """Which prompts the gate flags, after a prefill of each without the steering. Shape: [B].

        Raises:
            DataError: The chat template leaves no token of a last user message.
        """
        refuse_no_prompts(prompts)
        return self._flags(prompts, self._per_row(routing, len(prompts)))

    def generate(
        self, prompts: Sequence[Prompt], *, routing: Routing = None, max_new_tokens: int = 512
    ) -> list[Completion]:
        """See `Engine.generate`: flagged rows under the steering, the others without."""
        each = self._gated(prompts, routing)
        return self._engine.generate(prompts, routing=each, max_new_tokens=max_new_tokens)

    def score(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        *,
        routing: Routing = None,
        first_tokens: Sequence[int] | None = None,
    ) -> list[Score]:
        """See `Engine.score`: flagged rows under the steering, the others without."""
        each = self._gated(prompts, routing)
        return self._engine.score(prompts, targets, routing=each, first_tokens=first_tokens)

    @contextmanager
    def scorer(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        *,
        routing: Intervention | HasIntervention | None = None,
    ) -> Iterator[RouteScorer]:
        """See `Engine.scorer`. A route may turn the gate round, so every candidate is gated."""
        layers = max(router.decoder_layer for router in self.routers) + 2  # no candidate is skipped as without effect
        yield FullScorer(self.score, self.routers, layers, prompts, targets, plain(routing))

    def trace(self, prompts: Sequence[Prompt], *, routing: Routing = None) -> RouteTrace:
        """See `Engine.trace`: of flagged rows under the steering."""
        return self._engine.trace(prompts, routing=self._gated(prompts, routing))

    # -- rows --------------------------------------------------------------------------------------------------

    def _gated(self, prompts: Sequence[Prompt], routing: Routing) -> list[Intervention | HasIntervention | None]:
        """What each row is answered under. Shape: [B]."""
        refuse_no_prompts(prompts)
        each = self._per_row(routing, len(prompts))
        flags = self._flags(prompts, each)
        return [self._steered(one) if flag else one for one, flag in zip(each, flags, strict=True)]

    def _flags(
        self, prompts: Sequence[Prompt], each: Sequence[Intervention | HasIntervention | None]
    ) -> npt.NDArray[np.bool_]:
        """See `flags`. each: shape [B]."""
        before = self.cost.copy()
        read = last_message_logits(self._engine, prompts, each)
        flags = np.array([bool(self._gate.flags([logits])[0]) for logits in read], dtype=np.bool_)
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        self.use.rows += len(prompts)
        self.use.flagged += int(flags.sum())
        self.use.tokens += int(lengths.sum())
        self.use.again += int(lengths[flags].sum())
        self.use.seconds += (self.cost - before).seconds
        return flags

    def _per_row(self, routing: Routing, rows: int) -> list[Intervention | HasIntervention | None]:
        """What was given, for each row; refused here if it cannot be carried out with the steering. Shape: [B]."""
        refuse_unable(self, routing, "This routing")
        each = _listed(routing)
        if routing is None or isinstance(routing, Intervention | HasIntervention):
            return each * rows
        if len(each) != rows:
            raise InterventionError(f"{len(each)} routings for {rows} prompts", "Give one for each prompt, or one")
        return each

    def _steered(self, given: Intervention | HasIntervention | None) -> Intervention | HasIntervention:
        """The steering, on top of what was given."""
        return plain(given) + plain(self._steering) if given else self._steering


def _listed(routing: Routing) -> list[Intervention | HasIntervention | None]:
    """The same as a list, in which no rule names rows: whether a row is steered is the gate's to say.

    Raises:
        InterventionError: One does.
    """
    each: list[Intervention | HasIntervention | None]
    each = [routing] if routing is None or isinstance(routing, Intervention | HasIntervention) else list(routing)
    refuse_rows([plain(one) for one in each])
    return each
