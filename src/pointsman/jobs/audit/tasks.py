"""Tasks and own answers under the audit's largest mask, and under as large a one on random routers."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import AuditPrompts
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.results import Masked, Noisy
from pointsman.methods.attempts import Attempt
from pointsman.methods.dataset_mask import DatasetMask
from pointsman.methods.noise import Noise
from pointsman.routing.intervention import Intervention
from pointsman.runs.answer_loss import AnswersUnder, measure_answers
from pointsman.runs.bench import Bench
from pointsman.runs.tasks import Arm, TaskResults, TaskStage


def solve_under_masks(
    bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts, tasks: TaskStage, masking: Sequence[Masked]
) -> TaskResults:
    """Solve tasks as the model is, and under frozen masks, each of which is one for all prompts.

    Args:
        masking: With the mask that was frozen on most routers; the random control masks its first random set of
            routers, frozen on the discovery split in the same way.
    """
    first = [record for record in masking if record.routers and record.phase == plan.phases[0]]
    most = max(first, key=lambda record: record.routers)
    frozen, random, phase = most.controls["dataset"].mask or {}, most.controls.get("random"), most.phase
    kept = {int(layer): list(experts) for layer, experts in frozen.items()}
    arms = [Arm(f"top {most.routers} masked, {phase}", "routing", Intervention.force(kept, phase=phase))]
    if random is not None and random.draws:
        layers = random.draws[0].layers
        with bench.stage("tasks", "Mask on random routers", len(prompts.discovery)) as steps:
            chosen = DatasetMask(plan.samples, seed=plan.seed).search(
                bench.engine, prompts.discovery, layers, steps=steps.under("tasks")
            )
        arms.append(Arm(f"{most.routers} random masked, {phase}", "control", chosen.routing(phase)))
    return tasks.solve(bench, arms)


def measure_answers_under(
    bench: Bench[AuditQuestion],
    plan: Audit,
    prompts: AuditPrompts,
    said: Sequence[Attempt],
    masking: Sequence[Masked],
    noise: Sequence[Noisy],
) -> tuple[AnswersUnder, ...]:
    """What own answers lose under every frozen mask, and under every level of noise."""
    benign, arms = prompts.benign, list[Arm]()
    for record in masking:
        if record.routers:
            kept = {int(layer): list(chosen) for layer, chosen in (record.controls["dataset"].mask or {}).items()}
            name = f"top {record.routers} masked, frozen, {record.phase}"
            arms.append(Arm(name, "routing", Intervention.force(kept, phase=record.phase)))
    for level in noise:
        noisy, sigma = Noise(level.sigma, seed=plan.seed), [std / level.sigma for std in level.std]
        arms.append(Arm(f"noise of {level.sigma:g} sigma", "control", [noisy.routing(b, sigma) for b in benign]))
    return measure_answers(bench, benign, said, arms, seed=plan.seed) if benign and arms else ()
