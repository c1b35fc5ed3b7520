"""What judging a run again does, in the shape of `jobs.job.Work`."""

from collections.abc import Callable, Mapping
from typing import Any

from pointsman.jobs.judge.claims import conclude
from pointsman.jobs.judge.page import page, summary
from pointsman.jobs.judge.perform import perform
from pointsman.jobs.judge.question import ask, ask_again, config, local
from pointsman.jobs.judge.results import JudgeResults

__all__ = ["ask", "ask_again", "conclude", "config", "local", "older", "page", "perform", "results", "summary"]

results = JudgeResults
older: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
