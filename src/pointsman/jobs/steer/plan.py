"""`Steer`: the parameters of a steering run, as data. Its stages read them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pointsman.data.objective import Objective
from pointsman.data.types import Split
from pointsman.errors import UsageError
from pointsman.routing.intervention import Phase

Start = Literal["zero", "surrogate"]


@dataclass(frozen=True)
class Steer:
    """What a steering run does; the scenario says what for.

    Attributes:
        seed: Of splits, surrogate, matrices, batches and random masks.
        limit: At most this many of each kind of prompt on the test split; None for all.
        learn: At most this many conversations (or scenario requests) to learn from, and half as many of each kind
            that should stay as it is; None for all.
        validate: At most this many of each kind on the validation split; None for all.
        surrogate_seeds: Surrogates that are trained, for the stability of their circuits.
        method_seeds: Repeat the chosen way of learning with this many seeds, each reported on test.
        rounds: Of `on_policy`.
        through_steps: Optimisation steps through the model; None for 150 (defend) or 400 (allow).
        through_lambdas: Weights of norm1(S) in nats, of the matrices that are learnt through the model; empty for 0.01
            (defend) or 0.001 (allow).
        through_holds: Weights of the divergence on what should stay as it is, of these matrices; empty for 1 (defend)
            or 3 (allow).
        through_phases: Of these matrices; those of the scenario's grid, or its first.
        through_starts: Where they start: ``zero``, ``surrogate`` (the matrix on the surrogate that turns most of the
            model's discovery contexts), or both.
        lesson_tokens: Tokens of an answer, from its beginning, that count in learning through the model.
        finalists: Candidates per method, and per refinement of MASCing, that are generated with on validation.
        random_draws: Random masks with the circuit's entries, shuffled.
        latency_rounds: Timed rounds of generation with and without the mask; 0 for none.
        upper_bound: Also learn through the model on the test split, to see what a constant mask could reach.
        max_new_tokens: Answer length; None for the scenario's.
    """

    seed: int = 0
    limit: int | None = None
    learn: int | None = None
    validate: int | None = None
    surrogate_seeds: int = 3
    method_seeds: int = 1
    rounds: int = 1
    through_steps: int | None = None
    through_lambdas: tuple[float, ...] = ()
    through_holds: tuple[float, ...] = ()
    through_phases: tuple[Phase, ...] = ("prefill",)
    through_starts: tuple[Start, ...] = ("zero",)
    lesson_tokens: int = 64
    finalists: int = 2
    random_draws: int = 3
    latency_rounds: int = 5
    upper_bound: bool = False
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "learn", "validate", "through_steps", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}", f"Give {name.replace('_', '-')} of at least 1, or leave it out")
        for name in ("surrogate_seeds", "method_seeds", "rounds", "finalists", "lesson_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', '-')} is {getattr(self, name)}", "Give at least 1")
        for name in ("seed", "random_draws", "latency_rounds"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name.replace('_', '-')} is {getattr(self, name)}", "Give 0 or more")
        if not self.through_starts or any(start not in get_args(Start) for start in self.through_starts):
            raise UsageError(f"Starts of {self.through_starts}", f"Use {' or '.join(get_args(Start))}")
        for name in ("through_lambdas", "through_holds", "through_starts"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UsageError(f"{name.replace('_', '-')[:-1]} names a value twice", "Name every value once")
        for value in self.through_lambdas:
            if not 0 <= value < float("inf"):
                raise UsageError(f"through-lambda is {value:g}", "Give a finite number of 0 or more")
        for value in self.through_holds:
            if not 0 < value < float("inf"):
                raise UsageError(f"through-hold is {value:g}", "Give a finite number above 0")

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


def steer_config(plan: Steer, **options: Any) -> dict[str, Any]:
    """Everything that decides the results, as JSON, for the run's manifest."""
    return {
        **options, **asdict(plan), "through_lambdas": list(plan.through_lambdas),
        "through_holds": list(plan.through_holds), "through_phases": list(plan.through_phases),
        "through_starts": list(plan.through_starts),
    }  # fmt: skip
