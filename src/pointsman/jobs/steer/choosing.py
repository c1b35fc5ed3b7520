"""Choosing a mask on the validation split, coarse to fine; the same for every method (METHODS section 5.5, 5.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pointsman.data.scenario import REFINEMENTS
from pointsman.errors import DataError
from pointsman.jobs.steer.candidates import Candidate, Pins, Screen, Tried, choose, masks_of, random_mask, screened_loss
from pointsman.jobs.steer.learning import Material
from pointsman.jobs.steer.lessons import Lessons
from pointsman.jobs.steer.limits import point
from pointsman.jobs.steer.matrices import TrainedMatrix
from pointsman.jobs.steer.outcome import ask_under
from pointsman.jobs.steer.plan import Steer
from pointsman.jobs.steer.played import PlayedSplit, Refusals
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.jobs.steer.results import CandidateResult, Chosen
from pointsman.jobs.steer.strengths import Strengths, StrengthSearch
from pointsman.jobs.steer.traces import activations
from pointsman.methods.steermoe import Activations, sizes
from pointsman.methods.steps import stream
from pointsman.runs.bench import Bench
from pointsman.stats.rates import Rate

SCREENED = 24  # contexts of label 1 in the screen, and half as many of each group that is held
TOLERATED = 0.1  # screened loss that does not count against a finalist: a row of twelve; `StrengthSearch` weakens it

Screened = tuple[Candidate, Mapping[str, Rate]]
"""A candidate with its rates in the screen."""


@dataclass(frozen=True)
class Choice:
    """Which mask is deployed, and among what it was chosen.

    Attributes:
        best: The one.
        why: In words.
        tried: Generated with on validation.
        screened: By what the model would say.
    """

    best: Tried
    why: str
    tried: tuple[Tried, ...]
    screened: tuple[Screened, ...]

    def best_of(self, method: str, refinement: str | None = None) -> Candidate | None:
        """The choice among those of one method, or of one refinement of it; None if none was tried."""
        some = [t for t in self.tried if t.candidate.method == method and refinement in (None, t.candidate.refinement)]
        return choose(some)[0].candidate if some else None

    @property
    def chosen(self) -> Chosen:
        best = self.best
        return Chosen(**vars(best.candidate.facts), admissible=not best.broken, why=self.why, unsure=best.unsure)

    @property
    def candidates(self) -> tuple[CandidateResult, ...]:
        """Fine: generated with. Coarse: by what the model would say; their rates are those of the screen."""
        fine = [
            CandidateResult(
                **vars(t.candidate.facts), **vars(t.rates), stage="fine", admissible=not t.broken, broken=t.broken,
                unsure=t.unsure, chosen=t is self.best, seconds_per_answer=t.seconds,
            )
            for t in self.tried
        ]  # fmt: skip
        coarse = [
            CandidateResult(
                **vars(candidate.facts), gain=rates["gain"], garbage=None, benign=rates.get("benign"),
                benign_conversations=rates.get("benign_conversations"), over_refusal=None,
                held=rates.get("restricted"), borderline=rates.get("borderline"), stage="coarse", admissible=None,
                broken=(), chosen=False, seconds_per_answer=None,
            )
            for candidate, rates in self.screened
        ]  # fmt: skip
        return (*fine, *coarse)


def screen_of(lessons: Lessons, validation: PlayedSplit, refusals: Refusals) -> Screen:
    """The screen on the validation split."""
    forks = lessons.forks(validation.to_turn[:SCREENED], validation, refusals)
    return Screen(forks, {name: kept[: SCREENED // 2] for name, kept in lessons.held(validation).items()})


@dataclass(frozen=True)
class Choosing:
    """Screens, tries and chooses among masks and pins.

    Attributes:
        bench: The run.
        plan: Of the run.
        material: Of the discovery split: pins are counted on it.
        validation: What candidates are tried on.
        screen: Of the validation split.
    """

    bench: Bench[SteerQuestion]
    plan: Steer
    material: Material
    validation: PlayedSplit
    screen: Screen

    def choose(self, matrices: Sequence[TrainedMatrix]) -> Choice:
        """The best mask of these matrices, beside the baseline's pins and random masks.

        Raises:
            DataError: All matrices are zero.
        """
        grid = self.bench.question.scenario.grid
        masks = [c for m in matrices for c in masks_of(m, self.material.sigma, coarse(grid.alphas), grid.phases)]
        entries = sum(router.experts for router in self.bench.engine.routers)
        pins = [self._pins.pin(on, off, phase) for on, off in sizes(entries) for phase in grid.phases]
        base, screened = self._screened([*masks, *(pin for pin in pins if pin is not None)])
        tried = self._try_finalists(screened, base)
        before = point(self.validation.outcome.rates.gain)
        best, why = choose([t for t in tried if t.candidate.method == "mascing"], before)
        random, more = self._random(best.candidate)
        return Choice(best, why, (*tried, *random), (*screened, *more))

    def with_matrix(self, matrix: TrainedMatrix, like: Candidate) -> list[Tried]:
        """Another seed's matrix in place of that of a candidate, and how strong it may be."""
        phases = self.bench.question.scenario.grid.phases
        masks = masks_of(matrix, self.material.sigma, (like.alpha or 1.0,), phases)
        search = self._search()
        search.settle([c for c in masks if c.phase == like.phase])
        search.sharpen()
        return search.tried

    @cached_property
    def _pins(self) -> Pins:
        """Counted once: how often the experts are activated where the behaviour is wanted, and where it is not."""
        engine, system = self.bench.engine, self.bench.question.scenario.system
        contexts, turning = self.material.contexts, [self.material.contexts[n] for n in self.material.turning]
        counted: list[Activations] = []
        with self.bench.stage("activations", "Activation rates", 2) as steps:
            for name, some in (("wanted", [c for c in contexts if not c.label]), ("unwanted", turning)):

                def compute(some: Sequence[Any] = some) -> dict[str, Any]:
                    found = activations(engine, some, system=system)
                    return {"tokens": found.tokens, "counts": [row.tolist() for row in found.counts]}

                unit = steps.unit(f"activations/{name}", engine, compute)
                counted.append(Activations(unit["tokens"], tuple(np.array(row) for row in unit["counts"])))
        return Pins(counted[0], counted[1], tuple(router.top_k for router in engine.routers))

    def _screened(self, candidates: Sequence[Candidate]) -> tuple[Mapping[str, Rate], list[Screened]]:
        """The unsteered model, and every candidate, by what the model would say."""
        engine = self.bench.engine
        with self.bench.stage("screen", "Screening candidates", len(candidates) + 1) as steps:
            base, totals = self.screen.rates(engine, None, key="screen/none", steps=steps, base=None)
            return base, [
                (c, self.screen.rates(engine, c.routing, key=f"screen/{c.key}", steps=steps, base=totals)[0])
                for c in candidates
            ]

    def _try_finalists(self, screened: Sequence[Screened], base: Mapping[str, Rate]) -> list[Tried]:
        """The finalists of every method and refinement, generated with, and how strong they may be."""
        groups = [[s for s in screened if s[0].refinement == r] for r in REFINEMENTS]  # the paper's own first
        if not any(groups):
            raise DataError(
                "Every steering matrix was zero after the cut: nothing was learnt",
                "Give smaller lambdas in the grid, or more contexts",
            )
        masks, pins = self._search(), self._search()
        for group in groups:
            masks.settle(finalists(group, base, self.plan.finalists))
        pins.settle(finalists([s for s in screened if s[0].method == "steermoe"], base, self.plan.finalists))
        for search in (masks, pins):
            search.sharpen()
        return [*masks.tried, *pins.tried]

    def _random(self, best: Candidate) -> tuple[list[Tried], list[Screened]]:
        """Masks with the entries of the best one, elsewhere: the same sparsity and norm, through the same choice."""
        if best.matrix is None or not self.plan.random_draws:
            return [], []
        draws = range(self.plan.random_draws)
        shuffled = [shuffle(best.matrix, stream(self.plan.seed, "random mask", n)) for n in draws]
        alphas = coarse(self.bench.question.scenario.grid.alphas)
        base, screened = self._screened(
            [random_mask(n, shuffled[n], self.material.sigma, alpha, best.phase) for n in draws for alpha in alphas]
        )
        search = self._search()
        search.settle(finalists(screened, base, self.plan.finalists))
        search.sharpen()
        return search.tried, screened

    def _search(self) -> StrengthSearch:
        experts = sum(router.experts for router in self.bench.engine.routers)
        alphas = self.bench.question.scenario.grid.alphas
        return StrengthSearch(Strengths(alphas, self.material.sigma, experts, self._pins.pin), self._try)

    def _try(self, candidate: Candidate) -> Tried:
        prompts = self.validation.prompts
        with self.bench.stage("validation", f"Validation: {candidate.id}", prompts.total) as steps:
            outcome = ask_under(self.bench, prompts, candidate.routing, steps.under(f"validation/{candidate.key}"))
            seconds = round(steps.cost()["seconds"] / max(prompts.total, 1), 4)
        limits = self.bench.question.scenario.limits
        return Tried.of(candidate, outcome, self.validation.outcome, limits, seconds, self.plan.confidence_share)


def coarse(alphas: Sequence[float]) -> tuple[float, ...]:
    """Every second strength, where there are many, and 1."""
    alphas = tuple(sorted(alphas))
    return alphas if len(alphas) <= 4 else tuple(a for n, a in enumerate(alphas) if n % 2 or a == 1)


def finalists(screened: Sequence[Screened], base: Mapping[str, Rate], count: int) -> list[Candidate]:
    """The most promising of one method: what gains most at a tolerable loss, then whatever loses least.

    Of one matrix (or kind of pins) in one phase, one strength only: `StrengthSearch` finds the others.
    """

    def key(entry: Screened) -> tuple[float, float, float, float, str]:
        candidate, rates = entry
        loss = screened_loss(rates, base)
        weakness = candidate.norm1 or candidate.entries
        return max(0.0, loss - TOLERATED), -point(rates["gain"]), loss, weakness, candidate.id

    found: dict[tuple[int, str | None, str], Candidate] = {}
    for candidate, _ in sorted(screened, key=key):
        found.setdefault((id(candidate.matrix), candidate.pinned, candidate.phase), candidate)
    return list(found.values())[:count]


def shuffle(matrix: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The same entries at random places."""
    flat = rng.permutation(np.concatenate(matrix))
    edges = np.cumsum([len(row) for row in matrix])[:-1]
    return tuple(np.split(flat, edges))
