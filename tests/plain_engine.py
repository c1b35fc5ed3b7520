"""`PlainEngine`: an `Engine` that shares nothing with the transformers engine but the protocol.

Its model is a bag of tokens in numpy: every token is routed to experts in every layer, and what the chosen experts say
is summed. It forces and masks experts, and can do nothing else: no bias, pin or noise, no gradients, no residual
streams, no resumed forwards, no module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from pointsman.engine.scorer import FullScorer
from pointsman.engine.types import (
    Ability,
    Completion,
    Cost,
    EngineInfo,
    Prompt,
    RouteScorer,
    Routing,
    Score,
    TokenRole,
)
from pointsman.errors import InterventionError
from pointsman.routing.given import HasIntervention, plain
from pointsman.routing.intervention import Intervention
from pointsman.routing.paths import Paths
from pointsman.routing.proof import Proof
from pointsman.routing.routers import Router
from pointsman.routing.trace import LayerTrace, RouteTrace

LAYERS, EXPERTS, TOP_K, WIDTH = 3, 6, 2, 8
WORDS = ("<end>", "Sure", "sorry", "take", "the", "rope", "and", "here", "is", "how", "no", "go")
KNOWN = frozenset({"mask", "force"})


class PlainEngine:
    """See the module."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.routers = tuple(Router(n, n, f"layer {n}", EXPERTS, TOP_K) for n in range(LAYERS))
        self.cost = Cost()
        self.proof = Proof("plain-1", LAYERS, True, 0, 1.0, Paths(0.0, 0.0, 0.0, 0))
        self.info = EngineInfo("plain", "plain", "BagOfTokens", 1000, "float64", "cpu", 512, "plain-1")
        self.resumes, self.resumes_fully = "forwards are not resumed, every score takes a full one (plain)", False
        self.weights = "weights-of-plain"
        self.settings = {"rules": "plain"}
        self.generated = 0
        self._routers = rng.normal(size=(LAYERS, WIDTH, EXPERTS))
        self._experts = rng.normal(size=(LAYERS, EXPERTS, WIDTH, len(WORDS)))

    # -- text ----------------------------------------------------------------------------------------------------

    def encode(
        self, turns: str | Sequence[str], *, answers: str | Sequence[str] = (), system: str | None = None
    ) -> Prompt:
        turns = [turns] if isinstance(turns, str) else list(turns)
        answers = [answers] if isinstance(answers, str) else list(answers)
        said = [text for pair in zip(turns, [*answers, ""], strict=True) for text in pair]
        tokens = (*" ".join(([system] if system else []) + said).split(), "answer:")
        roles: list[TokenRole] = ["content"] * len(tokens)
        return Prompt(tuple(_number(token) for token in tokens), tokens, (*roles[:-1], "last"))

    def encode_target(self, text: str) -> tuple[int, ...]:
        return tuple(WORDS.index(word) if word in WORDS else 1 + _number(word) % 11 for word in text.split())

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(WORDS[i] for i in ids)

    @property
    def end_token(self) -> int | None:
        return 0

    # -- asking --------------------------------------------------------------------------------------------------

    def can(self, routing: Routing) -> Ability:
        rules = plain(routing)
        each = [rules] if rules is None or isinstance(rules, Intervention) else rules
        for intervention in each:
            if intervention is None:
                continue
            try:
                intervention.check(self.routers, self.info.fingerprint)
            except InterventionError as error:
                return Ability(error.problem, error.remedy)
            other = sorted({rule.kind for rule in intervention.rules} - KNOWN)
            if other:
                return Ability(f"it knows no {other[0]}", "Use masks and forced sets")
        return Ability()

    def generate(
        self, prompts: Sequence[Prompt], *, routing: Routing = None, max_new_tokens: int = 512
    ) -> list[Completion]:
        each = self._per_row(routing, len(prompts))
        self.generated += len(prompts)
        found = []
        for prompt, rule in zip(prompts, each, strict=True):
            ids: list[int] = []
            finished = False
            while len(ids) < max_new_tokens and not finished:
                token = int(self._logits(prompt, ids, rule)[-1].argmax())
                finished = token == 0
                ids += [] if finished else [token]
            found.append(Completion(self.decode(ids), tuple(ids), finished))
        return found

    def score(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        *,
        routing: Routing = None,
        first_tokens: Sequence[int] | None = None,
    ) -> list[Score]:
        found = []
        for prompt, target, rule in zip(prompts, targets, self._per_row(routing, len(prompts)), strict=True):
            logits = self._logits(prompt, target[:-1], rule)[-len(target) :]  # shape: [A, V]
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            firsts = list(first_tokens) if first_tokens is not None else [target[0]]
            tokens = tuple(float(log_p[n, token]) for n, token in enumerate(target))
            found.append(Score(tokens, float(np.log(np.exp(log_p[0, firsts]).sum()))))
        return found

    @contextmanager
    def scorer(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        *,
        routing: Intervention | HasIntervention | None = None,
    ) -> Iterator[RouteScorer]:
        yield FullScorer(self.score, self.routers, LAYERS, prompts, targets, plain(routing))

    def trace(self, prompts: Sequence[Prompt], *, routing: Routing = None) -> RouteTrace:
        each = self._per_row(routing, len(prompts))
        layers = []
        for layer in range(LAYERS):
            parts = [self._routed(layer, p.ids, len(p), rule) for p, rule in zip(prompts, each, strict=True)]
            lengths = [len(p) for p in prompts]
            layers.append(
                LayerTrace(
                    np.repeat(np.arange(len(prompts)), lengths).astype(np.int32),
                    np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
                    np.zeros(sum(lengths), dtype=bool),
                    np.concatenate([raw for raw, _ in parts]).astype(np.float32),
                    np.concatenate([chosen for _, chosen in parts]).astype(np.int32),
                )
            )
        return RouteTrace(tuple(layers))

    # -- the model -----------------------------------------------------------------------------------------------

    def _per_row(self, routing: Routing, rows: int) -> list[Intervention | None]:
        able = self.can(routing)
        if not able:
            raise InterventionError(able.why_not, able.remedy)
        rules = plain(routing)
        return [rules] * rows if rules is None or isinstance(rules, Intervention) else rules

    def _logits(self, prompt: Prompt, said: Sequence[int], rule: Intervention | None) -> np.ndarray:
        """At the last prompt token and all that was said. Shape: [1 + said, V]."""
        ids = (*prompt.ids, *said)
        self.cost.forwards += 1
        self.cost.tokens += len(ids)
        self.cost.token_layers += len(ids) * LAYERS
        self.cost.seconds += 1e-4
        vectors = _vectors(ids)  # shape: [T, d]
        told = np.zeros((len(ids), len(WORDS)))
        for layer in range(LAYERS):
            _, chosen = self._routed(layer, ids, len(prompt), rule)
            told += np.einsum("td,tkdv->tv", vectors, self._experts[layer][chosen])
        running = told.cumsum(0) / np.sqrt(np.arange(1, len(ids) + 1))[:, None] / LAYERS
        return np.asarray(running[len(prompt) - 1 :])

    def _routed(
        self, layer: int, ids: Sequence[int], prompt: int, routing: Intervention | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raw logits, and the experts that are used. Shapes: [T, E], [T, k]."""
        raw = _vectors(ids) @ self._routers[layer]
        edited = raw.copy()
        for rule in routing.rules if routing else ():
            for selection in rule.selections:
                for token in range(len(ids)):
                    phase = "prefill" if token < prompt else "decode"
                    here = rule.where.phase in (phase, "both") and token in (
                        [selection.position] if selection.position is not None else rule.where.positions or [token]
                    )
                    if selection.layer == layer and here:
                        closed = np.setdiff1d(np.arange(EXPERTS), selection.experts)
                        edited[token, closed] = -np.inf
        return raw, np.argsort(-edited, axis=1, kind="stable")[:, :TOP_K]


def _number(word: str) -> int:
    return 100 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")


@cache
def _vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=WIDTH)


def _vectors(ids: Sequence[int]) -> np.ndarray:
    """What each token is. Shape: [T, d]."""
    return np.stack([_vector(i) for i in ids])
