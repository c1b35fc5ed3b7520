"""What goes into an engine and comes out of it, and the protocol that every engine meets.

What only some engines can do is in `abilities`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from pointsman.engine.channels import Channels
from pointsman.errors import InterventionError, UsageError
from pointsman.routing.given import HasIntervention
from pointsman.routing.intervention import Intervention
from pointsman.routing.proof import Proof
from pointsman.routing.routers import Router
from pointsman.routing.trace import RouteTrace

Routing = Intervention | HasIntervention | Sequence[Intervention | HasIntervention | None] | None
"""One intervention for all rows (rows that its rules name are indices of the prompts), one for each row, or none."""


def refuse_unable(engine: Engine, routing: Routing, what: str) -> None:
    """Refuse what an engine cannot carry out, before anything is asked of it.

    Args:
        what: What the routing is, as a sentence may begin.

    Raises:
        InterventionError: It cannot.
    """
    able = engine.can(routing)
    if not able:
        raise InterventionError(
            f"{what} cannot be carried out by the engine of {engine.info.name}: {able.why_not}", able.remedy
        )


def refuse_rows(routing: Sequence[Intervention | HasIntervention | None]) -> None:
    """Refuse rules that name rows, where every prompt has its own routing or all are routed alike."""
    for each in {id(i): i for i in routing if isinstance(i, Intervention)}.values():
        if any(rule.where.rows is not None for rule in each.rules):
            raise InterventionError(
                "A rule that names rows has no meaning here: every prompt has its own routing, or all have the same",
                "Leave rows out of it",
            )


TokenRole = Literal["template", "system", "history", "content", "last"]
"""What a prompt token is: chat-template scaffolding, the system prompt, earlier turns, the last user message, or
the very last prompt token."""


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt, without padding.

    Attributes:
        ids: Token ids. Shape: [T].
        tokens: The tokens as text, for display. Shape: [T].
        roles: What each token is. Shape: [T].
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    roles: tuple[TokenRole, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def continued(self, answer: tuple[int, ...]) -> Prompt:
        """With the beginning of its answer, as if the template had written it. Shape: [A]."""
        template: tuple[TokenRole, ...] = ("template",)
        return Prompt(self.ids + answer, self.tokens + ("",) * len(answer), self.roles + template * len(answer))


def refuse_no_prompts(prompts: Sequence[Prompt]) -> None:
    """Refuse texts, or one prompt alone, where prompts are wanted."""
    remedy = "Give a list of prompts made by engine.encode: [engine.encode(text) for text in texts]"
    if isinstance(prompts, Prompt):
        raise UsageError("A prompt stands where a list of prompts is wanted", remedy)
    for each in prompts:
        if not isinstance(each, Prompt):
            raise UsageError(f"A prompt is {type(each).__name__}, not tokens", remedy)


@dataclass(frozen=True)
class Completion:
    """One generated answer.

    Attributes:
        text: Decoded, special tokens removed but for marks of thoughts and channels. Untrusted: escape it before you
            show it.
        ids: Generated token ids, without what follows the end token. Shape: [<= max_new_tokens].
        finished: False if the answer hit the token limit.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class Score:
    """Log-probabilities of one continuation, in nats.

    Attributes:
        tokens: log p of each target token given the prompt and the target before it. Shape: [target length], without
            the opening of an answer.
        first: log of the probability that the first answer token is affirmative (METHODS section 1): one of
            `first_tokens`, or the target's first token if none were given.
        greedy: Whether no token is more probable than the target's, wherever one is predicted; None of an engine that
            does not say.
    """

    tokens: tuple[float, ...]
    first: float
    greedy: bool | None = None

    @property
    def total(self) -> float:
        """log p(target | prompt), the sum over its tokens."""
        return float(sum(self.tokens))


@dataclass
class Cost:
    """What an engine has computed so far: forwards, rows x tokens, rows x tokens x decoder layers, seconds."""

    forwards: int = 0
    tokens: int = 0
    token_layers: int = 0
    seconds: float = 0.0

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards - other.forwards,
            self.tokens - other.tokens,
            self.token_layers - other.token_layers,
            self.seconds - other.seconds,
        )

    def copy(self) -> Cost:
        return replace(self)


@dataclass(frozen=True)
class Ability:
    """Whether an engine can carry something out. True if it can: ``if not (able := engine.can(routing)): ...``.

    Attributes:
        why_not: Why it cannot, in one sentence without its full stop; empty if it can.
        remedy: What to do about it.
    """

    why_not: str = ""
    remedy: str = ""

    def __bool__(self) -> bool:
        return not self.why_not


@dataclass(frozen=True)
class EngineInfo:
    """Facts about the loaded model, for provenance.

    Attributes:
        channels: Which part of what it writes is its answer.
        opening: Tokens that stand before every answer, such as the header of the final channel: `Engine.encode_target`
            begins with them, and `Engine.score` counts the tokens behind them. Empty for most models.
    """

    name: str
    path: str
    architecture: str
    parameters: int
    dtype: str
    device: str
    context: int
    fingerprint: str
    revision: str | None = None
    channels: Channels = field(default_factory=Channels)
    opening: tuple[int, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


TIE = 1e-9
"""Nats within which two log-probabilities count as equal (METHODS section 3): rounding orders them as it likes."""


def best_candidate(totals: Sequence[float] | np.ndarray, known: float) -> int | None:
    """The candidate to keep, in their order: one takes the place of another only if it beats it by more than a tie.

    What is kept lies within a tie of the best. Whoever compares two ways of computing the same route asks here, so that
    rounding, which differs between batches and processors, does not decide between equal candidates.

    Args:
        totals: log p(target) of each candidate, in nats. Shape: [N].
        known: What it must beat.

    Returns:
        Its number, or None if no candidate beats what is known.
    """
    best, level = None, known
    for number, total in enumerate(totals):
        if total > level + TIE:
            best, level = number, float(total)
    return best


class RouteScorer(Protocol):
    """log p(target) of some prompts under routes that grow pair by pair (METHODS section 3).

    Attributes:
        totals: log p(target) of each prompt under what was accepted so far, in nats. Shape: [prompts], float64.
    """

    totals: np.ndarray

    def tries(self, layer: int, token: int, sets: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """log p(target) with each candidate set forced at (layer, token) beside what was accepted.

        Layers and tokens come in the order of the search: tokens ascending, layers ascending within a token.

        Args:
            layer: MoE layer.
            token: Prompt token.
            sets: Candidates of each prompt that is still searched. Shapes: [N, top_k].

        Returns:
            For each of these prompts, in nats. Shapes: [N], float64.
        """
        ...

    def accept(self, winners: Mapping[int, int]) -> None:
        """Keep the `best_candidate` of the last `tries` for each of these prompts."""
        ...


@dataclass(frozen=True)
class GradientMemory:
    """What route gradients need at their peak, on top of the model.

    Attributes:
        needed: Bytes, about.
        free: Bytes that were free when this was foretold; None if nobody says.
        rows: Rows of a forward with its backward.
        by_layer: Whether not even one row fits as a whole, so that one decoder layer after the other is held.
    """

    needed: int
    free: int | None
    rows: int
    by_layer: bool


class Engine(Protocol):
    """A loaded model that accepts ``routing``. The result never depends on batch size, padding or co-batched rows.

    A routing that the engine cannot carry out (`can`) is refused whole, with an `InterventionError`, before anything is
    computed under any part of it.

    Attributes:
        info: Facts about the model.
        routers: In depth order.
        cost: What was computed so far.
        proof: What was seen when control was tried on this very model.
        resumes: From where forwards can be resumed, in words.
        resumes_fully: Whether from any layer and token; else route searches take longer and find the same.
    """

    info: EngineInfo
    routers: tuple[Router, ...]
    cost: Cost
    proof: Proof
    resumes: str
    resumes_fully: bool

    @property
    def weights(self) -> str:
        """Which checkpoint it is, all of it (`weights_hash`)."""
        ...

    @property
    def settings(self) -> dict[str, str]:
        """Hashes of what decides what it says besides its weights, by the name of each part."""
        ...

    def encode(
        self, turns: str | Sequence[str], *, answers: str | Sequence[str] = (), system: str | None = None
    ) -> Prompt:
        """Apply the chat template: user turns, with the model's `answers` between them (one fewer than turns).

        A single text is one turn.
        """
        ...

    def encode_target(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer prefix as the model would continue the prompt with it.

        They begin with `EngineInfo.opening`, which an answer begins with.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of answer tokens, special ones left out but for marks of thoughts and channels (`reasoning`)."""
        ...

    @property
    def end_token(self) -> int | None:
        """The token that ends an answer, if the model has one."""
        ...

    def can(self, routing: Routing) -> Ability:
        """Whether the engine can carry this routing out; asks nothing of the model."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], *, routing: Routing = None, max_new_tokens: int = 512
    ) -> list[Completion]:
        """Greedy decoding of every prompt under its routing."""
        ...

    def score(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        *,
        routing: Routing = None,
        first_tokens: Sequence[int] | None = None,
    ) -> list[Score]:
        """Log-probabilities of `targets` after `prompts` under their routing. Target tokens are decode phase.

        Tokens of `EngineInfo.opening` at the beginning of a target are given, not scored.
        """
        ...

    def scorer(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        *,
        routing: Intervention | HasIntervention | None = None,
    ) -> AbstractContextManager[RouteScorer]:
        """Score routes that grow pair by pair, on top of `routing`; the engine answers nothing else meanwhile."""
        ...

    def trace(self, prompts: Sequence[Prompt], *, routing: Routing = None) -> RouteTrace:
        """Raw router logits and realised experts of every prompt token. Rows are indices into `prompts`."""
        ...
