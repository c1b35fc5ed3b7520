"""What an audit does, in the shape of `jobs.job.Work`."""

from pointsman.jobs.audit.claims import conclude
from pointsman.jobs.audit.page import page, summary
from pointsman.jobs.audit.perform import perform
from pointsman.jobs.audit.question import ask, ask_again, config, local
from pointsman.jobs.audit.results import AuditResults

__all__ = ["ask", "ask_again", "conclude", "config", "local", "older", "page", "perform", "results", "summary"]

results = AuditResults
older = {"pointsman.audit/2": lambda data: {**data, "job": "audit"}}  # the same figures, and no claims yet
