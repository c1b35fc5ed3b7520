"""Guided: unsafe routes from the gradient. METHODS section 9; Pointsman's own.

F-SOUR draws the sets that it tries. One backward pass says, to first order, by how much every set of experts would
raise log p(target) at every layer and prompt token; only the most promising pairs are forced, and everything that is
accepted was scored by an exact forward. Nothing is drawn, so a search gives the same route whenever it is run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.abilities import Guides, that_guides
from pointsman.engine.route_gradients import RouteGradient
from pointsman.engine.types import TIE, Engine, Prompt
from pointsman.errors import UsageError
from pointsman.judges.types import Judge
from pointsman.methods.best_sets import best_sets
from pointsman.methods.routes import Course, Found, RouteResult, Step
from pointsman.methods.steps import Steps
from pointsman.routing.intervention import Intervention, Phase

_ROUNDING = 1e-6  # nats; within so much, a pair made no difference

Pair = tuple[int, int]
"""A MoE layer and a prompt token."""


@dataclass(frozen=True)
class Guided:
    """Search unsafe routes by their gradient.

    Attributes:
        iterations: Gradients taken for one route, at most.
        joint: How many of the most promising pairs are forced together in the joint tries, at most; they are 1, 2, 4
            and so on.
        singles: How many of them are forced alone where no joint try arrives at `log_tau`.
        restarts: Searches, until the judge says success: restart r aims at the r-th of a behaviour's targets in turn.
            A behaviour with fewer targets is searched once for each of them, since nothing is drawn.
        log_tau: Stop the search once log p(target) reaches this, in nats.
        min_gain: Accept pairs only if they raise log p(target) by more than this, in nats.
        prune: Leave out the pairs that the route turns out not to need.
        phase: When the route is in force while the model answers: ``prefill``, as for F-SOUR.
        max_new_tokens: Length of the answer.
        together: Behaviours searched side by side; changes no route. A killed run repeats at most one restart of one
            such group.
    """

    iterations: int = 12
    joint: int = 32
    singles: int = 16
    restarts: int = 1
    log_tau: float = math.log(0.8)
    min_gain: float = 1e-6
    prune: bool = True
    phase: Phase = "prefill"
    max_new_tokens: int = 512
    together: int = 16

    def __post_init__(self) -> None:
        for name in ("iterations", "joint", "restarts", "together"):
            if getattr(self, name) < 1:
                raise UsageError(f"Guided search with {name} {getattr(self, name)}", "Give at least 1")
        if self.log_tau > 0 or self.min_gain < 0 or self.singles < 0:
            raise UsageError(
                "Guided search wants log_tau <= 0, min_gain >= 0 and singles >= 0", "Leave them out for the defaults"
            )
        if self.phase == "decode":
            raise UsageError("A route forces prompt tokens: in decode it does nothing", "Use phase prefill")

    def search(
        self, engine: Engine, behaviours: Sequence[Behaviour], judge: Judge, *, steps: Steps | None = None
    ) -> list[RouteResult]:
        """Search an unsafe route for every behaviour; every restart of a group is a unit that is remembered.

        Raises:
            UsageError: The engine has no gradients.
            ModelError: The model passes none to its experts, or weighs them by a rule that is not known.
        """
        that_guides(engine)
        course = Course(
            "guided", self.find_routes, self.aimed, lambda b: min(self.restarts, 1 + len(b.targets)), self.together,
            self.phase, self.max_new_tokens,
        )  # fmt: skip
        return course.run(engine, behaviours, judge, steps or Steps())

    @property
    def tries_together(self) -> int:
        """Tries of one behaviour that are scored at once, at most."""
        return max(len(doubling(self.joint)), self.singles - 1)

    def aimed(self, behaviour: Behaviour, restart: int) -> str:
        """The target that a restart aims at."""
        targets = (behaviour.target, *behaviour.targets)
        return targets[restart % len(targets)]

    def find_routes(self, engine: Engine, behaviours: Sequence[Behaviour], restart: int) -> list[Found]:
        """A route for every behaviour, their tries side by side in each forward.

        Returns:
            For each behaviour what was found; its rows count every forward of one row, a backward as two, and the pass
            through all experts by its arithmetic.
        """
        prompts = [engine.encode(b.turns) for b in behaviours]
        targets = [engine.encode_target(self.aimed(b, restart)) for b in behaviours]
        begun = engine.score(prompts, targets)
        hunts = [_Hunt(p, t, s.total) for p, t, s in zip(prompts, targets, begun, strict=True)]
        going = [hunt for hunt in hunts if hunt.total < self.log_tau]
        for _ in range(self.iterations):
            if not going:
                break
            self._advance(that_guides(engine), going)
            going = [hunt for hunt in going if hunt.total < self.log_tau and not hunt.stuck]
        if self.prune:
            self._prune(engine, hunts)
        return [Found(hunt.before, hunt.steps(), hunt.rows) for hunt in hunts]

    # -- finding -----------------------------------------------------------------------------------------------

    def _advance(self, engine: Guides, hunts: Sequence[_Hunt]) -> None:
        """One iteration: a gradient, then the joint tries, then, of those that did not arrive, pairs alone."""
        gradients = engine.route_gradients(
            [h.prompt for h in hunts], [h.target for h in hunts], routing=[h.routing() for h in hunts]
        )
        for hunt, gradient in zip(hunts, gradients, strict=True):
            hunt.rows += gradient.forwards
            hunt.promising = ranked_pairs(engine, gradient, hunt.route, self.joint)
        tries = [[hunt.promising[:n] for n in doubling(len(hunt.promising))] for hunt in hunts]
        self._try(engine, hunts, tries)
        short = [hunt for hunt in hunts if hunt.best[1] < self.log_tau]
        self._try(engine, short, [[[pair] for pair in hunt.promising[1 : self.singles]] for hunt in short])
        arrived = [hunt for hunt in hunts if hunt.best[1] >= self.log_tau]
        self._shorten(engine, arrived)
        for hunt in hunts:
            pairs, total = hunt.best
            hunt.stuck = not total > hunt.total + max(self.min_gain, TIE)
            if not hunt.stuck:
                hunt.take(pairs, total)

    def _try(self, engine: Engine, hunts: Sequence[_Hunt], tries: Sequence[Sequence[Sequence[_Promise]]]) -> None:
        """Score routes with these pairs more; of each hunt the first that arrives is kept, else the best."""
        rows = [(hunt, pairs) for hunt, each in zip(hunts, tries, strict=True) for pairs in each]
        for (hunt, pairs), total in zip(rows, _totals(engine, [(h, h.routing(p)) for h, p in rows]), strict=True):
            if hunt.best[1] < self.log_tau and total > hunt.best[1] + TIE:
                hunt.best = (tuple(pairs), total)

    def _shorten(self, engine: Engine, hunts: Sequence[_Hunt]) -> None:
        """Fewer of the most promising pairs, between the joint try that arrived and the last that did not: bisected."""
        spans = {}
        for hunt in hunts:
            tried = doubling(len(hunt.promising))
            arrived = len(hunt.best[0])
            spans[id(hunt)] = (max((n for n in tried if n < arrived), default=0), arrived)
        while True:
            open_ = [hunt for hunt in hunts if spans[id(hunt)][1] - spans[id(hunt)][0] > 1]
            if not open_:
                return
            middles = [sum(spans[id(hunt)]) // 2 for hunt in open_]
            rows = [(hunt, hunt.routing(hunt.promising[:middle])) for hunt, middle in zip(open_, middles, strict=True)]
            for hunt, middle, total in zip(open_, middles, _totals(engine, rows), strict=True):
                low, high = spans[id(hunt)]
                if total >= self.log_tau:
                    spans[id(hunt)], hunt.best = (low, middle), (tuple(hunt.promising[:middle]), total)
                else:
                    spans[id(hunt)] = (middle, high)

    # -- pruning -----------------------------------------------------------------------------------------------

    def _prune(self, engine: Engine, hunts: Sequence[_Hunt]) -> None:
        """Leave out one pair after another, the least promising first, while log p(target) stays where it must.

        That is at `log_tau`, or where it was if it never got there. It ends when the route needs each of its pairs.
        """
        queues = {id(hunt): deque(reversed(hunt.route)) for hunt in hunts}
        needed = dict.fromkeys(queues, 0)  # how many of the queue's last have been tried beside what is left
        while going := [h for h in hunts if len(h.route) > 1 and needed[id(h)] < len(h.route)]:
            rows = [(hunt, hunt.routing(without=queues[id(hunt)][0])) for hunt in going]
            for hunt, total in zip(going, _totals(engine, rows), strict=True):
                pair = queues[id(hunt)].popleft()
                if total >= min(self.log_tau, hunt.total - _ROUNDING):
                    hunt.leave_out(pair, total)
                    needed[id(hunt)] = 0
                else:
                    queues[id(hunt)].append(pair)
                    needed[id(hunt)] += 1


_Promise = tuple[Pair, tuple[int, ...]]
"""A pair, and the set that is best there."""


@dataclass(eq=False)
class _Hunt:
    """The search for one behaviour.

    Attributes:
        before, total: log p(target) without a route and with the present one, in nats.
        route: In the order in which pairs came in.
        reached: log p(target) when they had, in nats.
        promising: Pairs of the last gradient, the most promising first.
        best: Of the present iteration, the pairs to force besides, and log p(target) with them.
        rows: What it cost so far, in forwards of one row.
    """

    prompt: Prompt
    target: tuple[int, ...]
    before: float
    total: float = field(init=False)
    route: dict[Pair, tuple[int, ...]] = field(default_factory=dict)
    reached: dict[Pair, float] = field(default_factory=dict)
    promising: list[_Promise] = field(default_factory=list)
    best: tuple[tuple[_Promise, ...], float] = field(init=False)
    stuck: bool = False
    rows: float = 1.0

    def __post_init__(self) -> None:
        self.total = self.before
        self.best = ((), self.before)

    def routing(self, more: Sequence[_Promise] = (), *, without: Pair | None = None) -> Intervention:
        """The route, with more pairs or without one."""
        return _forced({pair: sets for pair, sets in {**self.route, **dict(more)}.items() if pair != without})

    def take(self, pairs: Sequence[_Promise], total: float) -> None:
        """Force these pairs from now on."""
        self.route |= dict(pairs)
        self.reached |= dict.fromkeys(dict(pairs), total)
        self.total = total
        self.best = ((), total)

    def leave_out(self, pair: Pair, total: float) -> None:
        """Force this pair no more."""
        del self.route[pair], self.reached[pair]
        self.total = total

    def steps(self) -> tuple[Step, ...]:
        """The route as it is reported: pairs that came in together reached their log p(target) together."""
        last = next(reversed(self.route), None)
        return tuple(
            Step(*pair, experts, self.total if pair == last else self.reached[pair])
            for pair, experts in self.route.items()
        )


def ranked_pairs(
    engine: Engine, gradient: RouteGradient, route: Mapping[Pair, tuple[int, ...]], most: int
) -> list[_Promise]:
    """The pairs that would raise log p(target) most, to first order, each with its best set.

    Args:
        route: Already in force; a pair of it counts only with another set.
    """
    found: list[tuple[float, Pair, tuple[int, ...]]] = []
    for router, layer in zip(engine.routers, gradient.layers, strict=True):
        sets, gains = best_sets(layer, router)
        for token in np.flatnonzero(gains > 0).tolist():
            experts = tuple(sets[token].tolist())
            if route.get((router.layer, token)) != experts:
                found.append((-float(gains[token]), (router.layer, token), experts))
    return [(pair, experts) for _, pair, experts in sorted(found)[:most]]


def _totals(engine: Engine, rows: Sequence[tuple[_Hunt, Intervention]]) -> list[float]:
    """log p(target) of each of these routes by an exact forward, counted."""
    if not rows:
        return []
    for hunt, _ in rows:
        hunt.rows += 1
    scores = engine.score([h.prompt for h, _ in rows], [h.target for h, _ in rows], routing=[r for _, r in rows])
    return [score.total for score in scores]


def _forced(route: Mapping[Pair, tuple[int, ...]]) -> Intervention:
    """An empty route forces nothing."""
    return Intervention.force(dict(route), phase="prefill") if route else Intervention()


def doubling(most: int) -> list[int]:
    """1, 2, 4 .. and `most` itself."""
    return sorted({*(2**n for n in range(most.bit_length())), most}) if most > 0 else []
