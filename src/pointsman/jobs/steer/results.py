"""What a steering run, or the evaluation of a steering, finds, as it stands in ``results.json`` (METHODS section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pointsman.data.objective import Objective
from pointsman.data.scenario import Limits, Scenario
from pointsman.data.types import Split
from pointsman.jobs.steer.enough import Margin
from pointsman.jobs.steer.moved import Moved
from pointsman.methods.mascing import circuit, jaccard
from pointsman.methods.surrogate import LengthOnly, Matched
from pointsman.routing.intervention import Phase
from pointsman.routing.low_rank import LowRank
from pointsman.runs.answer_loss import AnswersUnder
from pointsman.runs.results import Results
from pointsman.runs.tasks import TaskResults
from pointsman.stats.auroc import Auroc
from pointsman.stats.calibration import Calibration
from pointsman.stats.paired import Comparison
from pointsman.stats.rates import Rate

Contrasted = Literal["topic", "target", "benign"]
"""What refused requests were held against: answered ones of the same topic, the same ones with their own targets, or
benign ones as well."""
Lambda = Annotated[float | None, Field(alias="lambda")]
Matrix = Sequence[npt.NDArray[Any]]
Method = Literal["conditional", "mascing", "through_model", "given", "steermoe_paired", "steermoe", "random"]
"""MASCing finds a matrix on a surrogate; ``through_model`` (ours) through the model itself; ``conditional`` (ours) is a
low-rank rule instead of a constant vector, learnt likewise. SteerMoE pins experts: by
activation rates on paired responses, as published, or on contexts. ``given``: nobody says how it was found."""


# ---------------------------------------------------------------------- what was asked


@dataclass(frozen=True)
class ScenarioFacts:
    name: str
    objective: Objective
    description: str
    limits: Limits
    hold: tuple[str, ...] | None

    @staticmethod
    def of(scenario: Scenario) -> ScenarioFacts:
        return ScenarioFacts(scenario.name, scenario.objective, scenario.description, scenario.limits, scenario.hold)


@dataclass(frozen=True)
class TurnCount:
    """Conversations that reach a turn (from 1) without having fallen, and how many of them fall there."""

    turn: int
    reached: int
    fallen: int


@dataclass(frozen=True, kw_only=True)
class ContextCounts:
    """What the surrogate could learn from one split."""

    played: int
    fallen: Rate
    by_turn: tuple[TurnCount, ...]
    by_tactic: Mapping[str, Rate]
    matched_pairs: int
    label1: int
    label0: int


# ---------------------------------------------------------------------- what was learnt


@dataclass(frozen=True)
class SurrogateSeed:
    seed: int
    accuracy: float
    auroc: float | None
    matched: float | None


@dataclass(frozen=True, kw_only=True)
class SurrogateFacts:
    """How well the surrogate knows, on held-out contexts, and on matched pairs of another split."""

    accuracy: float
    majority: float
    auroc: Auroc
    calibration: Calibration
    n_train: int
    n_held_out: int
    losses: tuple[float, ...]
    contexts: int
    batch: int
    matched: Matched | None
    length_only: LengthOnly
    seeds: tuple[SurrogateSeed, ...]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Contexts turned under a mask at alpha 1: by the surrogate's verdict, and by what the model says."""

    refinement: str
    lambda_: Lambda
    alpha: float
    phase: Phase
    surrogate_turned: float | None
    model_turned: Rate
    entries: int
    start: str | None
    hold: float | None


@dataclass(frozen=True, kw_only=True)
class MaskFacts:
    """A routing that might be chosen, without its numbers.

    Attributes:
        entries: Entries that are not zero, or experts that are pinned.
        norm1: Sum of abs(alpha * S); None for pins.
        start, hold: Of a mask that was learnt through the model.
        rank, step, decay: Of a conditional mask, and the optimisation steps after which it was taken.
        size: Of a conditional one: sum over layers of |alpha B A| / |W|.
        pinned: ``on``, ``off`` or ``both``; None for masks.
        on, off: Experts to pin on and off (n+, n-), of which a layer may leave some out; None for masks.
    """

    id: str
    method: Method
    refinement: str | None = None
    lambda_: Lambda = None
    alpha: float | None = None
    phase: Phase
    entries: int
    norm1: float | None = None
    start: str | None = None
    hold: float | None = None
    rank: int | None = None
    step: int | None = None
    decay: float | None = None
    size: float | None = None
    pinned: str | None = None
    on: int | None = None
    off: int | None = None

    @property
    def arm(self) -> str:
        """Among which of `TestArms` the best of its kind is, where another kind is chosen."""
        if self.method == "mascing":
            return "on_policy" if self.refinement == "on_policy" else "surrogate_only"
        return self.method


@dataclass(frozen=True, kw_only=True)
class OutcomeRates:
    """What a routing gains and costs on some prompts; None where there are no such prompts.

    Attributes:
        gain: Conversations withstood (defend), or requests of the scenario answered (allow).
        garbage: Of the scenario: answers that are nobody's success.
        benign, benign_conversations: Answered.
        over_refusal: Harmless requests refused.
        held: Restricted requests, of the categories to hold, refused.
    """

    gain: Rate
    garbage: Rate | None
    benign: Rate | None
    benign_conversations: Rate | None
    over_refusal: Rate | None
    held: Rate | None


@dataclass(frozen=True, kw_only=True)
class CandidateResult(MaskFacts, OutcomeRates):
    """A candidate on validation.

    Attributes:
        stage: ``fine``: it answered; ``coarse``: it was screened, and its rates are of what the model would say.
        borderline: Kept, in the screen.
        admissible: Within all limits; None where it was only screened.
        broken: Limits that it breaks.
        unsure: Limits that it does not keep with margin; None where no margin was asked for.
    """

    stage: Literal["fine", "coarse"]
    borderline: Rate | None = None
    admissible: bool | None
    broken: tuple[str, ...]
    unsure: tuple[str, ...] | None = None
    chosen: bool
    seconds_per_answer: float | None


@dataclass(frozen=True, kw_only=True)
class Chosen(MaskFacts):
    """The mask that is deployed, and why it was chosen; `admissible` is None where it was given.

    Attributes:
        unsure: Limits that it does not keep with margin on validation; None where no margin was asked for.
    """

    admissible: bool | None
    why: str
    unsure: tuple[str, ...] | None = None


@dataclass(frozen=True)
class CircuitEntry:
    layer: int
    expert: int
    value: float


@dataclass(frozen=True)
class CircuitStability:
    seeds: tuple[int, ...]
    jaccard: tuple[tuple[float, ...], ...]
    mean: float

    @staticmethod
    def of(seeds: Sequence[int], matrices: Sequence[Matrix]) -> CircuitStability | None:
        """How alike the circuits of several seeds are; None of fewer than two."""
        if len(matrices) < 2:
            return None
        table = tuple(tuple(round(jaccard(a, b), 4) for b in matrices) for a in matrices)
        pairs = [table[i][j] for i in range(len(table)) for j in range(i)]
        return CircuitStability(tuple(seeds), table, float(np.mean(pairs)))


@dataclass(frozen=True)
class ConditionalLayer:
    """What is added to one router's logits as a function of its input, at alpha 1.

    Attributes:
        norm: Of B A, as a share of that of W, the router's own weight; root mean square of `experts`.
        experts: Norms of the rows of B A, as shares of the mean norm of a row of W; in logits where an engine does not
            tell W. Shape: [E].
        threshold: Whether nothing is added below a threshold.
    """

    layer: int
    rank: int
    threshold: bool
    norm: float
    experts: tuple[float, ...]

    @staticmethod
    def of(layer: int, one: LowRank, norm: float) -> ConditionalLayer:
        """Facts about A and B of one layer.

        Args:
            norm: Mean norm of a row of the router's weight.
        """
        rows = np.linalg.norm(one.product, axis=1) / norm  # shape: [E]
        mean_square = float(np.sqrt((rows**2).mean()))
        return ConditionalLayer(layer, one.rank, one.threshold is not None, mean_square, tuple(rows.tolist()))


@dataclass(frozen=True, kw_only=True)
class CircuitFacts:
    """The entries of the chosen matrix, in units of `sigma`; `layers` are norms.

    Attributes:
        conditional: The layers that have a conditional part; None if the steering has none.
    """

    entries: tuple[CircuitEntry, ...]
    size: int
    possible: int
    layers: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    sigma: tuple[float, ...]
    stability: CircuitStability | None
    conditional: tuple[ConditionalLayer, ...] | None = None

    @staticmethod
    def of(
        matrix: Matrix,
        sigma: Sequence[float],
        stability: CircuitStability | None = None,
        *,
        maps: Mapping[int, LowRank] | None = None,
        norms: Sequence[float] = (),
    ) -> CircuitFacts:
        """Facts about S, and about A and B.

        Args:
            matrix: S. Shapes: [E_l].
            sigma: Shape: [L].
            maps: The conditional part, by MoE layer, at alpha 1.
            norms: Mean norms of the rows of the routers' weights; without them 1. Shape: [L].
        """
        conditional = [
            ConditionalLayer.of(n, one, norms[n] if norms else 1.0) for n, one in sorted((maps or {}).items())
        ]
        entries = tuple(CircuitEntry(*entry) for entry in circuit(matrix))
        return CircuitFacts(
            entries=entries,
            size=len(entries),
            possible=sum(map(len, matrix)),
            layers=tuple(float(np.abs(row).sum()) for row in matrix),
            matrix=tuple(tuple(row.tolist()) for row in matrix),
            sigma=tuple(sigma),
            stability=stability,
            conditional=tuple(conditional) or None,
        )


# ---------------------------------------------------------------------- what it does on test


@dataclass(frozen=True)
class GroupGain:
    gain: Rate


@dataclass(frozen=True, kw_only=True)
class TestOutcome(OutcomeRates):
    """One arm on the test split.

    Attributes:
        dsr_replay, dsr_context: The gain of a defence: whole conversations played again, and last turns alone.
        gsr: The gain where requests shall be answered.
        turns: Where conversations fall.
        broken: Limits that it breaks.
    """

    dsr_replay: Rate | None
    dsr_context: Rate | None
    gsr: Rate | None
    turns: tuple[TurnCount, ...]
    unscored: int
    any_compliance: Rate
    by_tactic: Mapping[str, GroupGain] | None = None
    by_category: Mapping[str, GroupGain]
    held_by_category: Mapping[str, Rate] | None
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TestArms:
    """The arms on the test split; those other than the first two are None where they were not run.

    Each of them is the best of one method on validation; the method of the chosen mask is `after` itself.
    """

    before: TestOutcome
    after: TestOutcome
    steermoe: TestOutcome | None = None
    random: TestOutcome | None = None
    surrogate_only: TestOutcome | None = None
    on_policy: TestOutcome | None = None
    through_model: TestOutcome | None = None
    steermoe_paired: TestOutcome | None = None
    conditional: TestOutcome | None = None


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """The chosen mask less no mask, measure by measure; and its gain less that of the other arms. All on test."""

    gain: Comparison | None
    garbage: Comparison | None
    benign: Comparison | None
    benign_conversations: Comparison | None
    over_refusal: Comparison | None
    held: Comparison | None
    vs_steermoe: Comparison | None = None
    vs_random: Comparison | None = None
    vs_surrogate_only: Comparison | None = None
    vs_on_policy: Comparison | None = None
    vs_through_model: Comparison | None = None
    vs_steermoe_paired: Comparison | None = None
    vs_conditional: Comparison | None = None


@dataclass(frozen=True)
class Overfit:
    validation: Rate
    test: Rate


@dataclass(frozen=True, kw_only=True)
class UpperBound(OutcomeRates):
    """What a constant mask reaches that was learnt on the test contexts themselves: a bound, no result."""

    what: str
    entries: int


@dataclass(frozen=True)
class Latency:
    """Time of a forward with the mask over that without: median of paired rounds with its interval."""

    ratio: float
    low: float
    high: float
    rounds: int
    rows: int
    seconds_per_forward: float


@dataclass(frozen=True, kw_only=True)
class SeedOutcome(OutcomeRates):
    """What another seed of the method came to on test."""

    seed: int
    id: str
    alpha: float | None
    entries: int


# ---------------------------------------------------------------------- all of it


@dataclass(frozen=True, kw_only=True)
class SteerResults(Results):
    """What a steering run finds. An evaluation has learnt and chosen nothing: what only learning gives is None there.

    Attributes:
        splits: Prompts by split and kind.
        contrast: Of contexts of label 0, where requests shall be answered; None where it was not said.
        baseline_validation: The unsteered model on validation.
        moved: What the steering moves on test prompts; None where it was not looked at.
        artefact: Where the steering lies in the run's folder.
        margin: With which limits were to be kept on validation; None if by point estimates alone.
        wrong_withstands: Whether a wrong answer to the request of a conversation counts as withstood. It did in all
            results that do not say.
    """

    scenario: ScenarioFacts
    splits: Mapping[Split, Mapping[str, int]]
    contexts: Mapping[Split, ContextCounts]
    contrast: Contrasted | None = None
    surrogate: SurrogateFacts | None = None
    gap: tuple[Gap, ...] = ()
    baseline_validation: OutcomeRates | None = None
    candidates: tuple[CandidateResult, ...] = ()
    chosen: Chosen
    circuit: CircuitFacts
    moved: Moved | None = None
    test: TestArms
    comparisons: Comparisons
    broken_on_test: tuple[str, ...]
    overfit: Overfit | None = None
    upper_bound: UpperBound | None = None
    latency: Latency | None = None
    seeds: tuple[SeedOutcome, ...] | None = None
    tasks: TaskResults | None = None
    answers: tuple[AnswersUnder, ...] = ()
    artefact: str | None = None
    margin: Margin | None = None
    wrong_withstands: bool = True

    @property
    def in_vain(self) -> str | None:
        """A mask that was learnt and gains nothing on test over the model without it."""
        before, after = self.test.before.gain, self.test.after.gain
        if self.job != "steer" or before.rate is None or after.rate is None or after.rate > before.rate:
            return None
        what = "withstands no more conversations" if self.scenario.objective == "defend" else "opens nothing"
        return (
            f"The chosen mask {what}: {100 * after.rate:.0f} % with it and {100 * before.rate:.0f} % without "
            f"(n = {after.n}, test)"
        )
