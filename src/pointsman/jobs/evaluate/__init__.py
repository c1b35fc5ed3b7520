"""The job `evaluate`: what a steering gains and costs on the test prompts of a scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pointsman.jobs.steer.older import from_steer_1

if TYPE_CHECKING:
    from pointsman.jobs.evaluate.plan import Evaluate
    from pointsman.jobs.evaluate.question import EvaluateQuestion
    from pointsman.jobs.steer.results import SteerResults
    from pointsman.report.blocks import Page, Table
    from pointsman.runs.bench import Bench


class EvaluateJob:
    """See `pointsman.jobs.job.Job`."""

    name = "evaluate"
    older: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"pointsman.steer/1": from_steer_1}

    @property
    def results(self) -> type[SteerResults]:
        from pointsman.jobs.steer.results import SteerResults

        return SteerResults

    def perform(self, plan: Evaluate, bench: Bench[EvaluateQuestion]) -> SteerResults:
        from pointsman.jobs.evaluate.perform import perform

        return perform(plan, bench)

    def conclude(self, results: SteerResults) -> SteerResults:
        from pointsman.jobs.steer.claims import conclude

        return conclude(results)

    def page(self, results: SteerResults, *, show_text: bool) -> Page:
        from pointsman.jobs.steer.page import page

        return page(results, show_text=show_text)

    def summary(self, results: SteerResults) -> Table:
        from pointsman.jobs.steer.page import summary

        return summary(results)


JOB = EvaluateJob()
