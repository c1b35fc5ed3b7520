"""What a constant mask can reach that is learnt on the very contexts that it is scored on: a bound, no result."""

from __future__ import annotations

from dataclasses import replace

from pointsman.jobs.steer.learning import Learning, gather_material
from pointsman.jobs.steer.lessons import Lessons
from pointsman.jobs.steer.outcome import ask_in_stage
from pointsman.jobs.steer.played import PlayedSplit, Refusals
from pointsman.jobs.steer.results import UpperBound
from pointsman.methods.mascing import circuit
from pointsman.routing.intervention import Phase


def upper_bound(
    learning: Learning, lessons: Lessons, test: PlayedSplit, refusals: Refusals, phase: Phase
) -> UpperBound | None:
    """Learn through the model on the test split, if that is asked for."""
    plan, sigma = learning.plan, learning.material.sigma
    if not plan.upper_bound:
        return None
    on_test = replace(learning, material=gather_material(lessons, test, refusals, sigma))
    objective = learning.bench.question.scenario.objective
    lambda_, hold = plan.lambdas_for(objective)[0], plan.holds_for(objective)[0]
    matrix = on_test.through_model(plan.seed, lambda_, hold, phase, None, key="upper_bound")
    mask = matrix.mask(sigma, 1.0, phase)
    outcome = ask_in_stage(
        learning.bench, test.prompts, mask, "test/upper_bound", "Test: upper bound", stage="upper_bound"
    )
    return UpperBound(
        **vars(outcome.rates),
        what=f"learnt through the model on the test contexts themselves, {plan.steps_for(objective)} steps, alpha 1, "
        f"{phase}: no result, but a bound for a constant mask found in this way",
        entries=len(circuit(matrix.values)),
    )
