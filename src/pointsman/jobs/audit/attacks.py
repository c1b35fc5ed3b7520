"""Attacks of other packages, each beside its own control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pointsman.data.types import Behaviour
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.methods.attack import Attack, make_attack, written_attack
from pointsman.methods.attempts import Attempt, refuse_other_answers
from pointsman.runs.bench import Bench
from pointsman.runs.rates import AttackRates, compare_success
from pointsman.runs.results import Claim, Figure
from pointsman.stats.paired import Comparison


@dataclass(frozen=True, kw_only=True)
class AttackResult(AttackRates):
    """An attack on the tested behaviours.

    Attributes:
        name: With its parameters, as on the command line.
        vs_base: Paired difference of ASR to the model as it is.
        control: The attack's control, and its `control_name`; None if it has none.
        difference_control: Paired difference of ASR to it.
    """

    name: str
    vs_base: Comparison
    control_name: str | None = None
    control: AttackRates | None = None
    difference_control: Comparison | None = None

    def claim(self) -> Claim:
        """Whether the attack does more than its control."""
        id, sentence = f"attack_{self.name}_beats_control", f"{self.name} does more than its control"
        if self.control is None or self.difference_control is None:
            return Claim.not_measured(id, sentence, "the attack brings no control")
        control = Figure(self.control_name or "its control", self.control.asr)
        return Claim.of_difference(id, sentence, Figure(self.name, self.asr), control, self.difference_control)


def try_attacks(
    bench: Bench[AuditQuestion], plan: Audit, behaviours: Sequence[Behaviour], base: Sequence[Attempt]
) -> tuple[AttackResult, ...]:
    """Every attack that the plan names, and its control.

    Args:
        base: Answers to these behaviours as the model is.
    """
    found = []
    for written in plan.other_attacks:
        attack = make_attack(written)
        name, attempts = written_attack(attack), _try(bench, plan, attack, behaviours)
        vs_base, control = compare_success(attempts, base, plan.seed), attack.control()
        rates = vars(AttackRates.of(attempts, plan.seed))
        if control is None:
            found.append(AttackResult(**rates, name=name, vs_base=vs_base))
            continue
        others = _try(bench, plan, control, behaviours)
        found.append(
            AttackResult(
                **rates,
                name=name,
                vs_base=vs_base,
                control_name=written_attack(control),
                control=AttackRates.of(others, plan.seed),
                difference_control=compare_success(attempts, others, plan.seed),
            )
        )
    return tuple(found)


def _try(bench: Bench[AuditQuestion], plan: Audit, attack: Attack, behaviours: Sequence[Behaviour]) -> list[Attempt]:
    name = written_attack(attack)
    with bench.stage(f"attack {name}", f"Attack {name}", len(behaviours)) as steps:
        attempts = attack.attack(
            bench.engine, behaviours, bench.judge, max_new_tokens=bench.answer_tokens, seed=plan.seed,
            steps=steps.under(f"attack/{name}"),
        )  # fmt: skip
    refuse_other_answers(f"the attack {name}", [a.id for a in attempts], [b.id for b in behaviours])
    bench.keep_answers(f"attack-{name}", behaviours, attempts)
    return attempts
