"""The job `audit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pointsman.jobs.audit.plan import Audit
    from pointsman.jobs.audit.question import AuditQuestion
    from pointsman.jobs.audit.results import AuditResults
    from pointsman.report.blocks import Page, Table
    from pointsman.runs.bench import Bench


class AuditJob:
    """How fragile is this model's safety to its routing?"""

    name = "audit"

    @property
    def results(self) -> type[AuditResults]:
        from pointsman.jobs.audit.results import AuditResults

        return AuditResults

    @property
    def older(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        from pointsman.jobs.audit.older import OLDER

        return OLDER

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


JOB = AuditJob()
