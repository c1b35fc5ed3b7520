"""What an audit does, in the shape of `jobs.job.Work`."""

from typing import Any

from pointsman.jobs.audit.claims import conclude
from pointsman.jobs.audit.page import page, summary
from pointsman.jobs.audit.perform import perform
from pointsman.jobs.audit.question import ask, ask_again, config, local
from pointsman.jobs.audit.results import AuditResults

__all__ = ["ask", "ask_again", "conclude", "config", "local", "older", "page", "perform", "results", "summary"]

results = AuditResults


def from_audit_2(data: dict[str, Any]) -> dict[str, Any]:
    """The same figures, and no claims yet."""
    return {**data, "job": "audit"}


older = {"pointsman.audit/2": from_audit_2}
