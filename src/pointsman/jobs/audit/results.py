"""What an audit finds, as it stands in ``results.json`` (METHODS sections 0 to 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pointsman.jobs.audit.attacks import AttackResult
from pointsman.jobs.audit.route_results import FoundRoutes, Fsour, GuidedRoutes, SideBySide, UniversalRates
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt
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
