"""F-SOUR: fine-grained token-layer-wise stochastic optimisation of unsafe routes.

METHODS section 3; Jiang et al., arXiv 2602.08621, section 5. Token by token and layer by layer, N random sets of
experts are tried; the best is forced if it raises the log-probability of an affirmative answer. The route is in force
during prefill while the model answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine, best_candidate
from pointsman.errors import UsageError
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt, ask
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Intervention, Phase


@dataclass(frozen=True)
class Step:
    """One accepted pair of a route.

    Attributes:
        layer: MoE layer.
        position: Prompt token.
        experts: The forced set.
        log_prob: log p(target) with the route up to and including this pair, in nats.
    """

    layer: int
    position: int
    experts: tuple[int, ...]
    log_prob: float


@dataclass(frozen=True)
class Search:
    """One restart of the search for one behaviour, and what the model said under the route found.

    Attributes:
        restart: 0 .. R - 1.
        before: log p(target) without a route.
        steps: Accepted pairs in the order of acceptance.
        after: log p(target) with the whole route.
        attempt: The answer under the route, judged.
        cost: Rows scored, their tokens, and this behaviour's share of the seconds.
    """

    restart: int
    before: float
    steps: tuple[Step, ...]
    after: float
    attempt: Attempt
    cost: dict[str, float]

    def route(self, phase: Phase = "prefill") -> Intervention:
        """The route as an intervention; empty if no pair was accepted."""
        return _route(self.steps, phase)


@dataclass(frozen=True)
class FSourResult:
    """All restarts of one behaviour.

    Attributes:
        id, category, source: From the behaviour.
        base: The answer without any route. A success there counts as base success, apart from the route's.
        searches: The restarts that were run, until the first success.
    """

    id: str
    category: str
    source: str
    base: Attempt
    searches: tuple[Search, ...]

    @property
    def best(self) -> Search:
        """The first success, else the restart of the highest judge score, then any compliance, then log p."""
        return max(
            self.searches,
            key=lambda s: (s.attempt.verdict.score or 0.0, s.attempt.verdict.any_compliance, s.after),
        )


@dataclass(frozen=True)
class FSour:
    """Search unsafe routes.

    Attributes:
        candidates: Sets tried at each (token, layer) (N). The paper's text says 10, its runs use 100.
        restarts: Searches with fresh candidates, until the judge says success (R).
        log_tau: Stop the search once log p(target) reaches this, in nats.
        min_gain: Accept a set only if it raises log p(target) by more than this, in nats. 1e-9 breaks ties; larger
            values give sparser routes.
        phase: When the route is in force while the model answers: ``prefill``. A route names prompt tokens only, so
            ``both`` is the same, and ``decode``, in which nothing would be forced, is refused.
        max_new_tokens: Length of the answer.
        cycle_targets: Restart r aims at the r-th of a behaviour's targets in turn, instead of always at the first.
        together: Behaviours searched side by side, their candidates in one forward; None for as many as make about
            320 rows, at most 16. Changes no route; fills a machine that the N rows of one behaviour leave idle. A
            killed run repeats at most one restart of one such group.
        seed: Seed of the candidate stream, a pure function of (seed, behaviour id, restart, layer, token).
    """

    candidates: int = 10
    restarts: int = 5
    log_tau: float = math.log(0.8)
    min_gain: float = 1e-9
    phase: Phase = "prefill"
    max_new_tokens: int = 512
    cycle_targets: bool = False
    together: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.together is not None and self.together < 1:
            raise UsageError(f"F-SOUR cannot search {self.together} behaviours together", "Use at least 1")
        if self.candidates < 1 or self.restarts < 1:
            raise UsageError(
                f"F-SOUR with {self.candidates} candidates and {self.restarts} restarts searches nothing",
                "Use at least 1 of each; the defaults are 10 and 5",
            )
        if self.log_tau > 0 or self.min_gain < 0:
            raise UsageError("F-SOUR's log_tau must be <= 0 and its min_gain >= 0", "Leave them out for the defaults")
        if self.phase == "decode":
            raise UsageError("A route of F-SOUR forces prompt tokens: in decode it does nothing", "Use phase prefill")

    def search(
        self, engine: Engine, behaviours: Sequence[Behaviour], judge: Judge, *, steps: Steps | None = None
    ) -> list[FSourResult]:
        """Search an unsafe route for every behaviour; every restart of a group is a unit that is remembered."""
        steps = steps or Steps()
        results: list[FSourResult] = []
        size = group_size(self.together, self.candidates)
        for start in range(0, len(behaviours), size):
            group = behaviours[start : start + size]
            results += self._group(engine, group, judge, f"fsour/{start}", steps)
        return results

    def candidate_sets(self, engine: Engine, behaviour: Behaviour, restart: int, layer: int, token: int) -> np.ndarray:
        """The candidate stream at one (layer, token). Shape: [N, top_k]."""
        rng = stream(self.seed, "fsour", behaviour.id, restart, layer, token)
        return engine.routers[layer].draw(rng, self.candidates)

    def aimed(self, behaviour: Behaviour, restart: int) -> str:
        """The target that a restart aims at."""
        targets = (behaviour.target, *behaviour.targets) if self.cycle_targets else (behaviour.target,)
        return targets[restart % len(targets)]

    def find_routes(
        self, engine: Engine, behaviours: Sequence[Behaviour], restart: int
    ) -> list[tuple[float, list[Step], int]]:
        """One pass over all tokens and layers for every behaviour, their candidates side by side in each forward.

        Returns:
            For each behaviour log p(target) without a route, the accepted pairs, and how many routings were scored.
        """
        prompts = [engine.encode(b.turns) for b in behaviours]
        targets = [engine.encode_target(self.aimed(b, restart)) for b in behaviours]
        accepted: list[list[Step]] = [[] for _ in behaviours]
        scored = [1] * len(behaviours)
        with engine.scorer(prompts, targets) as scorer:
            before = scorer.totals.tolist()
            for token in range(max(map(len, prompts))):
                for layer in range(len(engine.routers)):
                    searched = [
                        n for n, prompt in enumerate(prompts) if token < len(prompt) and scorer.totals[n] < self.log_tau
                    ]
                    if not searched:
                        break
                    sets = {n: self.candidate_sets(engine, behaviours[n], restart, layer, token) for n in searched}
                    winners: dict[int, int] = {}
                    for n, totals in scorer.tries(layer, token, sets).items():
                        scored[n] += len(totals)
                        winner = best_candidate(totals, scorer.totals[n])
                        if winner is not None and totals[winner] > scorer.totals[n] + self.min_gain:
                            winners[n] = winner
                            experts = tuple(sets[n][winner].tolist())
                            accepted[n].append(Step(layer, token, experts, float(totals[winner])))
                    scorer.accept(winners)
        return list(zip(before, accepted, scored, strict=True))

    def _group(
        self, engine: Engine, group: Sequence[Behaviour], judge: Judge, key: str, steps: Steps
    ) -> list[FSourResult]:
        """All restarts of a few behaviours; those that the judge calls a success drop out."""

        def plain() -> dict[str, Any]:
            attempts = ask(engine, group, judge, max_new_tokens=self.max_new_tokens)
            return {"attempts": [a.to_json() for a in attempts]}

        base = steps.unit(f"{key}/base", engine, plain, 0)["attempts"]
        searches: dict[str, list[Search]] = {b.id: [] for b in group}
        pending = list(group)
        for restart in range(self.restarts):

            def one(asked: Sequence[Behaviour] = tuple(pending), r: int = restart) -> dict[str, Any]:
                return self._restart(engine, asked, judge, r)

            unit = steps.unit(f"{key}/{restart}", engine, one, 0)
            for data in unit["searches"]:
                searches[data["attempt"]["id"]].append(_search_from_json(data))
            failed = [b for b in pending if not searches[b.id][-1].attempt.verdict.success]
            steps.advance(len(pending) - (len(failed) if restart + 1 < self.restarts else 0))
            pending = failed
            if not pending:
                break
        return [
            FSourResult(b.id, b.category, b.row_cluster, Attempt.from_json(plain_), tuple(searches[b.id]))
            for b, plain_ in zip(group, base, strict=True)
        ]

    def _restart(self, engine: Engine, behaviours: Sequence[Behaviour], judge: Judge, restart: int) -> dict[str, Any]:
        began = engine.cost.copy()
        found = self.find_routes(engine, behaviours, restart)
        routes = [_route(accepted, self.phase) for _, accepted, _ in found]
        attempts = ask(engine, behaviours, judge, routing=routes, max_new_tokens=self.max_new_tokens)
        spent = engine.cost - began
        targets = [engine.encode_target(self.aimed(b, restart)) for b in behaviours]
        lengths = [len(engine.encode(b.turns)) + len(t) - 1 for b, t in zip(behaviours, targets, strict=True)]
        rows_in_all = sum(rows for _, _, rows in found)
        return {
            "searches": [
                {
                    "restart": restart,
                    "before": before,
                    "steps": [[s.layer, s.position, list(s.experts), s.log_prob] for s in accepted],
                    "attempt": attempt.to_json(),
                    "cost": {"rows": rows, "tokens": rows * length, "seconds": spent.seconds * rows / rows_in_all},
                }
                for (before, accepted, rows), attempt, length in zip(found, attempts, lengths, strict=True)
            ]
        }


def group_size(together: int | None, candidates: int) -> int:
    """How many behaviours are searched side by side."""
    return together or min(max(320 // candidates, 1), 16)


def _route(steps: Sequence[Step], phase: Phase) -> Intervention:
    """Accepted pairs as an intervention; empty if there are none."""
    if not steps:
        return Intervention()
    return Intervention.force({(s.layer, s.position): s.experts for s in steps}, phase=phase)


def _search_from_json(data: dict[str, Any]) -> Search:
    steps = tuple(Step(layer, position, tuple(e), p) for layer, position, e, p in data["steps"])
    after = steps[-1].log_prob if steps else float(data["before"])
    attempt = Attempt.from_json(data["attempt"])
    return Search(data["restart"], data["before"], steps, after, attempt, data["cost"])
