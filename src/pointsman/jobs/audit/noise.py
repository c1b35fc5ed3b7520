"""The control without any choice: Gaussian noise on all router logits."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import AuditPrompts, with_targets
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.results import AttackAndUse, Noisy
from pointsman.methods.attempts import Attempt
from pointsman.methods.noise import Noise, spread
from pointsman.runs.bench import Bench
from pointsman.runs.rates import AttackRates, compare_success


def add_noise(
    bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts, base: Sequence[Attempt]
) -> tuple[Noisy, ...]:
    """Every behaviour asked once at every level of noise.

    Args:
        base: Answers to the tested behaviours as the model is.
    """
    if not plan.noise:
        return ()
    engine, judge, seed, test = bench.engine, bench.judge, plan.seed, prompts.test
    benign = with_targets(prompts.benign[: plan.utility_prompts])
    found = []
    total = len(prompts.discovery) + len(plan.noise) * (len(test) + len(benign))
    with bench.stage("noise", "Noise", total) as steps:
        sigma = spread(engine, prompts.discovery, steps=steps)
        for level in plan.noise:
            method = Noise(level, max_new_tokens=bench.answer_tokens, seed=seed)
            attempts = method.ask(engine, test, judge, sigma, steps=steps)
            answers = method.ask(engine, benign, judge, sigma, steps=steps.under("utility"))
            bench.keep_answers(f"noise-{level}", test, attempts)
            found.append(
                Noisy(
                    **vars(AttackAndUse.beside_use(AttackRates.of(attempts, seed), answers, judge, seed)),
                    sigma=level,
                    phase=method.phase,
                    std=tuple(level * s for s in sigma),
                    vs_base=compare_success(attempts, base, seed),
                )
            )
    return tuple(found)
