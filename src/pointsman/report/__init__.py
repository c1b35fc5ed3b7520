"""What is said of results: pages as HTML and tables in the terminal, made of blocks. Jobs make the blocks."""

from pointsman.report.old_terminal import summary_table
from pointsman.report.render import render_audit, render_steer, write_report

__all__ = ["render_audit", "render_steer", "summary_table", "write_report"]
