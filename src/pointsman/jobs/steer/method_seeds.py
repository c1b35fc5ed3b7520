"""The chosen way of learning with other seeds: was it luck?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pointsman.jobs.steer.candidates import Candidate, choose, digest_of
from pointsman.jobs.steer.choosing import Choosing
from pointsman.jobs.steer.learning import Learning
from pointsman.jobs.steer.matrices import LearntMatrix
from pointsman.jobs.steer.outcome import Outcome, ask_in_stage
from pointsman.jobs.steer.played import PlayedSplit
from pointsman.jobs.steer.results import SeedOutcome
from pointsman.methods.mascing import circuit
from pointsman.routing.intervention import Intervention

Matrix = tuple[np.ndarray, ...]


def with_other_seeds(
    learning: Learning, choosing: Choosing, test: PlayedSplit, chosen: Candidate, after: Outcome
) -> tuple[tuple[SeedOutcome, ...], tuple[Matrix, ...]]:
    """The chosen way of learning with other seeds, each with its own strength from validation, on test.

    Returns:
        What each seed came to, the run's own first, and its matrix; nothing if only one seed is asked for.
    """
    plan, bench = learning.plan, learning.bench
    if plan.method_seeds < 2:
        return (), ()
    assert chosen.matrix is not None
    matrices, rows = [chosen.matrix], [_row(plan.seed, chosen, chosen.matrix, after)]
    for seed in range(plan.seed + 1, plan.seed + plan.method_seeds):
        matrix = replace(_learn_again(learning, seed, chosen), seed=seed)
        tried = choosing.with_matrix(matrix, chosen)
        candidate = choose(tried)[0].candidate if tried else None  # None: all entries were cut
        routing = candidate.routing if candidate else Intervention()
        key = f"test/seed-{seed}/{digest_of(routing)}"
        outcome = ask_in_stage(bench, test.prompts, routing, key, f"Test: seed {seed}", stage="seeds")
        matrices.append(matrix.values)
        rows.append(_row(seed, candidate, matrix.values, outcome))
    return tuple(rows), tuple(matrices)


def _learn_again(learning: Learning, seed: int, chosen: Candidate) -> LearntMatrix:
    """The matrix that another seed gives in the chosen way, at the same lambda and phase."""
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


def _row(seed: int, candidate: Candidate | None, matrix: Matrix, outcome: Outcome) -> SeedOutcome:
    return SeedOutcome(
        **vars(outcome.rates), seed=seed, id=candidate.id if candidate else "zero",
        alpha=candidate.alpha if candidate else None, entries=len(circuit(matrix)),
    )  # fmt: skip
