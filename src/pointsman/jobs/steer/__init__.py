"""The job `steer`: learn a steering mask for a scenario, and show on test prompts what it gains and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pointsman.jobs.steer.inputs import SteerInputs
from pointsman.jobs.steer.plan import Steer

if TYPE_CHECKING:
    from pointsman.jobs.job import Job, Note
    from pointsman.jobs.steer.question import SteerQuestion
    from pointsman.jobs.steer.results import SteerResults
    from pointsman.report.blocks import Page, Table
    from pointsman.runs.bench import Bench
    from pointsman.runs.run import Run


class _Steer:
    name = "steer"
    panel = "Steer"
    help = """Learn a steering mask on the routers for a scenario, and show what it gains and what it costs.

    Plays the scenario, learns masks (MASCing: surrogate, on policy, through the model), chooses among them and the
    baselines on validation prompts, and reports on test prompts. The mask is an artefact of the run.

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman steer testbed --scenario multi_turn_defence

    pointsman scenario init multi_turn_defence --template real --out defence.yaml

    pointsman steer allenai/OLMoE-1B-7B-0125-Instruct --scenario defence.yaml --out runs/defence
    """
    inputs = SteerInputs
    plan = Steer
    needs_model = True

    @property
    def results(self) -> type[SteerResults]:
        from pointsman.jobs.steer.results import SteerResults

        return SteerResults

    @property
    def older(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        from pointsman.jobs.steer.older import from_steer_1

        return {"pointsman.steer/1": from_steer_1}

    def ask(self, model: str, inputs: SteerInputs, plan: Steer, note: Note) -> tuple[SteerQuestion, Steer]:
        from pointsman.jobs.steer.inputs import ask

        return ask(inputs, plan.seed), plan

    def config(self, question: SteerQuestion) -> dict[str, Any]:
        from pointsman.jobs.steer.inputs import config

        return config(question.scenario, question.suite, question.judge)

    def local(self, question: SteerQuestion) -> dict[str, Any]:
        from pointsman.runs.files import judge_places, places

        return {"files": places(question.scenario.files), **judge_places(question.judge)}

    def ask_again(self, run: Run, plan: Steer, note: Note) -> SteerQuestion:
        from pointsman.jobs.steer.inputs import ask_again

        return ask_again(run, plan.seed, note)

    def perform(self, plan: Steer, bench: Bench[SteerQuestion]) -> SteerResults:
        from pointsman.jobs.steer.perform import perform

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


JOB: Job = _Steer()
