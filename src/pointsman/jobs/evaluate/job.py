"""What an evaluation does, in the shape of `jobs.job.Work`: its results, and their page, are those of steering runs."""

from pointsman.jobs.evaluate.perform import perform
from pointsman.jobs.evaluate.question import ask, ask_again, config, local
from pointsman.jobs.steer.job import conclude, older, page, results, summary

__all__ = ["ask", "ask_again", "conclude", "config", "local", "older", "page", "perform", "results", "summary"]
