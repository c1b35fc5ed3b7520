"""Universal: one unsafe route for all prompts. METHODS section 9; Pointsman's own.

`Guided` finds a route for every prompt. What a stranger would publish is one route for all of them: sets of experts at
places that every prompt has. It is found on discovery prompts, from the sum of their route gradients, and everything
that is accepted raised, by exact forwards, what it is judged by: the mean over these prompts of log p(target), of which
what lies above log tau does not count, so that no prompt that says yes already pays for one that does not. It is then
replayed on prompts that it has not seen, or on another model whose routers have the same shapes.

The search:

>>> from pointsman.methods.universal import Universal, Replay                                       # doctest: +SKIP
>>> found = Universal().find(engine, discovery)                                                     # doctest: +SKIP
>>> found.route.save("route.json")                                                                  # doctest: +SKIP
>>> answers = Replay().ask(engine, test, judge, found.route)                                        # doctest: +SKIP
>>> sum(answer.verdict.success for answer in answers.routed) / len(test)                            # doctest: +SKIP
0.81
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.data.types import Behaviour
from pointsman.engine.abilities import Guides, that_guides
from pointsman.engine.route_gradients import LayerGradient
from pointsman.engine.types import TIE, Engine, Prompt
from pointsman.errors import UsageError
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt, ask_in_steps
from pointsman.methods.guided import doubling
from pointsman.methods.shared_sets import at_tokens, best_shared_set, joined
from pointsman.methods.steps import Steps, stream
from pointsman.methods.universal_route import ForcedPlace, Place, UniversalRoute, places_of, shapes_of
from pointsman.routing.intervention import Intervention, Phase

Spot = tuple[int, Place]
"""A MoE layer and a place."""


@dataclass(frozen=True)
class UniversalSearch:
    """The route that was found on some prompts.

    Attributes:
        prompts, sources: Behaviour ids of the discovery prompts, and their clusters. Shape: [Q].
        before, after: log p(target) of each of them without the route and under it, in nats. Shape: [Q].
        trajectory: What the search raises, in nats: at the start, after every iteration, after pruning.
        route: What was found; it forces nothing if nothing helped.
        rows: What it cost, in forwards of one row, a backward counted as two.
    """

    prompts: tuple[str, ...]
    sources: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    trajectory: tuple[float, ...]
    route: UniversalRoute
    rows: float


@dataclass(frozen=True)
class Universal:
    """Search one route for all prompts by the sum of their gradients. Nothing is drawn.

    Attributes:
        iterations: Gradients taken of every prompt, at most.
        content: Tokens from either end of the user's message at which experts may be forced, at most; 0 for the chat
            template alone.
        joint: How many of the most promising places are forced together in the joint tries, at most; they are 1, 2, 4
            and so on.
        singles: How many of them are forced alone.
        log_tau: What log p(target) of a prompt need not exceed, in nats.
        min_gain: Accept places only if they raise the mean over prompts by more than this, in nats; and leave places
            out that, all together, raise it by no more.
        prune: Leave such places out.
        phase: When the route is in force while the model answers.
        together: Prompts whose gradients are held at a time; changes no route.
    """

    iterations: int = 12
    content: int = 8
    joint: int = 32
    singles: int = 16
    log_tau: float = math.log(0.8)
    min_gain: float = 1e-3
    prune: bool = True
    phase: Phase = "prefill"
    together: int = 16

    def __post_init__(self) -> None:
        for name in ("iterations", "joint", "together"):
            if getattr(self, name) < 1:
                raise UsageError(f"A universal route with {name} {getattr(self, name)}", "Give at least 1")
        if self.log_tau > 0 or self.min_gain < 0 or self.singles < 0 or self.content < 0:
            raise UsageError(
                "A universal route wants log_tau <= 0, and min_gain, singles and content >= 0",
                "Leave them out for the defaults",
            )
        if self.phase == "decode":
            raise UsageError("A route forces prompt tokens: in decode it does nothing", "Use phase prefill")

    def find(self, engine: Engine, behaviours: Sequence[Behaviour], *, steps: Steps | None = None) -> UniversalSearch:
        """Find one route for these behaviours: of the discovery split, never those that it is then judged by.

        Every iteration is a unit that is remembered.

        Raises:
            UsageError: There are no behaviours, or the engine has no gradients.
            ModelError: The model passes none to its experts, or weighs them by a rule that is not known.
        """
        if not behaviours:
            raise UsageError("There are no prompts to find a universal route on", "Give at least one behaviour")
        steps, hunt = steps or Steps(), _Hunt(self, that_guides(engine), behaviours)
        found = steps.unit("universal/start", engine, lambda: hunt.begin().to_json(), 0)
        start = now = _Found.from_json(found)
        trajectory, rows = [self.level(start.totals)], start.rows
        for n in range(self.iterations):
            if min(now.totals) >= self.log_tau:
                steps.advance(self.iterations - n)
                break

            def further(now: _Found = now) -> dict[str, Any]:
                return hunt.advanced(now).to_json()

            after = _Found.from_json(steps.unit(f"universal/{n}", engine, further))
            rows, stuck = rows + after.rows, after.route == now.route
            now = after
            trajectory.append(self.level(now.totals))
            if stuck:
                steps.advance(self.iterations - n - 1)
                break
        if self.prune:
            now = _Found.from_json(steps.unit("universal/prune", engine, lambda: hunt.pruned(now).to_json(), 0))
            rows += now.rows
            trajectory.append(self.level(now.totals))
        return UniversalSearch(
            prompts=tuple(b.id for b in behaviours),
            sources=tuple(b.row_cluster for b in behaviours),
            before=start.totals,
            after=now.totals,
            trajectory=tuple(trajectory),
            route=hunt.route(now.route),
            rows=rows,
        )

    def level(self, totals: Sequence[float]) -> float:
        """What the search raises: the mean of log p(target), none of them above log tau."""
        return math.fsum(min(total, self.log_tau) for total in totals) / len(totals)


@dataclass(frozen=True)
class _Found:
    """Where the search stands.

    Attributes:
        route: In the order in which places came in.
        totals: log p(target) of every prompt under it, in nats.
        rows: What the last step cost.
    """

    route: Mapping[Spot, tuple[int, ...]]
    totals: tuple[float, ...]
    rows: float

    def to_json(self) -> dict[str, Any]:
        route = [[layer, place.anchor, place.offset, list(sets)] for (layer, place), sets in self.route.items()]
        return {"route": route, "totals": list(self.totals), "rows": self.rows}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> _Found:
        route = {(layer, Place(anchor, offset)): tuple(sets) for layer, anchor, offset, sets in data["route"]}
        return _Found(route, tuple(data["totals"]), data["rows"])


class _Hunt:
    """The work of a search on some prompts."""

    def __init__(self, method: Universal, engine: Guides, behaviours: Sequence[Behaviour]) -> None:
        self._method, self._engine = method, engine
        self._prompts = [engine.encode(b.turns) for b in behaviours]
        self._targets = [engine.encode_target(b.target) for b in behaviours]
        self._tokens = {
            place: {n: at for n, prompt in enumerate(self._prompts) if (at := place.position(prompt)) is not None}
            for place in places_of(self._prompts, method.content)
        }  # of every place, the token of each prompt that has it

    def route(self, sets: Mapping[Spot, tuple[int, ...]]) -> UniversalRoute:
        """These sets, for all prompts."""
        forced = tuple(ForcedPlace(layer, place, experts) for (layer, place), experts in sets.items())
        return UniversalRoute(forced, shapes_of(self._engine.routers), self._method.phase, self._engine.info.name)

    def begin(self) -> _Found:
        """Without a route."""
        return _Found({}, self._totals([{}])[0], len(self._prompts))

    def advanced(self, now: _Found) -> _Found:
        """One iteration: the gradients, then the joint tries and places alone; the same route if nothing helped."""
        method = self._method
        promising, rows = self._promising(now)
        sizes = doubling(len(promising))
        tries = [dict(promising[:n]) for n in sizes] + [dict([one]) for one in promising[1 : method.singles]]
        best = now
        for more, totals in zip(tries, self._totals([{**now.route, **more} for more in tries]), strict=True):
            if method.level(totals) > max(method.level(best.totals) + TIE, method.level(now.totals) + method.min_gain):
                best = _Found({**now.route, **more}, totals, 0.0)
        return _Found(best.route, best.totals, rows + len(tries) * len(self._prompts))

    def pruned(self, now: _Found) -> _Found:
        """Without the places that the route does not need, tried one after another, the latest first."""
        method, rows = self._method, 0.0
        floor = method.level(now.totals) - method.min_gain
        for spot in list(now.route)[::-1]:
            fewer = {each: sets for each, sets in now.route.items() if each != spot}
            (totals,) = self._totals([fewer])
            rows += len(self._prompts)
            if method.level(totals) >= floor:
                now = _Found(fewer, totals, 0.0)
        return _Found(now.route, now.totals, rows)

    def _totals(self, routes: Sequence[Mapping[Spot, tuple[int, ...]]]) -> list[tuple[float, ...]]:
        """log p(target) of every prompt under each of these routes, by exact forwards."""
        if not routes:
            return []
        universal = [self.route(sets) for sets in routes]
        scores = self._engine.score(
            self._prompts * len(routes),
            self._targets * len(routes),
            routing=[route.on(prompt) for route in universal for prompt in self._prompts],
        )
        totals, many = [score.total for score in scores], len(self._prompts)
        return [tuple(totals[n * many : (n + 1) * many]) for n in range(len(routes))]

    def _promising(self, now: _Found) -> tuple[list[tuple[Spot, tuple[int, ...]]], float]:
        """The spots whose best set would raise log p(target) most, summed over the prompts that lie below log tau.

        Returns:
            The most promising first, and what the gradients cost.
        """
        method, engine, route = self._method, self._engine, self.route(now.route)
        below = [n for n, total in enumerate(now.totals) if total < method.log_tau]
        places: dict[int, dict[int, int]] = {}  # of a prompt, the row of each token in `layers`
        parts: list[list[LayerGradient]] = [[] for _ in engine.routers]
        rows, cost = 0, 0.0
        for start in range(0, len(below), method.together):
            some = below[start : start + method.together]
            gradients = engine.route_gradients(
                [self._prompts[n] for n in some],
                [self._targets[n] for n in some],
                routing=[route.on(self._prompts[n]) for n in some],
            )
            for n, gradient in zip(some, gradients, strict=True):
                cost += gradient.forwards
                tokens = sorted({at[n] for at in self._tokens.values() if n in at})
                places[n] = {token: rows + number for number, token in enumerate(tokens)}
                rows += len(tokens)
                for part, layer in zip(parts, gradient.layers, strict=True):
                    part.append(at_tokens(layer, tokens))
        layers = [joined(part) for part in parts]
        taken = self._taken(now.route)
        found: list[tuple[float, Spot, tuple[int, ...]]] = []
        for router, layer in zip(engine.routers, layers, strict=True):
            for place, at in self._tokens.items():
                spot = (router.layer, place)
                free = [n for n in below if n in at and taken.get((router.layer, n, at[n]), place) == place]
                if not free:
                    continue
                shared, gain = best_shared_set(at_tokens(layer, [places[n][at[n]] for n in free]), router)
                if gain > 0 and now.route.get(spot) != shared:
                    found.append((-gain, spot, shared))
        return [(spot, experts) for _, spot, experts in sorted(found)[: method.joint]], cost

    def _taken(self, route: Mapping[Spot, tuple[int, ...]]) -> dict[tuple[int, int, int], Place]:
        """The place that decides at a layer, of a prompt, at a token: the first that is forced there."""
        taken: dict[tuple[int, int, int], Place] = {}
        for layer, place in route:
            for n, token in self._tokens[place].items():
                taken.setdefault((layer, n, token), place)
        return taken


# ---------------------------------------------------------------------- on other prompts


@dataclass(frozen=True)
class UniversalAnswers:
    """What a model says under a universal route, and under what it must be held against. Shape of each: [behaviours].

    Attributes:
        plain: Without a route.
        routed: Under the route.
        natural: With its own experts forced at the same places.
        random: Under routes with random sets at the same places, each of them one for all prompts. Shape: [draws][..].
    """

    plain: tuple[Attempt, ...]
    routed: tuple[Attempt, ...]
    natural: tuple[Attempt, ...]
    random: tuple[tuple[Attempt, ...], ...]


@dataclass(frozen=True)
class Replay:
    """A universal route on prompts that it was not found on, with its controls.

    Attributes:
        draws: Random universal routes.
        max_new_tokens: Length of an answer.
        seed: Seed of the random sets, a pure function of (seed, draw).
    """

    draws: int = 10
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 0:
            raise UsageError(f"{self.draws} random universal routes", "Give 0 or more; the default is 10")

    def ask(
        self,
        engine: Engine,
        behaviours: Sequence[Behaviour],
        judge: Judge,
        route: UniversalRoute,
        *,
        plain: Sequence[Attempt] | None = None,
        steps: Steps | None = None,
    ) -> UniversalAnswers:
        """Ask under the route and under its controls, in units that are remembered.

        Args:
            engine: The model that the route was found on, or another one with routers of the same shapes.
            plain: Answers without a route, if there are any yet.

        Raises:
            InterventionError: The routers have other shapes.
        """
        route.check(engine.routers)
        steps, prompts = steps or Steps(), [engine.encode(b.turns) for b in behaviours]

        def answers(key: str, routing: Sequence[Intervention] | None) -> tuple[Attempt, ...]:
            return tuple(
                ask_in_steps(
                    engine, behaviours, judge, key=f"universal/{key}", steps=steps, routing=routing,
                    max_new_tokens=self.max_new_tokens,
                )
            )  # fmt: skip

        routed = [route.on(prompt) for prompt in prompts]
        drawn = [self.random_route(engine, route, draw) for draw in range(self.draws)]
        return UniversalAnswers(
            plain=answers("plain", None) if plain is None else tuple(plain),
            routed=answers("routed", routed),
            natural=answers("natural", natural_experts(engine, prompts, routed)),
            random=tuple(answers(f"random/{n}", [each.on(p) for p in prompts]) for n, each in enumerate(drawn)),
        )

    def random_route(self, engine: Engine, route: UniversalRoute, draw: int) -> UniversalRoute:
        """Random sets at the places of a route."""
        rng = stream(self.seed, "random universal route", draw)
        sets = [tuple(engine.routers[each.layer].draw(rng, 1)[0].tolist()) for each in route.forced]
        forced = tuple(ForcedPlace(f.layer, f.place, experts) for f, experts in zip(route.forced, sets, strict=True))
        return UniversalRoute(forced, route.routers, route.phase, route.model)


def natural_experts(engine: Engine, prompts: Sequence[Prompt], routes: Sequence[Intervention]) -> list[Intervention]:
    """The experts that the untouched model uses where these routes force others. Shape: [prompts]."""
    trace = engine.trace(prompts)
    natural = []
    for row, route in enumerate(routes):
        pairs = [(s.layer, s.position) for rule in route.rules for s in rule.selections if s.position is not None]
        used = {layer: trace[layer].select(row=row, decode=False).experts for layer in {layer for layer, _ in pairs}}
        sets = {(layer, position): used[layer][position].tolist() for layer, position in pairs}
        phase = route.rules[0].where.phase if route.rules else "prefill"
        natural.append(Intervention.force(sets, phase=phase) if sets else Intervention())
    return natural
