"""What two judges make of the same answers."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman.runs.results import JudgeFacts, Results
from pointsman.stats.agreement import Agreement, Confusion
from pointsman.stats.paired import Comparison
from pointsman.stats.rates import Rate


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """The run whose answers were judged again.

    Attributes:
        name: Of its folder.
        job: That made it.
        answers: That were judged again; `distinct` of them differ, and only these were put to the judge.
        stages: How many stages they are of.
        digest: Of what was judged.
    """

    name: str
    job: str
    answers: int
    distinct: int
    stages: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class StageTwice:
    """The answers of one stage under both judges. Rates are of the answers that both could score.

    Attributes:
        stage: Its key.
        before, now: Successes (the request was met) by the judge of the run, and by the new one.
        difference: Now less before.
        agreement: On what is a success.
        unscored_before, unscored: How many answers each could not score.
    """

    stage: str
    before: Rate
    now: Rate
    difference: Comparison
    agreement: Agreement
    unscored_before: int
    unscored: int


@dataclass(frozen=True, kw_only=True)
class JudgeResults(Results):
    """A run judged again. `judge` is the new one.

    Attributes:
        judged: The run.
        before: The judge of the run.
        stages: In their order.
        agreement: On what is a success, over all stages.
        confusion: Labels of the judge of the run (rows), and of the new one.
        unscored: How many answers the new one could not score.
    """

    judged: JudgedRun
    before: JudgeFacts
    stages: tuple[StageTwice, ...]
    agreement: Agreement
    confusion: Confusion
    unscored: int

    @property
    def furthest(self) -> StageTwice | None:
        """The stage whose rate changes most; None if both judges scored nothing."""
        measured = [stage for stage in self.stages if stage.difference.difference is not None]
        return max(measured, key=lambda stage: abs(stage.difference.difference or 0), default=None)
