"""What searches of routes find in an audit (METHODS sections 3 and 9): a route for each prompt, and one for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pointsman.methods.universal_route import Anchor
from pointsman.routing.intervention import Phase
from pointsman.runs.rates import AttackRates
from pointsman.stats.paired import AboveDraws, Comparison
from pointsman.stats.rates import Rate

# ---------------------------------------------------------------------- a route for each prompt


Budget = Literal["guided_median", "guided_most", "fsour_median", "fsour_most"]
"""Forwards that a search may take for one prompt: what one of the two took, in the median or at most."""


@dataclass(frozen=True)
class FsourSettings:
    candidates: int
    restarts: int
    log_tau: float
    min_gain: float
    phase: Phase


@dataclass(frozen=True)
class GuidedSettings:
    iterations: int
    joint: int
    singles: int
    restarts: int
    log_tau: float
    min_gain: float
    prune: bool
    phase: Phase


@dataclass(frozen=True)
class PairCounts:
    """Forced pairs of layer and token in the best route of each behaviour."""

    median: float
    min: int
    max: int


@dataclass(frozen=True)
class ExpertUse:
    """An expert that routes force, its share of all pairs, and what uniform draws at the same layers would give."""

    layer: int
    expert: int
    count: int
    share: float
    expected: float


@dataclass(frozen=True)
class Searched:
    """The search for one behaviour; costs are of all its restarts, log-probabilities of its best route.

    Attributes:
        forwards: Of one row. What Guided takes is no whole number: its pass through all experts is counted by its
            arithmetic.
    """

    id: str
    category: str
    success: bool
    base_success: bool
    label: str
    restarts: int
    pairs: int
    log_prob_before: float
    log_prob_after: float
    forwards: float
    tokens: int


@dataclass(frozen=True)
class RouteCell:
    """A forced pair, and what it gained, in nats: of pairs that came in together, an equal share."""

    layer: int
    position: int
    experts: tuple[int, ...]
    gain: float


@dataclass(frozen=True)
class ExampleRoute:
    """One route in full; words of the user are redacted already.

    Attributes:
        trajectory: log p(target) before the first pair and after each; empty where they came in together.
    """

    id: str
    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    layers: int
    cells: tuple[RouteCell, ...]
    trajectory: tuple[float, ...]
    log_tau: float


@dataclass(frozen=True, kw_only=True)
class RandomRouteRates(AttackRates):
    """The best of as many random routes as the search had restarts; and the first of them."""

    asr_at_1: Rate


@dataclass(frozen=True)
class RouteControls:
    random: RandomRouteRates
    natural: AttackRates


@dataclass(frozen=True, kw_only=True)
class SearchVariant:
    """One search of some behaviours in another way; medians of pairs and of log p(target) in nats.

    Attributes:
        target: Kind of the target, and its `number`; of searches with other targets.
        min_gain: In nats; of searches that accept only larger gains.
    """

    target: Literal["affirmative", "content", "mixed"] | None = None
    number: int | None = None
    min_gain: float | None = None
    n: int
    asr_at_1: Rate
    any_compliance: Rate
    garbage: Rate
    pairs: float
    log_prob_before: float
    log_prob_after: float


@dataclass(frozen=True)
class TransferResult:
    """Routes (rows) replayed on behaviours (columns); `pairs_kept` is the median share that could be."""

    ids: tuple[str, ...]
    matrix: tuple[tuple[bool, ...], ...]
    asr_others: Rate
    asr_own: Rate
    pairs_kept: float


@dataclass(frozen=True, kw_only=True)
class FoundRoutes(AttackRates):
    """A search of routes over behaviours: its best routes, the controls, and where routes go.

    Attributes:
        asr_at_1: Of the first restart alone.
        base: The same behaviours without a route; `asr_base_failed`: of those that withstand without one.
        layers: Share of accepted pairs by layer. Shape: [L]. `roles`: by role of the token.
    """

    asr_at_1: Rate
    base: Rate
    asr_base_failed: Rate
    difference_base: Comparison
    settings: FsourSettings | GuidedSettings
    pairs: PairCounts
    layers: tuple[float, ...]
    roles: Mapping[str, float]
    experts: tuple[ExpertUse, ...]
    behaviours: tuple[Searched, ...]
    example: ExampleRoute | None
    controls: RouteControls | None = None
    difference_random: Comparison | None = None
    difference_natural: Comparison | None = None


@dataclass(frozen=True, kw_only=True)
class Fsour(FoundRoutes):
    """F-SOUR, the search of the paper, and what else was searched with it."""

    settings: FsourSettings
    targets: tuple[SearchVariant, ...] = ()
    min_gain: tuple[SearchVariant, ...] = ()
    transfer: TransferResult | None = None


@dataclass(frozen=True, kw_only=True)
class GuidedRoutes(FoundRoutes):
    """Guided, the search by the gradient."""

    settings: GuidedSettings


@dataclass(frozen=True)
class SearchCost:
    """What a search of one prompt took, all its restarts and their answers: medians, and the most forwards.

    Attributes:
        pairs: Forced in the best route.
    """

    forwards: float
    most_forwards: float
    pairs: float
    seconds: float


@dataclass(frozen=True)
class AtBudget:
    """Prompts that each search opens with at most so many forwards; `difference` is Guided less F-SOUR, paired."""

    forwards: float
    budget: Budget
    guided: Rate
    fsour: Rate
    difference: Comparison


@dataclass(frozen=True)
class SideBySide:
    """F-SOUR and Guided on the same prompts.

    Attributes:
        guided, fsour: What they cost.
        difference: ASR of Guided less that of F-SOUR, whatever either took.
        budgets: The same for searches that end at some number of forwards, ascending.
    """

    guided: SearchCost
    fsour: SearchCost
    difference: Comparison
    budgets: tuple[AtBudget, ...]

    def at(self, budget: Budget) -> AtBudget:
        """The searches at one of the budgets."""
        return next(found for found in self.budgets if found.budget == budget)


# ---------------------------------------------------------------------- one route for all prompts


@dataclass(frozen=True)
class UniversalPlace:
    """Experts that are forced at a token counted from an anchor (`methods.universal_route.Place`)."""

    layer: int
    anchor: Anchor
    offset: int
    experts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class UniversalRates(AttackRates):
    """One route for all prompts, found on discovery prompts, on those that are tested.

    Attributes:
        prompts: It was found on.
        reached: Those of them whose log p(target) it takes to log tau.
        log_prob_before, log_prob_after: Their mean log p(target), none above log tau, in nats.
        forwards: Of one row, that finding it took.
        places: Where it forces what.
        vs_base: Against no route.
        natural: The model's own experts forced at its places.
        random: Random sets at its places, each draw one route for all prompts; `draws` has the ASR of each.
    """

    prompts: int
    reached: Rate
    log_prob_before: float
    log_prob_after: float
    forwards: float
    places: tuple[UniversalPlace, ...]
    vs_base: Comparison
    natural: AttackRates
    difference_natural: Comparison
    random: AttackRates | None
    draws: tuple[float, ...]
    difference_random: AboveDraws | None
