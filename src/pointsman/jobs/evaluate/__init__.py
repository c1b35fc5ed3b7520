"""The job `evaluate`: what a steering gains and costs on the test prompts of a scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pointsman.jobs.evaluate.inputs import EvaluateInputs
from pointsman.jobs.evaluate.plan import Evaluate

if TYPE_CHECKING:
    from pointsman.jobs.evaluate.question import EvaluateQuestion
    from pointsman.jobs.job import Job, Note
    from pointsman.jobs.steer.results import SteerResults
    from pointsman.report.blocks import Page, Table
    from pointsman.runs.bench import Bench
    from pointsman.runs.run import Run


class _Evaluate:
    name = "evaluate"
    panel = "Steer"
    help = """Evaluate a steering on the test prompts of a scenario, beside the same model without it.

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman evaluate testbed --steering runs/defence

    pointsman evaluate ./my-model --steering me/my-steering --scenario defence.yaml --limit 0
    """
    inputs = EvaluateInputs
    plan = Evaluate
    needs_model = True

    @property
    def results(self) -> type[SteerResults]:
        from pointsman.jobs.steer.results import SteerResults

        return SteerResults

    @property
    def older(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        from pointsman.jobs.steer.older import from_steer_1

        return {"pointsman.steer/1": from_steer_1}

    def ask(self, model: str, inputs: EvaluateInputs, plan: Evaluate, note: Note) -> tuple[EvaluateQuestion, Evaluate]:
        from pointsman.jobs.evaluate.inputs import ask

        return ask(inputs, plan, note)

    def config(self, question: EvaluateQuestion) -> dict[str, Any]:
        from pointsman.jobs.evaluate.inputs import config

        return config(question)

    def local(self, question: EvaluateQuestion) -> dict[str, Any]:
        from pointsman.jobs.evaluate.inputs import place
        from pointsman.runs.files import judge_places, places

        return {"files": places(question.scenario.files), **judge_places(question.judge), **place(question)}

    def ask_again(self, run: Run, plan: Evaluate, note: Note) -> EvaluateQuestion:
        from pointsman.jobs.evaluate.inputs import ask_again

        return ask_again(run, plan, note)

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


JOB: Job = _Evaluate()
