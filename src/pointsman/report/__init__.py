"""One self-contained HTML page per run, and the summary table that the command line prints."""

from pointsman.report.render import render_audit, render_steer, write_report
from pointsman.report.terminal import summary_table

__all__ = ["render_audit", "render_steer", "summary_table", "write_report"]
