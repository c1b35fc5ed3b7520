"""The test split: the chosen mask beside its rivals, other seeds of its method, and a bound (METHODS section 5.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pointsman.data.scenario import Limits
from pointsman.jobs.steer.candidates import Candidate, choose, digest_of, matrix_of
from pointsman.jobs.steer.choosing import Choice, Choosing
from pointsman.jobs.steer.learning import Learning, gather_material
from pointsman.jobs.steer.lessons import Lessons
from pointsman.jobs.steer.limits import broken_limits
from pointsman.jobs.steer.maps import TrainedMaps
from pointsman.jobs.steer.matrices import TrainedMatrix
from pointsman.jobs.steer.outcome import MEASURES, Outcome, ask_in_stage, compare_on, keep_outcome
from pointsman.jobs.steer.plan import RIVALS, Rival
from pointsman.jobs.steer.played import PlayedSplit, Refusals, with_last_turns
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.jobs.steer.results import Comparisons, Matrix, SeedOutcome, TestArms, UpperBound
from pointsman.methods.mascing import circuit
from pointsman.routing.intervention import Intervention
from pointsman.runs.bench import Bench


@dataclass(frozen=True)
class Arms:
    """The outcomes on the test split; None where there is no such mask."""

    before: Outcome
    after: Outcome
    steermoe: Outcome | None = None
    random: Outcome | None = None
    surrogate_only: Outcome | None = None
    on_policy: Outcome | None = None
    through_model: Outcome | None = None
    steermoe_paired: Outcome | None = None
    conditional: Outcome | None = None

    def tested(self, limits: Limits) -> TestArms:
        """The rates of each, and the limits that it breaks."""
        arms: dict[str, Outcome | None] = vars(self)
        return TestArms(
            **{
                arm: outcome.tested(broken_limits(outcome.rates, self.before.rates, limits))
                for arm, outcome in arms.items()
                if outcome is not None
            }
        )

    def comparisons(self) -> Comparisons:
        """The chosen mask against each of the others."""
        rivals = {f"vs_{name}": getattr(self, name) for name in RIVALS}
        against = {name: compare_on("gain", self.after, rival) for name, rival in rivals.items() if rival}
        return Comparisons(**{m: compare_on(m, self.after, self.before) for m in MEASURES}, **against)


def ask_arms(bench: Bench[SteerQuestion], test: PlayedSplit, choice: Choice, rivals: Sequence[Rival]) -> Arms:
    """Ask the test split of the unsteered model's last turns, of the chosen mask and of its rivals."""

    def ask(arm: str, candidate: Candidate) -> Outcome:
        key, title = f"test/{arm}/{digest_of(candidate.routing)}", f"Test: {arm.replace('_', ' ')}"
        return ask_in_stage(bench, test.prompts, candidate.routing, key, title, stage="test", fallen=test.fallen)

    best = choice.best.candidate
    before = with_last_turns(bench, test, "Test: before")
    after = ask("after", best)
    found = {arm: choice.best_of(arm) for arm in rivals if arm != best.arm}
    others = {arm: ask(arm, candidate) for arm, candidate in found.items() if candidate is not None}
    keep_outcome(bench, "test/before", test.prompts, before)
    keep_outcome(bench, "test/after", test.prompts, after)
    return Arms(before, after, **others)


# ---------------------------------------------------------------------- other seeds


def with_other_seeds(
    learning: Learning, choosing: Choosing, test: PlayedSplit, chosen: Candidate, after: Outcome
) -> tuple[tuple[SeedOutcome, ...], tuple[Matrix, ...]]:
    """The chosen way of learning with other seeds, each with its own strength from validation, on test.

    Returns:
        What each seed came to, the run's own first, and the matrices of constant masks; nothing if only one seed is
        asked for.
    """
    plan, bench = learning.plan, learning.bench
    if plan.method_seeds < 2:
        return (), ()
    rows, circuits = [_row(plan.seed, chosen, after)], [chosen.matrix]
    for seed in range(plan.seed + 1, plan.seed + plan.method_seeds):
        tried = choosing.with_mask(_learn_again(learning, seed, chosen), chosen)
        candidate = choose(tried)[0].candidate if tried else None  # None: all entries were cut
        routing = candidate.routing if candidate else Intervention()
        key = f"test/seed-{seed}/{digest_of(routing)}"
        outcome = ask_in_stage(bench, test.prompts, routing, key, f"Test: seed {seed}", stage="seeds")
        rows.append(_row(seed, candidate, outcome))
        circuits.append(matrix_of(candidate, bench.engine) if candidate else _nothing(learning))
    return tuple(rows), tuple(matrix for matrix in circuits if matrix is not None and chosen.maps is None)


def _learn_again(learning: Learning, seed: int, chosen: Candidate) -> TrainedMatrix | TrainedMaps:
    """The mask that another seed gives in the chosen way, at the same lambda and phase, or after as many steps."""
    if chosen.maps is not None:
        return next(trained for trained in learning.conditional(seed) if trained.step == chosen.step)
    return replace(_matrix_again(learning, seed, chosen), seed=seed)


def _matrix_again(learning: Learning, seed: int, chosen: Candidate) -> TrainedMatrix:
    lambda_, begin = chosen.lambda_ or 0.0, None
    if chosen.refinement != "through_model" or chosen.start != "zero":
        _, matrices = learning.on_surrogate(seed)
        if chosen.refinement == "on_policy":
            matrices = learning.on_policy(seed, matrices)
        if chosen.refinement != "through_model":
            return next(matrix for matrix in matrices if matrix.lambda_ == lambda_)
        phases = learning.plan.phases_for(learning.bench.question.scenario.grid.phases)
        begin = learning.strongest(matrices, phases[0])
    return learning.through_model(seed, lambda_, chosen.hold or 1.0, chosen.phase, begin)


def _nothing(learning: Learning) -> tuple[np.ndarray, ...]:
    return tuple(np.zeros(router.experts) for router in learning.bench.engine.routers)


def _row(seed: int, candidate: Candidate | None, outcome: Outcome) -> SeedOutcome:
    return SeedOutcome(
        **vars(outcome.rates), seed=seed, id=candidate.id if candidate else "zero",
        alpha=candidate.alpha if candidate else None, entries=candidate.entries if candidate else 0,
    )  # fmt: skip


# ---------------------------------------------------------------------- a bound


def upper_bound(
    learning: Learning, lessons: Lessons, test: PlayedSplit, refusals: Refusals, chosen: Candidate
) -> UpperBound | None:
    """Learn through the model on the test split, if that is asked for."""
    plan, sigma = learning.plan, learning.material.sigma
    if not plan.upper_bound:
        return None
    on_test = replace(learning, material=gather_material(lessons, test, refusals, sigma, traced=chosen.maps is None))
    objective = learning.bench.question.scenario.objective
    if chosen.maps is not None:
        trained = on_test.conditional(plan.seed, key="upper_bound")[-1]
        mask, entries, steps, kind = trained.mask(1.0), chosen.entries, trained.step, "conditional"
    else:
        lambda_, hold = plan.lambdas_for(objective)[0], plan.holds_for(objective)[0]
        matrix = on_test.through_model(plan.seed, lambda_, hold, chosen.phase, None, key="upper_bound")
        mask, entries, steps = (
            matrix.mask(sigma, 1.0, chosen.phase),
            len(circuit(matrix.values)),
            plan.steps_for(objective),
        )
        kind = "constant"
    outcome = ask_in_stage(
        learning.bench, test.prompts, mask, "test/upper_bound", "Test: upper bound", stage="upper_bound"
    )
    return UpperBound(
        **vars(outcome.rates),
        what=f"learnt through the model on the test contexts themselves, {steps} steps, alpha 1, {chosen.phase}: no "
        f"result, but a bound for a {kind} mask found in this way",
        entries=entries,
    )
