"""The page and the terminal table of a steer run (METHODS sections 5 and 6)."""

from pointsman.report.steer.terminal import steer_table
from pointsman.report.steer.view import steer_view

__all__ = ["steer_table", "steer_view"]
