"""`AttackRates`: what some answers to restricted requests come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pointsman.methods.attempts import Attempt
from pointsman.stats.rates import Rate


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
        return AttackRates.of_draws([attempts], seed)

    @staticmethod
    def of_draws(draws: Sequence[Sequence[Attempt]], seed: int = 0) -> AttackRates:
        """Of several draws of a control on the same requests; n counts requests. Shape: [draws][n]."""
        raise NotImplementedError  # helpers: Rate.of for one draw, Rate.over_draws for several
