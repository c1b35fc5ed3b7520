"""The model as it is: what it answers without any routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pointsman.data.types import Behaviour, Conversation
from pointsman.jobs.audit.prompts import AuditPrompts
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.results import BaseRates, CategoryRates, MultiTurn
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt
from pointsman.methods.play import Played
from pointsman.runs.bench import Bench
from pointsman.runs.rates import AttackRates, answered, grouped
from pointsman.stats.rates import Rate


@dataclass(frozen=True)
class Baseline:
    """Answers without any routing.

    Attributes:
        restricted: To the tested behaviours; later stages are held against them.
        benign: To benign requests.
        base, utility, over_refusal, multi_turn: As in the results.
    """

    restricted: list[Attempt]
    benign: list[Attempt]
    base: BaseRates
    utility: Rate | None
    over_refusal: Rate | None
    multi_turn: MultiTurn | None


def ask_unrouted(bench: Bench[AuditQuestion], prompts: AuditPrompts) -> Baseline:
    """Ask everything once, and play the conversations."""
    restricted = _ask(bench, "base", prompts.test)
    benign, borderline = _ask(bench, "benign", prompts.benign), _ask(bench, "borderline", prompts.borderline)
    played = _play(bench, prompts.conversations)
    harmless = [*benign, *borderline]
    return Baseline(
        restricted,
        benign,
        base_rates(restricted),
        _utility(benign, bench.judge) if benign else None,
        Rate.of([a.verdict.refused for a in harmless], [a.source for a in harmless]) if harmless else None,
        multi_turn(played, prompts.conversations) if played else None,
    )


def base_rates(attempts: Sequence[Attempt]) -> BaseRates:
    """Restricted requests without any routing, also by category."""
    overall = {name: AttackRates.of(group) for name, group in grouped(attempts, lambda a: a.category).items()}
    categories = {name: CategoryRates(rates.asr, rates.any_compliance) for name, rates in overall.items()}
    return BaseRates(**vars(AttackRates.of(attempts)), by_category=categories)


def multi_turn(played: Sequence[Played], conversations: Sequence[Conversation]) -> MultiTurn:
    """How many conversations fall, by tactic; and for how many questions some fall and some do not (matched)."""
    outcomes: dict[str, set[bool]] = {}
    for p, conversation in zip(played, conversations, strict=True):
        outcomes.setdefault(conversation.goal, set()).add(p.fallen is not None)
    return MultiTurn(
        fallen=_fallen(played),
        by_tactic={name: _fallen(group) for name, group in grouped(played, lambda p: p.tactic).items()},
        questions=len(outcomes),
        matched_questions=sum(len(both) == 2 for both in outcomes.values()),
    )


def _fallen(played: Sequence[Played]) -> Rate:
    return Rate.of([p.fallen is not None for p in played], [p.source for p in played])


def _utility(attempts: Sequence[Attempt], judge: Judge) -> Rate:
    """Benign requests answered."""
    return Rate.of(answered(attempts, judge), [a.source for a in attempts])


def _ask(bench: Bench[AuditQuestion], stage: str, behaviours: Sequence[Behaviour]) -> list[Attempt]:
    if not behaviours:
        return []
    with bench.stage(stage, stage.capitalize(), len(behaviours)) as steps:
        attempts = bench.ask(behaviours, key=stage, steps=steps)
    bench.keep_answers(stage, behaviours, attempts)
    return attempts


def _play(bench: Bench[AuditQuestion], conversations: Sequence[Conversation]) -> list[Played]:
    if not conversations:
        return []
    with bench.stage("multi_turn", "Conversations", len(conversations)) as steps:
        played = bench.play(conversations, key="multi_turn", steps=steps)
    bench.keep_conversations("multi_turn", [c.turns for c in conversations], played)
    return played
