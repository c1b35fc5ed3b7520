"""The job `judge`: what another judge makes of the answers of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pointsman.jobs.judge.plan import JudgeAgain, JudgeInputs

if TYPE_CHECKING:
    from pointsman.jobs.job import Job, Note
    from pointsman.jobs.judge.question import JudgeQuestion
    from pointsman.jobs.judge.results import JudgeResults
    from pointsman.report.blocks import Page, Table
    from pointsman.runs.bench import Bench
    from pointsman.runs.run import Run


class _Judge:
    name = "judge"
    panel = "Judges"
    help = """Judge the answers of a finished run again, with another judge: nothing is generated, no model is loaded.

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman judge runs/audit-testbed --judge refusal

    pointsman judge runs/audit-testbed --judge human:file=sheet.csv
    """
    inputs = JudgeInputs
    plan = JudgeAgain
    needs_model = False
    older: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}

    @property
    def results(self) -> type[JudgeResults]:
        from pointsman.jobs.judge.results import JudgeResults

        return JudgeResults

    def ask(self, model: str, inputs: JudgeInputs, plan: JudgeAgain, note: Note) -> tuple[JudgeQuestion, JudgeAgain]:
        from pointsman.jobs.judge.question import ask

        return ask(inputs), plan

    def config(self, question: JudgeQuestion) -> dict[str, Any]:
        from pointsman.jobs.judge.question import config

        return config(question)

    def local(self, question: JudgeQuestion) -> dict[str, Any]:
        from pointsman.jobs.judge.question import places

        return places(question)

    def ask_again(self, run: Run, plan: JudgeAgain, note: Note) -> JudgeQuestion:
        from pointsman.jobs.judge.question import ask_again

        return ask_again(run, note)

    def perform(self, plan: JudgeAgain, bench: Bench[JudgeQuestion]) -> JudgeResults:
        from pointsman.jobs.judge.perform import perform

        return perform(plan, bench)

    def conclude(self, results: JudgeResults) -> JudgeResults:
        from pointsman.jobs.judge.claims import conclude

        return conclude(results)

    def page(self, results: JudgeResults, *, show_text: bool) -> Page:
        from pointsman.jobs.judge.page import page

        return page(results, show_text=show_text)

    def summary(self, results: JudgeResults) -> Table:
        from pointsman.jobs.judge.page import summary

        return summary(results)


JOB: Job = _Judge()
