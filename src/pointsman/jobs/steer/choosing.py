"""Choosing a mask on the validation split, coarse to fine; the same for every method (METHODS section 5.5, 5.6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from pointsman.data.scenario import REFINEMENTS
from pointsman.errors import DataError
from pointsman.jobs.steer.candidates import (
    Candidate,
    Pinning,
    Pins,
    Screen,
    Tried,
    choose,
    conditional_masks,
    masks_of,
    random_mask,
    screened_loss,
)
from pointsman.jobs.steer.enough import margin_on
from pointsman.jobs.steer.learning import Material
from pointsman.jobs.steer.lessons import Lessons
from pointsman.jobs.steer.limits import point
from pointsman.jobs.steer.maps import TrainedMaps, conditional_of, shuffled_experts
from pointsman.jobs.steer.matrices import TrainedMatrix
from pointsman.jobs.steer.outcome import ask_under
from pointsman.jobs.steer.plan import Steer
from pointsman.jobs.steer.played import PlayedSplit, Refusals
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.jobs.steer.results import CandidateResult, Chosen
from pointsman.jobs.steer.strengths import Pin, Strengths, StrengthSearch, no_pins
from pointsman.jobs.steer.traces import activations, response_activations
from pointsman.methods.steermoe import Activations
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

    def best_of(self, arm: str) -> Candidate | None:
        """The choice among those of one method, see `MaskFacts.arm`; None if none was tried."""
        some = [t for t in self.tried if t.candidate.arm == arm]
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

    def choose(self, matrices: Sequence[TrainedMatrix], maps: Sequence[TrainedMaps]) -> Choice:
        """The best of these masks, beside the baseline's pins and random masks.

        Raises:
            DataError: All masks are zero.
        """
        grid = self.bench.question.scenario.grid
        masks = [c for m in matrices for c in masks_of(m, self.material.sigma, coarse(grid.alphas), grid.phases)]
        masks += [c for trained in maps for c in conditional_masks(trained, (1.0,))]
        pins = [p.pin(on, off, phase) for p in self._pins.values() for on, off in p.sizes() for phase in grid.phases]
        base, screened = self._screened([*masks, *(pin for pin in pins if pin is not None)])
        tried = self._try_finalists(screened, base)
        before = point(self.validation.outcome.rates.gain)
        best, why = choose([t for t in tried if t.candidate.learnt], before, shown=self._margin_shown)
        random, more = self._random(best.candidate)
        return Choice(best, why, (*tried, *random), (*screened, *more))

    def with_mask(self, trained: TrainedMatrix | TrainedMaps, like: Candidate) -> list[Tried]:
        """Another seed's mask in place of a candidate, and how strong it may be."""
        phases, alphas = self.bench.question.scenario.grid.phases, (like.alpha or 1.0,)
        if isinstance(trained, TrainedMaps):
            masks = conditional_masks(trained, alphas)
        else:
            masks = masks_of(trained, self.material.sigma, alphas, phases)
        search = self._search()
        search.settle([c for c in masks if c.phase == like.phase])
        search.sharpen()
        return search.tried

    @property
    def _margin_shown(self) -> bool:
        """Whether validation can show of any limit that it is kept with margin."""
        if self.plan.confidence is None:
            return False
        scenario = self.bench.question.scenario
        return margin_on(scenario, vars(self.validation.prompts), self.plan.confidence).shown

    @cached_property
    def _pins(self) -> dict[Pinning, Pins]:
        """Of both kinds of SteerMoE that are asked for; counted once.

        How often the experts are activated where the behaviour is wanted, and where it is not: at the contexts of
        label 0 and at those that shall be turned; or (paired) at the wanted and at the given answer to the latter.
        """
        engine, system, material = self.bench.engine, self.bench.question.scenario.system, self.material
        kinds = [kind for kind in ("steermoe", "steermoe_paired") if kind in self.plan.asked]
        top_k = tuple(router.top_k for router in engine.routers)

        def contexts(wanted: bool) -> Activations:
            wants = [c for c in material.contexts if not c.label]
            return activations(
                engine, wants if wanted else [material.contexts[n] for n in material.turning], system=system
            )

        def answers(wanted: bool) -> Activations:
            return response_activations(engine, [fork.wanted if wanted else fork.unwanted for fork in material.forks])

        def counted(key: str, count: Callable[[], Activations]) -> Activations:
            def compute() -> dict[str, Any]:
                found = count()
                return {"tokens": found.tokens, "counts": [row.tolist() for row in found.counts]}

            unit = steps.unit(key, engine, compute)
            return Activations(unit["tokens"], tuple(np.array(row) for row in unit["counts"]))

        pins: dict[Pinning, Pins] = {}
        if not kinds:
            return pins
        with self.bench.stage("activations", "Activation rates", 2 * len(kinds)) as steps:
            for kind in kinds:
                count, folder = (contexts, "") if kind == "steermoe" else (answers, "responses/")
                wanted = counted(f"activations/{folder}wanted", partial(count, True))
                pins[kind] = Pins(kind, wanted, counted(f"activations/{folder}unwanted", partial(count, False)), top_k)
        return pins

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
        groups += [[s for s in screened if s[0].method == "conditional"]]
        if not any(groups):
            raise DataError(
                "Every steering matrix was zero after the cut: nothing was learnt",
                "Give smaller lambdas in the grid, or more contexts",
            )
        joint, pins = self._search(), {kind: self._search(found.pin) for kind, found in self._pins.items()}
        masks = [joint if self.plan.searches == "joint" else self._search() for _ in groups]  # each way by itself
        for search, group in zip(masks, groups, strict=True):
            search.settle(finalists(group, base, self.plan.finalists))
        for kind, search in pins.items():
            search.settle(finalists([s for s in screened if s[0].method == kind], base, self.plan.finalists))
        every = list(dict.fromkeys([*masks, *pins.values()]))
        for search in every:
            search.sharpen()
        return [t for search in every for t in search.tried]

    def _random(self, best: Candidate) -> tuple[list[Tried], list[Screened]]:
        """Masks like the best one that were not learnt: the same size, through the same choice."""
        if not best.learnt or not self.plan.random_draws or "random" not in self.plan.asked:
            return [], []
        draws = range(self.plan.random_draws)
        base, screened = self._screened([c for n in draws for c in self._shuffled(best, n)])
        search = self._search()
        search.settle(finalists(screened, base, self.plan.finalists))
        search.sharpen()
        return search.tried, screened

    def _shuffled(self, best: Candidate, number: int) -> list[Candidate]:
        """One control: the entries of a matrix at other places, or the experts of a conditional mask exchanged."""
        rng = stream(self.plan.seed, "random mask", number)
        if best.maps is not None:
            maps = shuffled_experts(best.maps, rng)
            routing = conditional_of(maps, best.alpha or 1.0, best.phase)
            return [replace(best, id=f"random/{number}/{best.id}", method="random", maps=maps, routing=routing)]
        assert best.matrix is not None
        values, alphas = shuffle(best.matrix, rng), coarse(self.bench.question.scenario.grid.alphas)
        return [random_mask(number, values, self.material.sigma, alpha, best.phase) for alpha in alphas]

    def _search(self, pin: Pin = no_pins) -> StrengthSearch:
        experts = sum(router.experts for router in self.bench.engine.routers)
        alphas = self.bench.question.scenario.grid.alphas
        return StrengthSearch(Strengths(alphas, self.material.sigma, experts, pin), self._try)

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

    Of one matrix (or kind of pins) in one phase, one strength only: `StrengthSearch` finds the others. It leaves the
    proportion of pins on to pins off as it is, so where that is swept (`steermoe_paired`), each is a kind of its own.
    """

    def key(entry: Screened) -> tuple[float, float, float, float, str]:
        candidate, rates = entry
        loss = screened_loss(rates, base)
        return max(0.0, loss - TOLERATED), -point(rates["gain"]), loss, candidate.weakness, candidate.id

    found: dict[tuple[int, str | None, int | None, str], Candidate] = {}
    for candidate, _ in sorted(screened, key=key):
        found.setdefault((candidate.origin, candidate.pinned, candidate.proportion, candidate.phase), candidate)
    return list(found.values())[:count]


def shuffle(matrix: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The same entries at random places."""
    flat = rng.permutation(np.concatenate(matrix))
    edges = np.cumsum([len(row) for row in matrix])[:-1]
    return tuple(np.split(flat, edges))
