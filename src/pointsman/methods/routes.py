"""What searches of unsafe routes find, whatever searches; and the course that every such search takes.

A search tries restarts until the judge calls what the model says under the route a success. Behaviours are searched in
groups, and every restart of a group is a unit that is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt, ask
from pointsman.methods.steps import Steps
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
    """One restart of a search for one behaviour, and what the model said under the route found.

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
        return as_route(self.steps, phase)


@dataclass(frozen=True)
class RouteResult:
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


class Found(NamedTuple):
    """The route of one behaviour, before the model is asked under it.

    Attributes:
        before: log p(target) without it, in nats.
        steps: Its pairs.
        rows: What it cost, in forwards of one row.
    """

    before: float
    steps: tuple[Step, ...]
    rows: float


@dataclass(frozen=True)
class Course:
    """How searches are run, judged and remembered.

    Attributes:
        name: Of the method; keys of remembered units begin with it.
        find: Routes for some behaviours at one restart.
        target: The target that a restart aims at.
        restarts: The most that are run for a behaviour.
        together: Behaviours in a group.
        phase: Of the routes while the model answers.
        max_new_tokens: Length of the answer.
    """

    name: str
    find: Callable[[Engine, Sequence[Behaviour], int], list[Found]]
    target: Callable[[Behaviour, int], str]
    restarts: Callable[[Behaviour], int]
    together: int
    phase: Phase
    max_new_tokens: int

    def run(self, engine: Engine, behaviours: Sequence[Behaviour], judge: Judge, steps: Steps) -> list[RouteResult]:
        """Search a route for every behaviour."""
        results: list[RouteResult] = []
        for start in range(0, len(behaviours), self.together):
            group = behaviours[start : start + self.together]
            results += self._group(engine, group, judge, f"{self.name}/{start}", steps)
        return results

    def _group(
        self, engine: Engine, group: Sequence[Behaviour], judge: Judge, key: str, steps: Steps
    ) -> list[RouteResult]:
        """All restarts of a few behaviours; those that the judge calls a success drop out."""

        def plain() -> dict[str, Any]:
            attempts = ask(engine, group, judge, max_new_tokens=self.max_new_tokens)
            return {"attempts": [a.to_json() for a in attempts]}

        base = steps.unit(f"{key}/base", engine, plain, 0)["attempts"]
        searches: dict[str, list[Search]] = {b.id: [] for b in group}
        pending = list(group)
        for restart in range(max(map(self.restarts, group))):

            def one(asked: Sequence[Behaviour] = tuple(pending), r: int = restart) -> dict[str, Any]:
                return self._restart(engine, asked, judge, r)

            unit = steps.unit(f"{key}/{restart}", engine, one, 0)
            for data in unit["searches"]:
                searches[data["attempt"]["id"]].append(_search_from_json(data))
            failed = [b for b in pending if not searches[b.id][-1].attempt.verdict.success]
            again = [b for b in failed if restart + 1 < self.restarts(b)]
            steps.advance(len(pending) - len(again))
            pending = again
            if not pending:
                break
        return [
            RouteResult(b.id, b.category, b.row_cluster, Attempt.from_json(plain_), tuple(searches[b.id]))
            for b, plain_ in zip(group, base, strict=True)
        ]

    def _restart(self, engine: Engine, behaviours: Sequence[Behaviour], judge: Judge, restart: int) -> dict[str, Any]:
        began = engine.cost.copy()
        found = self.find(engine, behaviours, restart)
        routes = [as_route(each.steps, self.phase) for each in found]
        attempts = ask(engine, behaviours, judge, routing=routes, max_new_tokens=self.max_new_tokens)
        spent = engine.cost - began
        targets = [engine.encode_target(self.target(b, restart)) for b in behaviours]
        lengths = [len(engine.encode(b.turns)) + len(t) - 1 for b, t in zip(behaviours, targets, strict=True)]
        rows_in_all = sum(each.rows for each in found)
        return {
            "searches": [
                {
                    "restart": restart,
                    "before": each.before,
                    "steps": [[s.layer, s.position, list(s.experts), s.log_prob] for s in each.steps],
                    "attempt": attempt.to_json(),
                    "cost": {
                        "rows": each.rows,
                        "tokens": each.rows * length,
                        "seconds": spent.seconds * each.rows / rows_in_all,
                    },
                }
                for each, attempt, length in zip(found, attempts, lengths, strict=True)
            ]
        }


def as_route(steps: Sequence[Step], phase: Phase) -> Intervention:
    """Accepted pairs as an intervention; empty if there are none."""
    if not steps:
        return Intervention()
    return Intervention.force({(s.layer, s.position): s.experts for s in steps}, phase=phase)


def _search_from_json(data: dict[str, Any]) -> Search:
    steps = tuple(Step(layer, position, tuple(e), p) for layer, position, e, p in data["steps"])
    after = steps[-1].log_prob if steps else float(data["before"])
    attempt = Attempt.from_json(data["attempt"])
    return Search(data["restart"], data["before"], steps, after, attempt, data["cost"])
