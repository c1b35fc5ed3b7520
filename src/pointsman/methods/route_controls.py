"""What a found route owes to its experts: controls of F-SOUR, and its transfer. METHODS section 3.

*Random* routes force as many random sets at the same pairs, judged as often as the search may be. The *natural* route
forces the experts that the untouched model uses at these pairs, so that only the renormalisation of their weights is
left. The *transfer* replays the template part of a route on other prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine, Prompt
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt, ask
from pointsman.methods.routes import RouteResult, Step
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Intervention, Phase


@dataclass(frozen=True)
class RandomRoutes:
    """Best of R random routes.

    Attributes:
        restarts: Draws for each behaviour: as many as the search may have (R).
        phase: When a route is in force; as the search.
        max_new_tokens: Length of an answer.
        seed: Seed of the sets, a pure function of (seed, behaviour id, draw).
    """

    restarts: int = 5
    phase: Phase = "prefill"
    max_new_tokens: int = 512
    seed: int = 0

    def ask(
        self,
        engine: Engine,
        behaviours: Sequence[Behaviour],
        judge: Judge,
        found: Sequence[RouteResult],
        *,
        steps: Steps | None = None,
    ) -> list[tuple[Attempt, ...]]:
        """As many answers as the search may have restarts, each under a fresh random route.

        No draw is left out after a success: the control is never judged less often than the search.

        Args:
            found: What the search found for each behaviour; its best route gives the pairs. Shape: [behaviours].

        Returns:
            The draws of each behaviour. Shape: [behaviours][restarts].
        """
        steps = steps or Steps()
        draws: list[list[Attempt]] = []
        for draw in range(self.restarts):

            def compute(rows: Sequence[int], draw: int = draw) -> dict[str, Any]:
                asked = [behaviours[n] for n in rows]
                routing = [self.route(engine, behaviours[n], found[n].best.steps, draw) for n in rows]
                answers = ask(engine, asked, judge, routing=routing, max_new_tokens=self.max_new_tokens)
                return {"attempts": [a.to_json() for a in answers]}

            units = steps.units(f"random-routes/every/{draw}", engine, range(len(behaviours)), compute)
            draws.append([Attempt.from_json(a) for unit in units for a in unit["attempts"]])
        return list(zip(*draws, strict=True))

    def route(self, engine: Engine, behaviour: Behaviour, pairs: Sequence[Step], draw: int) -> Intervention:
        """A random set at every pair of a route; empty if it has none."""
        rng = stream(self.seed, "random route", behaviour.id, draw)
        return _forced({(p.layer, p.position): engine.routers[p.layer].draw(rng, 1)[0] for p in pairs}, self.phase)


@dataclass(frozen=True)
class NaturalRoutes:
    """The model's own experts, forced.

    Attributes:
        phase, max_new_tokens: As in `RandomRoutes`.
    """

    phase: Phase = "prefill"
    max_new_tokens: int = 512

    def ask(
        self,
        engine: Engine,
        behaviours: Sequence[Behaviour],
        judge: Judge,
        found: Sequence[RouteResult],
        *,
        steps: Steps | None = None,
    ) -> list[Attempt]:
        """One answer for each behaviour, with its natural experts forced at the pairs of the best route found."""
        steps = steps or Steps()

        def compute(rows: Sequence[int]) -> dict[str, Any]:
            asked = [behaviours[n] for n in rows]
            routing = self.routes(engine, asked, [found[n].best.steps for n in rows])
            answers = ask(engine, asked, judge, routing=routing, max_new_tokens=self.max_new_tokens)
            return {"attempts": [a.to_json() for a in answers]}

        units = steps.units("natural-routes", engine, range(len(behaviours)), compute)
        return [Attempt.from_json(a) for unit in units for a in unit["attempts"]]

    def routes(
        self, engine: Engine, behaviours: Sequence[Behaviour], pairs: Sequence[Sequence[Step]]
    ) -> list[Intervention]:
        """For each behaviour the experts that the untouched model uses at its pairs; empty if it has none."""
        trace = engine.trace([engine.encode(b.turns) for b in behaviours])
        routes = []
        for row, steps in enumerate(pairs):
            used = {layer: trace[layer].select(row=row, decode=False).experts for layer in {s.layer for s in steps}}
            routes.append(_forced({(s.layer, s.position): used[s.layer][s.position] for s in steps}, self.phase))
        return routes


@dataclass(frozen=True)
class Transfer:
    """Routes replayed on other prompts, at template positions.

    Attributes:
        phase, max_new_tokens: As in `RandomRoutes`.
    """

    phase: Phase = "prefill"
    max_new_tokens: int = 512

    def replay(
        self,
        engine: Engine,
        behaviours: Sequence[Behaviour],
        judge: Judge,
        routes: Sequence[Sequence[Step]],
        *,
        steps: Steps | None = None,
    ) -> list[list[Attempt]]:
        """Every route on every behaviour; on its own too, where its template part alone is in force.

        Args:
            routes: The pairs found for each behaviour. Shape: [m][pairs].

        Returns:
            Answers by route, then behaviour. Shape: [m][m].
        """
        steps = steps or Steps()
        prompts = [engine.encode(b.turns) for b in behaviours]
        matrix = []
        for behaviour, prompt, pairs in zip(behaviours, prompts, routes, strict=True):

            def compute(prompt: Prompt = prompt, pairs: Sequence[Step] = pairs) -> dict[str, Any]:
                routing = [_forced(moved(pairs, prompt, other), self.phase) for other in prompts]
                answers = ask(engine, behaviours, judge, routing=routing, max_new_tokens=self.max_new_tokens)
                return {"attempts": [a.to_json() for a in answers]}

            unit = steps.unit(f"transfer/{behaviour.id}", engine, compute, len(behaviours))
            matrix.append([Attempt.from_json(a) for a in unit["attempts"]])
        return matrix


def moved(pairs: Sequence[Step], source: Prompt, target: Prompt) -> dict[tuple[int, int], Sequence[int]]:
    """The template part of a route on another prompt: (layer, position there) -> experts."""
    place = template_places(source, target)
    return {(p.layer, place[p.position]): p.experts for p in pairs if p.position in place}


def template_places(source: Prompt, target: Prompt) -> dict[int, int]:
    """Where the template tokens of one prompt stand in another.

    Tokens before the content are counted from the front, those after it from the back; only equal template tokens
    belong together. The very last prompt token is one of them.
    """
    (front, back), (front_there, back_there) = _around_content(source), _around_content(target)
    pairs = [(n, n) for n in range(min(front, front_there))]
    pairs += [(len(source) - n, len(target) - n) for n in range(min(back, back_there), 0, -1)]
    scaffold = ("template", "last")
    return {
        a: b
        for a, b in pairs
        if source.roles[a] in scaffold and target.roles[b] in scaffold and source.ids[a] == target.ids[b]
    }


def _around_content(prompt: Prompt) -> tuple[int, int]:
    """How many tokens stand before the last user message, and how many after it."""
    inside = [n for n, role in enumerate(prompt.roles) if role == "content"]
    return (inside[0], len(prompt) - 1 - inside[-1]) if inside else (len(prompt), 0)


def _forced(sets: dict[tuple[int, int], Any], phase: Phase) -> Intervention:
    """Sets at (layer, position) as an intervention; empty if there are none."""
    if not sets:
        return Intervention()
    return Intervention.force({pair: [int(e) for e in experts] for pair, experts in sets.items()}, phase=phase)
