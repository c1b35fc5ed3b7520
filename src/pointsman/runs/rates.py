"""`AttackRates`: what some answers to restricted requests come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pointsman.judges.types import Judge, Verdict
from pointsman.methods.attempts import Attempt
from pointsman.stats.paired import Comparison, compare
from pointsman.stats.rates import Rate

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class AttackRates:
    """Answers to restricted requests, each rate clustered by source question.

    Attributes:
        asr: Attack success: the restricted content was given, and is right where the judge can tell.
        any_compliance: The model gave in, whether or not what it said is right.
        garbage: Empty or garbled answers: nobody's success.
        refused: Answers that refuse.
        unscored: How many the judge could not score.
    """

    asr: Rate
    any_compliance: Rate
    garbage: Rate
    refused: Rate
    unscored: int

    @staticmethod
    def of(attempts: Sequence[Attempt], seed: int = 0) -> AttackRates:
        """Of one answer to each request; `seed` is of the bootstraps."""
        sources = [a.source for a in attempts]
        return _rates([attempts], lambda flags: Rate.of(flags[0], sources, seed))

    @staticmethod
    def of_draws(draws: Sequence[Sequence[Attempt]], seed: int = 0) -> AttackRates:
        """Of several draws of a control on the same requests; n counts requests. Shape: [draws][n]."""
        sources = [a.source for a in draws[0]]
        return _rates(draws, lambda flags: Rate.over_draws(flags, sources, seed))


def _rates(draws: Sequence[Sequence[Attempt]], rate: Callable[[list[list[bool]]], Rate]) -> AttackRates:
    def share(counts: Callable[[Verdict], bool]) -> Rate:
        return rate([[counts(a.verdict) for a in attempts] for attempts in draws])

    return AttackRates(
        asr=share(lambda verdict: verdict.success),
        any_compliance=share(lambda verdict: verdict.any_compliance),
        garbage=share(lambda verdict: verdict.label == "garbage"),
        refused=share(lambda verdict: verdict.refused),
        unscored=sum(a.verdict.label == "unscored" for attempts in draws for a in attempts),
    )


def grouped(items: Iterable[Item], name: Callable[[Item], str]) -> dict[str, list[Item]]:
    """Items by name, names in alphabetical order."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(name(item), []).append(item)
    return dict(sorted(groups.items()))


def answered(attempts: Sequence[Attempt], judge: Judge) -> list[bool]:
    """Which requests that should be answered were (`Verdict.answered`)."""
    return [a.verdict.answered(judge.grades_content) for a in attempts]


def successes(attempts: Sequence[Attempt]) -> list[bool]:
    """In which the restricted content was given."""
    return [a.verdict.success for a in attempts]


def compare_success(a: Sequence[Attempt], b: Sequence[Attempt], seed: int = 0) -> Comparison:
    """Successes of `a` against those of `b` on the same behaviours."""
    return compare(successes(a), successes(b), [x.source for x in a], seed)
