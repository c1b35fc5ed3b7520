"""Candidates for a steering mask: masks and pins, what each gains and costs, and which one is chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pointsman.data.scenario import Limits
from pointsman.jobs.steer.limits import broken_limits, excesses, point
from pointsman.jobs.steer.matrices import LearntMatrix, mask_of, norm1
from pointsman.jobs.steer.outcome import Outcome
from pointsman.jobs.steer.results import MaskFacts, Method, OutcomeRates
from pointsman.methods.mascing import circuit
from pointsman.methods.steermoe import Activations, SteerMoE
from pointsman.routing.intervention import Intervention, Phase

TIED = 0.01  # of the gain: less than a validation split can tell


@dataclass(frozen=True)
class Candidate:
    """A routing that might be chosen, and where it comes from.

    Attributes:
        id: Unique within a run.
        method: Where it comes from.
        routing: What it does.
        alpha: Strength; None for pins.
        phase: Tokens it acts on.
        entries: Entries that are not zero, or experts that are pinned.
        norm1: Sum of abs(alpha * S); None for pins.
        refinement, lambda_, start, hold: Of the matrix, for mascing.
        shape: Of pins: ``on``, ``off`` or ``both``.
        matrix: S in units of sigma, for masks. Shapes: [E_l].
    """

    id: str
    method: Method
    routing: Intervention
    alpha: float | None
    phase: Phase
    entries: int
    norm1: float | None = None
    refinement: str | None = None
    lambda_: float | None = None
    start: str | None = None
    hold: float | None = None
    shape: str = ""
    matrix: tuple[np.ndarray, ...] | None = field(default=None, compare=False)

    @cached_property
    def key(self) -> str:
        """Its id and a digest of what it does: for units that must not be taken for those of another mask."""
        return f"{self.id}/{digest_of(self.routing)}"

    @property
    def facts(self) -> MaskFacts:
        """What it is, without its numbers."""
        return MaskFacts(
            id=self.id, method=self.method, refinement=self.refinement, lambda_=self.lambda_, alpha=self.alpha,
            phase=self.phase, entries=self.entries, norm1=self.norm1, start=self.start, hold=self.hold,
            pinned=self.shape or None,
        )  # fmt: skip


def digest_of(routing: Intervention) -> str:
    """A digest of the rules. Twelve hexadecimal digits."""
    return hashlib.sha256(json.dumps(routing.to_json()["rules"]).encode()).hexdigest()[:12]


def masks_of(
    matrix: LearntMatrix, sigma: Sequence[float], alphas: Sequence[float], phases: Sequence[Phase]
) -> list[Candidate]:
    """The masks that a matrix makes, in its own phase or in these; none if it is zero."""
    if not any(row.any() for row in matrix.values):
        return []
    return [
        Candidate(
            id=f"mascing/{matrix.name}/alpha={alpha:g}" + ("" if matrix.phase else f"/{phase}"), method="mascing",
            routing=matrix.mask(sigma, alpha, phase), alpha=alpha, phase=phase, entries=len(circuit(matrix.values)),
            norm1=alpha * norm1(matrix.values), refinement=matrix.refinement, lambda_=matrix.lambda_,
            start=matrix.start, hold=matrix.hold, matrix=matrix.values,
        )
        for phase in ((matrix.phase,) if matrix.phase else phases)
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
        wanted, unwanted: How often every expert was activated.
        top_k: Experts that each layer activates. Shape: [L].
    """

    wanted: Activations
    unwanted: Activations
    top_k: tuple[int, ...]

    def pin(self, on: int, off: int, phase: Phase) -> Candidate | None:
        """So many experts pinned; None where none differs."""
        routing = SteerMoE(on, off, phase).pin(self.wanted, self.unwanted, self.top_k)
        if routing is None:
            return None
        shape = "both" if on and off else "on" if on else "off"
        return Candidate(f"steermoe/on={on}/off={off}/{phase}", "steermoe", routing, None, phase, on + off, shape=shape)


@dataclass(frozen=True)
class Tried:
    """A candidate with what it gained and cost on validation.

    Attributes:
        candidate: What was tried.
        rates: What it came to.
        broken: Limits that it breaks.
        excess: The largest distance beyond a limit; negative inside all.
        seconds: Of an answer.
    """

    candidate: Candidate
    rates: OutcomeRates
    broken: tuple[str, ...]
    excess: float
    seconds: float | None = None

    @staticmethod
    def of(
        candidate: Candidate, outcome: Outcome, base: OutcomeRates, limits: Limits, seconds: float | None = None
    ) -> Tried:
        """A candidate with its outcome, against the rates of the unsteered model."""
        rates = outcome.rates
        broken, excess = broken_limits(rates, base, limits), max(excesses(rates, base, limits).values())
        return Tried(candidate, rates, broken, excess, seconds)

    @property
    def gain(self) -> float:
        return point(self.rates.gain)


def choose(tried: Sequence[Tried], before: float = 0.0) -> tuple[Tried, str]:
    """The candidate to deploy, and why: within all limits the largest gain; else the smallest excess.

    Args:
        before: The gain of the unsteered model, a share.

    Gains within `TIED` of the largest count as equal: of these the one with most room below its limits is chosen, then
    the weaker mask. So a mask at the edge of a limit is not preferred for one conversation more.
    """
    within = [t for t in tried if not t.broken]

    def weakness(t: Tried) -> float:
        return t.candidate.norm1 if t.candidate.norm1 is not None else float(t.candidate.entries)

    if within:
        most = max(t.gain for t in within)
        near = [t for t in within if t.gain >= most - TIED - 1e-9]
        best = min(near, key=lambda t: (t.excess, weakness(t), -t.gain, t.candidate.id))
        many = f"{len(within)} candidate{'s' if len(within) != 1 else ''} within all limits on validation"
        if best.gain <= before:
            return best, f"none of {many} gains anything"
        return best, f"the largest gain of {many}"
    best = min(tried, key=lambda t: (t.excess, -t.gain, weakness(t), t.candidate.id))
    return best, f"none of {len(tried)} candidates is within all limits on validation; this one exceeds them least"
