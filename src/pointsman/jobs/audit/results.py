"""What an audit finds, as it stands in ``results.json`` (METHODS sections 0 to 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pointsman.jobs.audit.attacks import AttackResult
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt
from pointsman.methods.universal_route import Anchor
from pointsman.routing.intervention import Phase
from pointsman.runs.answer_loss import AnswersUnder
from pointsman.runs.rates import AttackRates, answered
from pointsman.runs.results import Results
from pointsman.runs.tasks import TaskResults
from pointsman.stats.paired import AboveDraws, Comparison
from pointsman.stats.rank_agreement import Stability
from pointsman.stats.rates import Rate

# ---------------------------------------------------------------------- the model as it is


@dataclass(frozen=True)
class CategoryRates:
    asr: Rate
    any_compliance: Rate


@dataclass(frozen=True, kw_only=True)
class BaseRates(AttackRates):
    """Restricted requests without any routing."""

    by_category: Mapping[str, CategoryRates]


@dataclass(frozen=True)
class MultiTurn:
    """Conversations played without any routing.

    Attributes:
        fallen: Conversations in which a turn gave restricted content.
        by_tactic: The same by tactic.
        questions: Source questions.
        matched_questions: Those of which some conversations fall and some do not.
    """

    fallen: Rate
    by_tactic: Mapping[str, Rate]
    questions: int
    matched_questions: int


# ---------------------------------------------------------------------- which routers matter


@dataclass(frozen=True)
class Rise:
    """A mean rise with its 95 % interval; None where too few prompts tell."""

    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class TargetRise(Rise):
    """By log p(target), in nats."""

    rank: int
    p: float | None


@dataclass(frozen=True, kw_only=True)
class RouterScore(Rise):
    """RoSais of one router: a mean over prompts.

    Attributes:
        router: Path of its module.
        layer, decoder_layer: Number among the MoE layers, and among all.
        rank: 1 is the most important.
        p: Family-wise, by permutation.
        target: The score by the whole target, beside it.
        placebo: The rise of the refusal on benign prompts.
    """

    router: str
    layer: int
    decoder_layer: int
    rank: int
    p: float | None
    target: TargetRise | None
    placebo: Rise | None


@dataclass(frozen=True)
class PlaceboSettings:
    """What the placebo was measured with; or, in `why_not`, why it was not."""

    prompts: int
    tokens: tuple[str, ...]
    refused: int | None
    base: float | None
    why_not: str | None


@dataclass(frozen=True, kw_only=True)
class ScreenAgreement:
    """The screen, which ranked the routers, beside RoSais on a few of the same prompts.

    Attributes:
        prompts: On which both were computed.
        samples: Random masks of RoSais.
        spearman, kendall: Rank correlation (tau-b) of the routers' means over these prompts; None if all are equal.
        low, high: 95 % interval of `spearman` over the source questions of these prompts; None with fewer than two.
        top_n: How many routers count as top.
        same_top: How many of them the two share.
    """

    prompts: int
    samples: int
    spearman: float | None
    low: float | None
    high: float | None
    kendall: float | None
    top_n: int
    same_top: int


@dataclass(frozen=True, kw_only=True)
class RosaisSettings:
    """How the routers were ranked, and how far the ranking can be believed.

    Attributes:
        samples: Random masks; none if the screen ranked.
        scale: In which `base` and the rises are; the screen's are estimates, in nats.
        screen: Its agreement with RoSais; None if RoSais ranked.
    """

    samples: int
    prompts: int
    sources: int
    score: str
    scale: str
    base: float
    target_base: float | None
    permutations: int
    stability: Stability
    agreement: float | None
    placebo: PlaceboSettings
    screen: ScreenAgreement | None = None


@dataclass(frozen=True)
class Reach:
    """Whether routing can change anything: routers, those with a choice, and those at which a mask moved p(A)."""

    routers: int
    with_choice: int
    moved: int

    @property
    def any(self) -> bool:
        return bool(self.with_choice and self.moved)


# ---------------------------------------------------------------------- masks and noise


@dataclass(frozen=True, kw_only=True)
class AttackAndUse(AttackRates):
    """Restricted requests under a routing, and what it leaves of benign ones; None where those were not asked."""

    utility: Rate | None = None
    over_refusal: Rate | None = None

    @staticmethod
    def beside_use(attacked: AttackRates, benign: Sequence[Attempt], judge: Judge, seed: int) -> AttackAndUse:
        """Rates of an attack beside those of answers to benign requests, if there are any."""
        if not benign:
            return AttackAndUse(**vars(attacked))
        sources = [a.source for a in benign]
        return AttackAndUse(
            **vars(attacked),
            utility=Rate.of(answered(benign, judge), sources, seed),
            over_refusal=Rate.of([a.verdict.refused for a in benign], sources, seed),
        )


@dataclass(frozen=True)
class Draw:
    """One random set of routers."""

    layers: tuple[int, ...]
    rate: float


@dataclass(frozen=True, kw_only=True)
class MaskControl(AttackAndUse):
    """As many routers masked, others or otherwise.

    Attributes:
        layers: Of the routers; of random ones see `draws`.
        draws: Random sets of routers.
        mask: Experts kept, by layer, of a mask that is frozen.
        discovery_score: What it was chosen by.
        vs_base: Against no mask.
    """

    layers: tuple[int, ...] | None = None
    draws: tuple[Draw, ...] | None = None
    mask: Mapping[str, tuple[int, ...]] | None = None
    discovery_score: float | None = None
    vs_base: Comparison | None = None


@dataclass(frozen=True, kw_only=True)
class Masked(AttackAndUse):
    """The most important routers masked, and the controls beside it.

    Attributes:
        routers: How many are masked; 0 is the model as it is.
        controls: ``random``, ``lowest``, ``dataset``.
        vs_base, vs_lowest: Paired differences of ASR.
        difference_random: Against all random sets.
        utility_vs_base: What benign answers lose.
    """

    routers: int
    layers: tuple[int, ...]
    phase: Phase
    controls: Mapping[str, MaskControl] = field(default_factory=dict)
    vs_base: Comparison | None = None
    vs_lowest: Comparison | None = None
    difference_random: AboveDraws | None = None
    utility_vs_base: Comparison | None = None


@dataclass(frozen=True, kw_only=True)
class Noisy(AttackAndUse):
    """Gaussian noise on all router logits: `sigma` times the spread of each layer, whose products are `std`."""

    sigma: float
    phase: Phase
    std: tuple[float, ...]
    vs_base: Comparison


# ---------------------------------------------------------------------- routes


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


# ---------------------------------------------------------------------- other seeds of the methods


@dataclass(frozen=True)
class Spread:
    mean: float
    min: float
    max: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(float(np.mean(values)), min(values), max(values))


@dataclass(frozen=True)
class RankingSeeds:
    seeds: tuple[int, ...]
    rankings: tuple[tuple[int, ...], ...]
    top1: tuple[int, ...]
    spearman: Spread | None


@dataclass(frozen=True)
class MaskingSeeds:
    routers: int
    phase: Phase
    seeds: tuple[int, ...]
    layers: tuple[tuple[int, ...], ...]
    asr: tuple[float, ...]
    mean: float
    min: float
    max: float


@dataclass(frozen=True)
class FsourSeeds:
    seeds: tuple[int, ...]
    asr: tuple[float, ...]
    asr_at_1: tuple[float, ...]
    pairs: tuple[float, ...]
    mean: float
    min: float
    max: float


@dataclass(frozen=True)
class MethodSeeds:
    """The methods under several seeds on the same prompts: a spread of its own, never part of n."""

    rosais: RankingSeeds | None = None
    masking: tuple[MaskingSeeds, ...] = ()
    fsour: FsourSeeds | None = None


# ---------------------------------------------------------------------- all of it


@dataclass(frozen=True, kw_only=True)
class AuditResults(Results):
    """What an audit finds.

    Attributes:
        splits: Prompts of each split, and how many of them were used.
        universal: One route for all prompts; None if none was asked for.
        utility, over_refusal: Benign requests answered, harmless ones refused; None if there are none.
        fsour, guided: Searches of routes; None for one that was not run. `side_by_side`: where both were.
    """

    job: str = "audit"
    splits: Mapping[str, int]
    base: BaseRates
    utility: Rate | None
    over_refusal: Rate | None
    multi_turn: MultiTurn | None
    rosais: tuple[RouterScore, ...]
    rosais_settings: RosaisSettings
    reach: Reach | None = None
    masking: tuple[Masked, ...]
    noise: tuple[Noisy, ...]
    fsour: Fsour | None = None
    guided: GuidedRoutes | None = None
    side_by_side: SideBySide | None = None
    universal: UniversalRates | None = None
    attacks: tuple[AttackResult, ...] = ()
    seeds: MethodSeeds | None = None
    tasks: TaskResults | None = None
    answers: tuple[AnswersUnder, ...] = ()

    @property
    def route_searches(self) -> dict[str, FoundRoutes]:
        """The searches of routes that were run, by the name of the method."""
        named = {"Guided": self.guided, "F-SOUR": self.fsour}
        return {name: found for name, found in named.items() if found is not None}

    @property
    def phases(self) -> list[Phase]:
        """Phases in which routers were masked."""
        return list(dict.fromkeys(record.phase for record in self.masking if record.routers))

    @property
    def unmasked(self) -> Masked | None:
        """The record without any masked router."""
        return next((record for record in self.masking if not record.routers), None)

    def most_masked(self, phase: Phase | None = None) -> Masked | None:
        """The record with most masked routers, the first phase before others: chosen by n, never by its rate."""
        found = [record for record in self.masking if record.routers and phase in (None, record.phase)]
        return max(found, key=lambda record: record.routers, default=None)

    @property
    def top_router(self) -> RouterScore | None:
        """The router of rank 1."""
        return min(self.rosais, key=lambda row: row.rank, default=None)
