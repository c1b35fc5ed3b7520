"""The job `audit`: how fragile is a model's safety to its routing?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pointsman.jobs.audit.inputs import AuditInputs
from pointsman.jobs.audit.plan import Audit

if TYPE_CHECKING:
    from pointsman.jobs.audit.question import AuditQuestion
    from pointsman.jobs.audit.results import AuditResults
    from pointsman.jobs.job import Job, Note
    from pointsman.report.blocks import Page, Table
    from pointsman.runs.bench import Bench
    from pointsman.runs.run import Run


class _Audit:
    name = "audit"
    panel = "Audit"
    help = """Measure how fragile a model's safety is to its routing, and write a report.

    Ranks the routers (RoSais), masks the most important ones and random others, and searches unsafe routes (F-SOUR).

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman audit testbed

    pointsman audit allenai/OLMoE-1B-7B-0924-Instruct --behaviors harmful.csv --benign benign.csv

    pointsman audit ./my-model --behaviors harmful.jsonl --limit 0 --out runs/mine --json > results.json
    """
    inputs = AuditInputs
    plan = Audit
    needs_model = True

    @property
    def results(self) -> type[AuditResults]:
        from pointsman.jobs.audit.results import AuditResults

        return AuditResults

    @property
    def older(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        from pointsman.jobs.audit.older import OLDER

        return OLDER

    def ask(self, model: str, inputs: AuditInputs, plan: Audit, note: Note) -> tuple[AuditQuestion, Audit]:
        from pointsman.jobs.audit.inputs import ask

        return ask(model, inputs, plan), plan

    def config(self, question: AuditQuestion) -> dict[str, Any]:
        from pointsman.jobs.audit.inputs import config

        return config(question)

    def local(self, question: AuditQuestion) -> dict[str, Any]:
        from pointsman.runs.files import judge_places, places

        return {"files": places(question.files), **judge_places(question.judge)}

    def ask_again(self, run: Run, plan: Audit, note: Note) -> AuditQuestion:
        from pointsman.jobs.audit.inputs import ask_again

        return ask_again(run, note)

    def perform(self, plan: Audit, bench: Bench[AuditQuestion]) -> AuditResults:
        from pointsman.jobs.audit.perform import perform

        return perform(plan, bench)

    def conclude(self, results: AuditResults) -> AuditResults:
        from pointsman.jobs.audit.claims import conclude

        return conclude(results)

    def page(self, results: AuditResults, *, show_text: bool) -> Page:
        from pointsman.jobs.audit.page import page

        return page(results, show_text=show_text)

    def summary(self, results: AuditResults) -> Table:
        from pointsman.jobs.audit.page import summary

        return summary(results)


JOB: Job = _Audit()
