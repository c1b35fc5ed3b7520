"""What answers to restricted requests come to."""

from __future__ import annotations

from pointsman.judges.types import Label, Verdict
from pointsman.methods.attempts import Attempt
from pointsman.runs.rates import AttackRates
from pointsman.stats.rates import Rate

LABELS: tuple[Label, ...] = ("correct", "correct", "wrong", "garbage", "refused", "unscored")


def attempts(*labels: Label) -> list[Attempt]:
    return [
        Attempt(str(n), "c", str(n // 2), "", True, Verdict(label, 1.0 if label == "correct" else 0.0))
        for n, label in enumerate(labels)
    ]


def test_success_compliance_and_garbage_are_told_apart() -> None:
    rates = AttackRates.of(attempts(*LABELS))
    assert [rate.k for rate in (rates.asr, rates.any_compliance, rates.garbage, rates.refused)] == [2, 3, 1, 1]
    assert rates.unscored == 1
    assert (rates.asr.n, rates.asr.clusters) == (6, 3)


def test_draws_are_one_control_on_the_same_requests() -> None:
    draws = [attempts(*LABELS), attempts(*reversed(LABELS))]
    rates = AttackRates.of_draws(draws, seed=4)
    sources = [a.source for a in draws[0]]
    assert rates.asr == Rate.over_draws([[a.verdict.success for a in d] for d in draws], sources, 4)
    assert (rates.asr.n, rates.unscored) == (6, 2)
    assert AttackRates.of_draws(draws[:1]).asr.method != AttackRates.of(draws[0]).asr.method, "the draw was drawn too"
