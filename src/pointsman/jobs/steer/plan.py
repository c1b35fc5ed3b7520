"""What a steering run is given, and `Steer`: its parameters, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Le, MinLen

from pointsman.data.objective import Objective
from pointsman.data.types import Split
from pointsman.jobs.parameters import Count, Formerly, Metavar, Positive, check
from pointsman.routing.phase import Phase
from pointsman.routing.rank import RANKS

Start = Literal["zero", "surrogate"]
Init = Literal["zero", "paper"]
Contrast = Literal["topic", "benign"]
Searches = Literal["each", "joint"]
Way = Literal["conditional", "mascing"]
Rival = Literal["conditional", "surrogate_only", "on_policy", "through_model", "steermoe_paired", "steermoe", "random"]
RIVALS: tuple[Rival, ...] = get_args(Rival)
CONSTANT: tuple[Rival, ...] = ("surrogate_only", "on_policy", "through_model")
"""Ways to a constant vector on router logits."""
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class SteerInputs:
    """What a steering run is given beside the model.

    Attributes:
        scenario: A scenario that comes with Pointsman (`scenario list`) or a YAML file (`scenario init`).
        utility_tasks: Folder with task files of your own for --utility. They are code, and lm-eval runs it.
    """

    scenario: Annotated[str, Metavar("NAME|FILE")]
    utility_tasks: Annotated[Path, Metavar("FOLDER")] | None = None


@dataclass(frozen=True)
class Steer:
    """What a steering run does; the scenario says what for.

    Attributes:
        method: How the mask is found: a low-rank rule that reads what each router reads, learnt through the model
            (conditional), or constant vectors, found on a surrogate and refined (mascing).
        seed: Of splits, surrogate, matrices, batches and random masks.
        limit: Most prompts of each kind to test; None for all.
        learn: Most conversations (or scenario requests) to learn from, and half as many of each kind that should stay
            as it is; None for all.
        validate: Most prompts of each kind to choose on; None for all.
        surrogate_seeds: Surrogates that are trained, for the stability of their circuits.
        method_seeds: Learn again in the way that was chosen with this many seeds, each reported on test.
        contrast: What the refused requests of an `allow` scenario are held against: requests of the same topic that are
            answered (where the model answers too few, the same ones with their own targets), or (benign) harmless
            requests as well, as in the paper.
        init: Where a matrix starts on the surrogate: at zero, or (paper) at random within sqrt(6 / experts), as the
            paper's code does.
        rounds: Rounds on policy.
        through_steps: Optimisation steps through the model; None for 150 (defend), 400 (allow).
        through_lambdas: Weight of the L1 norm of a matrix that is learnt through the model, in nats; empty for 0.01
            (defend), 0.001 (allow).
        through_holds: Weight of what should stay as it is, in learning through the model; empty for 1 (defend), 3
            (allow).
        through_phases: When matrices that are learnt through the model are in force: those of the scenario's grid
            among these, or its first.
        through_starts: Where an optimisation through the model starts: zero, or the surrogate's matrix (the one that
            turns most of the model's discovery contexts).
        rank: Of a conditional mask: how many directions of its input each router tells apart.
        conditional_steps: Optimisation steps of a conditional mask; what is learnt after every 25 is a candidate, so
            that choosing stops it early.
        conditional_phase: Tokens that a conditional mask is in force at; only over both can it be folded.
        conditional_hold: Weight of what should stay as it is, in learning a conditional mask.
        decay: Weight of the size of a conditional mask, squared, against that of the routers' own weights, in nats.
        threshold: A conditional mask does nothing below a threshold, which is learnt too. It then cannot be folded.
        lesson_tokens: Tokens of an answer, from its beginning, that count in learning through the model.
        finalists: Candidates of every method that answer on validation.
        searches: How strong the masks of a way to learn may be is searched for each way by itself, so that each stands
            on test at its best; or (joint), which is cheaper, no further than another way gains more.
        rivals: Asked on test beside the chosen mask, each chosen on validation in the same way: the best of every other
            way to find a mask (surrogate_only: MASCing as published), SteerMoE (steermoe_paired as published,
            steermoe counted on contexts), random masks; None for random (conditional), all but conditional (mascing).
        random_draws: Random masks: those of the circuit with its entries shuffled, or the conditional one with its
            experts shuffled in every layer. The control; 0 runs without.
        moved_prompts: Test prompts of each kind that are read with and without the mask, to show which experts it moves
            for which words; 0 for none.
        latency_rounds: Timed rounds with and without the mask; 0 for none.
        upper_bound: Also learn on the test prompts themselves: what could a constant mask reach?
        answer_loss: Measure how much less probable a routing makes the model's own answers to benign requests.
        utility: Tasks of lm-eval to solve as well, by name, to see what the routing costs; empty for none.
        utility_limit: Documents of each of these tasks at most; None for all.
        utility_chat: Ask them in the model's chat template.
        max_new_tokens: Length of answers; None for the scenario's.
        confidence: With which a mask must keep every limit on validation, in percent: that of a one-sided bound; None
            for point estimates alone.
        wrong_withstands: Count a conversation as withstood whose request is answered with wrong content.
    """

    method: Annotated[Way, Formerly("mascing")] = "conditional"
    seed: Annotated[int, Ge(0), Le(LARGEST_SEED)] = 0
    limit: Positive | None = 100
    learn: Positive | None = 400
    validate: Positive | None = 100
    surrogate_seeds: Positive = 3
    method_seeds: Positive = 1
    contrast: Annotated[Contrast, Formerly("benign")] = "topic"
    init: Annotated[Init, Formerly("zero")] = "zero"
    rounds: Positive = 1
    through_steps: Positive | None = None
    through_lambdas: tuple[Annotated[float, Ge(0)], ...] = ()
    through_holds: tuple[Annotated[float, Gt(0)], ...] = ()
    through_phases: tuple[Phase, ...] = ("prefill",)
    through_starts: Annotated[tuple[Start, ...], MinLen(1)] = ("zero",)
    rank: Annotated[Annotated[int, Ge(1), Le(RANKS)], Formerly(4)] = 4
    conditional_steps: Annotated[Positive, Formerly(150)] = 150
    conditional_phase: Annotated[Phase, Formerly("both")] = "both"
    conditional_hold: Annotated[Annotated[float, Gt(0)], Formerly(10.0)] = 10.0
    decay: Annotated[Annotated[float, Ge(0)], Formerly(10.0)] = 10.0
    threshold: Annotated[bool, Formerly(False)] = False
    lesson_tokens: Positive = 64
    finalists: Positive = 2
    searches: Annotated[Searches, Formerly("joint")] = "each"
    rivals: Annotated[tuple[Rival, ...] | None, Formerly(("steermoe", "random", "surrogate_only"))] = None
    random_draws: Count = 3
    moved_prompts: Annotated[Count, Formerly(0)] = 50
    latency_rounds: Count = 5
    upper_bound: bool = False
    answer_loss: Annotated[bool, Formerly(False)] = False
    utility: Annotated[tuple[Annotated[str, Metavar("NAME[,NAME]")], ...], Formerly(())] = ()
    utility_limit: Annotated[Positive | None, Formerly(100)] = 100
    utility_chat: Annotated[bool, Formerly(False)] = False
    max_new_tokens: Positive | None = None
    confidence: Annotated[Annotated[int, Ge(50), Le(99)] | None, Formerly(None)] = 80
    wrong_withstands: Annotated[bool, Formerly(True)] = False

    def __post_init__(self) -> None:
        check(self)

    @property
    def asked(self) -> tuple[Rival, ...]:
        """The rivals."""
        if self.rivals is not None:
            return self.rivals
        return ("random",) if self.method == "conditional" else tuple(r for r in RIVALS if r != "conditional")

    @property
    def learns_conditional(self) -> bool:
        """Whether a conditional mask is learnt."""
        return self.method == "conditional" or "conditional" in self.asked

    @property
    def learns_constant(self) -> bool:
        """Whether constant masks are learnt, and their surrogate trained."""
        return self.method == "mascing" or any(rival in CONSTANT for rival in self.asked)

    @property
    def confidence_share(self) -> float | None:
        """The confidence as a share."""
        return None if self.confidence is None else self.confidence / 100

    def most(self, split: Split) -> tuple[int | None, int | None]:
        """Prompts of what the scenario is about, and of each kind that should stay as it is; None for all."""
        if split != "discovery":
            most = self.validate if split == "validation" else self.limit
            return most, most
        return self.learn, None if self.learn is None else max(1, self.learn // 2)

    def lambdas_for(self, objective: Objective) -> tuple[float, ...]:
        """Weights of norm1(S) of the matrices that are learnt through the model."""
        return self.through_lambdas or ((1e-2,) if objective == "defend" else (1e-3,))

    def holds_for(self, objective: Objective) -> tuple[float, ...]:
        """Weights of the divergence on what should stay as it is."""
        return self.through_holds or ((1.0,) if objective == "defend" else (3.0,))

    def steps_for(self, objective: Objective) -> int:
        """Optimisation steps through the model."""
        return self.through_steps or (150 if objective == "defend" else 400)

    def phases_for(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Of a grid with these phases, those that are learnt for through the model."""
        return tuple(phase for phase in self.through_phases if phase in phases) or phases[:1]
