"""The loops as published: plain forwards of one row, one after the other, on the same engine, under the same control.

Nothing is known from before, batched, cached or resumed; only the candidate streams are those of the fast methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine, Prompt, best_candidate
from pointsman.methods.fsour import FSour
from pointsman.methods.rosais import RoSais
from pointsman.methods.routes import Step
from pointsman.routing.intervention import Intervention

Route = dict[tuple[int, int], Sequence[int]]  # (layer, token) -> experts


@dataclass(frozen=True)
class Asked:
    """One behaviour as one row. Counts nothing, knows nothing."""

    engine: Engine
    prompt: Prompt
    target: tuple[int, ...]

    @staticmethod
    def of(engine: Engine, behaviour: Behaviour, target: str) -> Asked:
        return Asked(engine, engine.encode(behaviour.turns), engine.encode_target(target))

    def log_p(self, route: Route) -> float:
        """log p(target) under a route, in nats: one forward of one row."""
        routing = Intervention.force(route, phase="prefill") if route else None
        return self.engine.score([self.prompt], [self.target], routing=[routing])[0].total


def fsour_pair(
    asked: Asked, method: FSour, behaviour: Behaviour, route: Route, layer: int, token: int, restart: int = 0
) -> tuple[list[int], float] | None:
    """N + 1 forwards: the set accepted at (layer, token) beside `route` and its log p(target), or None."""
    best = asked.log_p(route)
    sets = method.candidate_sets(asked.engine, behaviour, restart, layer, token).tolist()
    totals = [asked.log_p({**route, (layer, token): experts}) for experts in sets]
    winner = best_candidate(totals, best)
    if winner is None or totals[winner] <= best + method.min_gain:
        return None
    return sets[winner], totals[winner]


def fsour(engine: Engine, method: FSour, behaviour: Behaviour, restart: int = 0) -> list[Step]:
    """The search of METHODS section 3 over a whole prompt; it never stops early (log_tau is taken as 0)."""
    asked = Asked.of(engine, behaviour, method.aimed(behaviour, restart))
    route: Route = {}
    steps: list[Step] = []
    for token in range(len(asked.prompt)):
        for layer in range(len(engine.routers)):
            found = fsour_pair(asked, method, behaviour, route, layer, token, restart)
            if found:
                experts, total = found
                route[layer, token] = experts
                steps.append(Step(layer, token, tuple(experts), total))
    return steps


def route_before(steps: Iterable[Step], layer: int, token: int) -> Route:
    """What a search had accepted when it came to (layer, token)."""
    return {(s.layer, s.position): s.experts for s in steps if (s.position, s.layer) < (token, layer)}


def rosais(engine: Engine, method: RoSais, behaviour: Behaviour) -> np.ndarray:
    """RoSais(l; q) of the first token, METHODS section 1: 1 + L * S forwards. Shape: [L]."""
    prompt, target = engine.encode(behaviour.turns), engine.encode_target(behaviour.target)[:1]

    def p(routing: Intervention | None) -> float:
        return math.exp(engine.score([prompt], [target], routing=[routing])[0].first)

    base = p(None)
    scores = []
    for router in engine.routers:
        masks = method.masks(behaviour, router).tolist()
        found = [p(Intervention.force(experts, layers=router.layer, phase="prefill")) for experts in masks]
        scores.append(max(found) - base)
    return np.array(scores)
