"""Candidates for a steering mask: screened on what the model would say, tried on what it says, chosen on validation."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from pointsman.engine.learning import Lesson
from pointsman.engine.types import Engine
from pointsman.jobs.steer.outcome import Outcome
from pointsman.methods.steps import Steps
from pointsman.routing.intervention import Intervention, Phase
from pointsman.stats.bounds import ROUNDING, excess
from pointsman.stats.rates import Rate

Method = Literal["mascing", "steermoe", "random"]
TIED = 0.01  # of the gain: less than a validation split can tell
DECISION = 4  # answer tokens by which the screen tells giving in from refusing


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
        return f"{self.id}/{mark(self.routing)}"

    def to_json(self) -> dict[str, Any]:
        """What it is, without its numbers."""
        return {
            "id": self.id, "method": self.method, "refinement": self.refinement, "lambda": self.lambda_,
            "alpha": self.alpha, "phase": self.phase, "entries": self.entries, "norm1": self.norm1, "start": self.start,
            "hold": self.hold, "pinned": self.shape or None,
        }  # fmt: skip


def mark(routing: Intervention) -> str:
    """A digest of the rules. Twelve hexadecimal digits."""
    return hashlib.sha256(json.dumps(routing.to_json()["rules"]).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Fork:
    """A context with the two ways to begin its answer."""

    wanted: Lesson
    unwanted: Lesson


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
    ) -> tuple[dict[str, dict[str, Any]], list[float]]:
        """Share of contexts turned (``gain``), and of answers kept by group; one stored unit.

        Args:
            base: What this gave for the unsteered model; None for that model itself.

        Returns:
            The rates; and log p of every answer of `keeps`, groups in alphabetical order.
        """

        def compute() -> dict[str, Any]:
            rows: list[Lesson] = []
            for fork in self.forks:
                rows += [_begun(fork.wanted), _begun(fork.unwanted)]
            asked = rows + [lesson for _, group in sorted(self.keeps.items()) for lesson in group]
            scored = engine.score([row.prompt for row in asked], [row.answer for row in asked], routing=routing)
            totals = [s.total for s in scored]
            turned = [bool(totals[2 * n] > totals[2 * n + 1]) for n in range(len(self.forks))]
            return {"turned": turned, "totals": totals[len(rows) :]}

        unit = steps.unit(key, engine, compute, 1)
        totals: list[float] = unit["totals"]
        before = totals if base is None else base
        kept = [after >= then - math.log(2) for after, then in zip(totals, before, strict=True)]
        found = {"gain": asdict(Rate.of(unit["turned"], [f.wanted.source for f in self.forks]))}
        start = 0
        for name, group in sorted(self.keeps.items()):
            part = kept[start : start + len(group)]
            found[name] = asdict(Rate.of(part, [lesson.source for lesson in group]))
            start += len(group)
        return found, totals


def _begun(lesson: Lesson) -> Lesson:
    return Lesson(lesson.prompt, lesson.answer[:DECISION], lesson.source)


def screened_loss(rates: Mapping[str, dict[str, Any]], base: Mapping[str, dict[str, Any]]) -> float:
    """The largest loss of any kept group against the unsteered model, as a share."""
    return max((base[name]["rate"] - rates[name]["rate"] for name in base if name != "gain"), default=0.0)


def broken_limits(rates: Mapping[str, Any], base: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """The limits that these rates break, by their point estimates, against those of the unsteered model."""
    return [name for name, beyond in excesses(rates, base, limits).items() if beyond > ROUNDING]


def excesses(rates: Mapping[str, Any], base: Mapping[str, Any], limits: Mapping[str, float]) -> dict[str, float]:
    """How far every rate is beyond its limit; negative where there is room."""
    found = {"garbage": excess(_point(rates["garbage"]), max(limits["garbage"], 0.0))}
    for name in ("benign", "benign_conversations", "held"):
        if rates.get(name) is not None and base.get(name) is not None:
            found[name] = excess(_point(base[name]) - _point(rates[name]), limits[name])
    more = _point(rates["over_refusal"]) - _point(base["over_refusal"])
    return {**found, "over_refusal": excess(more, limits["over_refusal"])}


def _point(rate: Mapping[str, Any]) -> float:
    return 0.0 if rate["rate"] is None else float(rate["rate"])


@dataclass(frozen=True)
class Tried:
    """A candidate with what it gained and cost on validation.

    Attributes:
        candidate: What was tried.
        outcome: Row by row.
        rates: As `Outcome.rates` gives them.
        broken: Limits that it breaks.
        excess: The largest distance beyond a limit; negative inside all.
    """

    candidate: Candidate
    outcome: Outcome
    rates: Mapping[str, Any]
    broken: tuple[str, ...]
    excess: float

    @staticmethod
    def of(candidate: Candidate, outcome: Outcome, base: Mapping[str, Any], limits: Mapping[str, float]) -> Tried:
        rates = outcome.rates()
        return Tried(
            candidate,
            outcome,
            rates,
            tuple(broken_limits(rates, base, limits)),
            max(excesses(rates, base, limits).values()),
        )

    @property
    def gain(self) -> float:
        return _point(self.rates["gain"])


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
