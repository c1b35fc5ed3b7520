"""Candidates for a steering mask: masks and pins; screened on what the model would say, tried on what it says."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from pointsman.data.scenario import Limits
from pointsman.engine.channels import given
from pointsman.engine.learning import Lesson
from pointsman.engine.types import Engine
from pointsman.jobs.steer.lessons import Fork
from pointsman.jobs.steer.limits import broken_limits, excesses, point
from pointsman.jobs.steer.maps import Maps, TrainedMaps, size_of
from pointsman.jobs.steer.margins import without_margin
from pointsman.jobs.steer.matrices import TrainedMatrix, mask_of, norm1
from pointsman.jobs.steer.outcome import Outcome
from pointsman.jobs.steer.results import MaskFacts, Method, OutcomeRates
from pointsman.methods.mascing import circuit
from pointsman.methods.steermoe import Activations, SteerMoE, sizes, swept_sizes
from pointsman.methods.steps import Steps
from pointsman.routing.intervention import Intervention, Phase
from pointsman.stats.rates import Rate

Pinning = Literal["steermoe_paired", "steermoe"]
PINNING: tuple[Pinning, ...] = get_args(Pinning)
DECISION = 4  # answer tokens by which the screen tells giving in from refusing
TIED = 0.01  # of the gain: less than a validation split can tell


@dataclass(frozen=True, kw_only=True)
class Candidate(MaskFacts):
    """A routing that might be chosen, and where it comes from; its `id` is unique within a run.

    Attributes:
        routing: What it does.
        matrix: S in units of sigma, for constant masks. Shapes: [E_l].
        maps: Of conditional masks, at alpha 1.
    """

    routing: Intervention
    matrix: tuple[np.ndarray, ...] | None = field(default=None, compare=False)
    maps: Maps | None = field(default=None, compare=False)

    @cached_property
    def key(self) -> str:
        """Its id and a digest of what it does: for units that must not be taken for those of another mask.

        Journals that began under an older version have all matrices under ``mascing/``.
        """
        filed = "mascing/" if self.method == "through_model" else ""
        return f"{filed}{self.id}/{digest_of(self.routing)}"

    @property
    def learnt(self) -> bool:
        """Whether it is a mask that may be deployed, not a baseline's pins."""
        return self.method != "random" and (self.matrix is not None or self.maps is not None)

    @property
    def origin(self) -> int:
        """The same for all strengths of one mask."""
        return id(self.matrix if self.maps is None else self.maps)

    @property
    def weakness(self) -> float:
        """What is the smaller the less a candidate changes, among those of one kind."""
        found = self.norm1 if self.norm1 is not None else self.size
        return float(self.entries) if found is None else found

    @property
    def proportion(self) -> int | None:
        """Of experts pinned on to experts pinned off, as the nearest power of four; None where that is not swept.

        The counts that are swept are four times each other (`swept_sizes`), and others are rounded to whole experts.
        """
        if self.method != "steermoe_paired" or not self.on or not self.off:
            return None
        return round(math.log(self.on / self.off, 4))

    @property
    def facts(self) -> MaskFacts:
        """What it is, without its numbers."""
        return MaskFacts(**{f.name: getattr(self, f.name) for f in fields(MaskFacts)})


def matrix_of(candidate: Candidate, engine: Engine) -> tuple[np.ndarray, ...]:
    """S of a constant mask; zeros of another. Shapes: [E_l]."""
    return candidate.matrix or tuple(np.zeros(router.experts) for router in engine.routers)


def digest_of(routing: Intervention) -> str:
    """A digest of the rules. Twelve hexadecimal digits."""
    return hashlib.sha256(json.dumps(routing.to_json()["rules"]).encode()).hexdigest()[:12]


def masks_of(
    matrix: TrainedMatrix, sigma: Sequence[float], alphas: Sequence[float], phases: Sequence[Phase]
) -> list[Candidate]:
    """The masks that a matrix makes, in its own phase or in these; none if it is zero."""
    if not any(row.any() for row in matrix.values):
        return []
    method: Method = "through_model" if matrix.refinement == "through_model" else "mascing"
    name = matrix.name if matrix.refinement == method else f"{method}/{matrix.name}"
    return [
        Candidate(
            id=f"{name}/alpha={alpha:g}" + ("" if matrix.phase else f"/{phase}"), method=method,
            routing=matrix.mask(sigma, alpha, phase), alpha=alpha, phase=phase, entries=len(circuit(matrix.values)),
            norm1=alpha * norm1(matrix.values), refinement=matrix.refinement, lambda_=matrix.lambda_,
            start=matrix.start, hold=matrix.hold, matrix=matrix.values,
        )
        for phase in ((matrix.phase,) if matrix.phase else phases)
        for alpha in alphas
    ]  # fmt: skip


def conditional_masks(trained: TrainedMaps, alphas: Sequence[float]) -> list[Candidate]:
    """A conditional mask at these strengths."""
    return [
        Candidate(
            id=f"{trained.name}/alpha={alpha:g}/{trained.phase}", method="conditional", routing=trained.mask(alpha),
            alpha=alpha, phase=trained.phase, entries=sum(one.experts for one in trained.maps.values()),
            size=alpha * size_of(trained.maps, trained.norms), rank=trained.rank, step=trained.step,
            decay=trained.decay, hold=trained.hold, maps=trained.maps,
        )
        for alpha in alphas
    ]  # fmt: skip


def random_mask(
    number: int, values: tuple[np.ndarray, ...], sigma: Sequence[float], alpha: float, phase: Phase
) -> Candidate:
    """A mask of a matrix that was not learnt."""
    return Candidate(
        id=f"random/{number}/alpha={alpha:g}", method="random", routing=mask_of(values, sigma, alpha, phase),
        alpha=alpha, phase=phase, entries=len(circuit(values)), norm1=alpha * norm1(values), matrix=values,
    )  # fmt: skip


@dataclass(frozen=True)
class Pins:
    """SteerMoE: experts that the wanted behaviour uses pinned on, those of the unwanted pinned off.

    Attributes:
        method: ``steermoe_paired`` pins as the paper does, ``steermoe`` harder and without a cap.
        wanted, unwanted: How often every expert was activated.
        top_k: Experts that each layer activates. Shape: [L].
    """

    method: Pinning
    wanted: Activations
    unwanted: Activations
    top_k: tuple[int, ...]

    def pin(self, on: int, off: int, phase: Phase) -> Candidate | None:
        """So many experts pinned; None where none differs."""
        make = SteerMoE.published if self.method == "steermoe_paired" else SteerMoE
        routing = make(on, off, phase).pin(self.wanted, self.unwanted, self.top_k)
        if routing is None:
            return None
        return Candidate(
            id=f"{self.method}/on={on}/off={off}/{phase}", method=self.method, routing=routing, phase=phase,
            entries=on + off, pinned="both" if on and off else "on" if on else "off", on=on, off=off,
        )  # fmt: skip

    def sizes(self) -> list[tuple[int, int]]:
        """(n+, n-) to try first."""
        entries = sum(map(len, self.wanted.counts))
        return swept_sizes(entries) if self.method == "steermoe_paired" else sizes(entries)


@dataclass(frozen=True)
class Screen:
    """Teacher-forced questions on the validation split: what the model would say, without generating it.

    Attributes:
        forks: Label-1 contexts. Turned: the first `DECISION` tokens of the wanted answer are the more probable.
        keeps: The unsteered model's own answers by group, benign and so on. Kept: the whole answer has at least half of
            the probability that it has without any mask.
    """

    forks: tuple[Fork, ...]
    keeps: Mapping[str, tuple[Lesson, ...]]

    def rates(
        self, engine: Engine, routing: Intervention | None, *, key: str, steps: Steps, base: Sequence[float] | None
    ) -> tuple[dict[str, Rate], list[float]]:
        """Share of contexts turned (``gain``), and of answers kept by group; one stored unit.

        Args:
            base: What this gave for the unsteered model; None for that model itself.

        Returns:
            The rates; and log p of every answer of `keeps`, groups in alphabetical order.
        """

        def compute() -> dict[str, Any]:
            rows: list[Lesson] = []
            for fork in self.forks:
                rows += [_begun(engine, fork.wanted), _begun(engine, fork.unwanted)]
            asked = rows + [lesson for _, group in sorted(self.keeps.items()) for lesson in group]
            scored = engine.score([row.prompt for row in asked], [row.answer for row in asked], routing=routing)
            totals = [s.total for s in scored]
            turned = [bool(totals[2 * n] > totals[2 * n + 1]) for n in range(len(self.forks))]
            return {"turned": turned, "totals": totals[len(rows) :]}

        unit = steps.unit(key, engine, compute, 1)
        totals: list[float] = unit["totals"]
        before = totals if base is None else base
        kept = [after >= then - math.log(2) for after, then in zip(totals, before, strict=True)]
        found = {"gain": Rate.of(unit["turned"], [f.wanted.source for f in self.forks])}
        start = 0
        for name, group in sorted(self.keeps.items()):
            part = kept[start : start + len(group)]
            found[name] = Rate.of(part, [lesson.source for lesson in group])
            start += len(group)
        return found, totals


def _begun(engine: Engine, lesson: Lesson) -> Lesson:
    answer = lesson.answer[: given(lesson.answer, engine.info.opening) + DECISION]
    return Lesson(lesson.prompt, answer, lesson.source)


def screened_loss(rates: Mapping[str, Rate], base: Mapping[str, Rate]) -> float:
    """The largest loss of any kept group against the unsteered model, as a share."""
    return max((point(base[name]) - point(rates[name]) for name in base if name != "gain"), default=0.0)


@dataclass(frozen=True)
class Tried:
    """A candidate with what it gained and cost on validation.

    Attributes:
        candidate: What was tried.
        rates: What it came to.
        broken: Limits that it breaks.
        excess: The largest distance beyond a limit; negative inside all.
        seconds: Of an answer.
        unsure: Limits that it does not keep with margin; None where no margin is asked for.
    """

    candidate: Candidate
    rates: OutcomeRates
    broken: tuple[str, ...]
    excess: float
    seconds: float | None = None
    unsure: tuple[str, ...] | None = None

    @staticmethod
    def of(
        candidate: Candidate,
        outcome: Outcome,
        base: Outcome,
        limits: Limits,
        seconds: float | None = None,
        confidence: float | None = None,
    ) -> Tried:
        """A candidate with its outcome, against the unsteered model.

        Args:
            confidence: With which limits are to be kept; None for point estimates alone.
        """
        rates, before = outcome.rates, base.rates
        broken, excess = broken_limits(rates, before, limits), max(excesses(rates, before, limits).values())
        unsure = None if confidence is None else without_margin(outcome, base, limits, confidence)
        return Tried(candidate, rates, broken, excess, seconds, unsure)

    @property
    def kept(self) -> bool:
        """Whether it keeps every limit, with margin where one is asked for."""
        return not self.broken and not self.unsure

    @property
    def gain(self) -> float:
        return point(self.rates.gain)


def choose(tried: Sequence[Tried], before: float = 0.0, *, shown: bool = True) -> tuple[Tried, str]:
    """The candidate to deploy, and why: within all limits the largest gain; else the smallest excess.

    Within means with margin, where one is asked for and any candidate has it; else by point estimates.

    Args:
        before: The gain of the unsteered model, a share.
        shown: Whether a margin can be shown of any limit, if one is asked for.

    Gains within `TIED` of the largest count as equal: of these the one with most room below its limits is chosen, then
    the weaker mask. So a mask at the edge of a limit is not preferred for one conversation more.
    """
    by_points, kept = [t for t in tried if not t.broken], [t for t in tried if t.kept]
    within, asked = kept or by_points, any(t.unsure is not None for t in tried)

    if within:
        most = max(t.gain for t in within)
        near = [t for t in within if t.gain >= most - TIED - 1e-9]
        best = min(near, key=lambda t: (t.excess, t.candidate.weakness, -t.gain, t.candidate.id))
        many = f"{len(within)} candidate{'s' if len(within) != 1 else ''} within all limits on validation"
        if asked and not shown:
            many += " by point estimates, since no limit can be shown with margin"
        elif asked:
            many += " with the margin that it can show" if kept else " by point estimates, and none with margin"
        if best.gain <= before:
            return best, f"none of {many} gains anything"
        return best, f"the largest gain of {many}"
    best = min(tried, key=lambda t: (t.excess, -t.gain, t.candidate.weakness, t.candidate.id))
    return best, f"none of {len(tried)} candidates is within all limits on validation; this one exceeds them least"
