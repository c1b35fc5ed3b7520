"""F-SOUR: fine-grained token-layer-wise stochastic optimisation of unsafe routes.

METHODS section 3; Jiang et al., arXiv 2602.08621, section 5. Token by token and layer by layer, N random sets of
experts are tried; the best is forced if it raises the log-probability of an affirmative answer. The route is in force
during prefill while the model answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine, best_candidate
from pointsman.errors import UsageError
from pointsman.judges.types import Judge
from pointsman.methods.routes import Course, Found, RouteResult, Step
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Phase


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
    ) -> list[RouteResult]:
        """Search an unsafe route for every behaviour; every restart of a group is a unit that is remembered."""
        course = Course(
            "fsour", self.find_routes, self.aimed, lambda behaviour: self.restarts,
            group_size(self.together, self.candidates), self.phase, self.max_new_tokens,
        )  # fmt: skip
        return course.run(engine, behaviours, judge, steps or Steps())

    def candidate_sets(self, engine: Engine, behaviour: Behaviour, restart: int, layer: int, token: int) -> np.ndarray:
        """The candidate stream at one (layer, token). Shape: [N, top_k]."""
        rng = stream(self.seed, "fsour", behaviour.id, restart, layer, token)
        return engine.routers[layer].draw(rng, self.candidates)

    def aimed(self, behaviour: Behaviour, restart: int) -> str:
        """The target that a restart aims at."""
        targets = (behaviour.target, *behaviour.targets) if self.cycle_targets else (behaviour.target,)
        return targets[restart % len(targets)]

    def find_routes(self, engine: Engine, behaviours: Sequence[Behaviour], restart: int) -> list[Found]:
        """One pass over all tokens and layers for every behaviour, their candidates side by side in each forward.

        Returns:
            For each behaviour what was found; its rows are the routings that were scored.
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
        return [Found(p, tuple(pairs), n) for p, pairs, n in zip(before, accepted, scored, strict=True)]


def group_size(together: int | None, candidates: int) -> int:
    """How many behaviours are searched side by side."""
    return together or min(max(320 // candidates, 1), 16)
