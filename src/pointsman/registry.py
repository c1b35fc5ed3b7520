"""Names that the command line accepts, open to other packages by entry point.

A registry is a dictionary with good errors. Pointsman registers its own judges, models, behaviour sets and
scenarios in the same way as any other package would: one entry point in `pyproject.toml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pointsman.errors import UnknownName


class Registry:
    """The entry points of one group, looked up by name.

    Args:
        group: Entry-point group, for example ``"pointsman.judges"``.
        noun: What one entry is called in messages, for example ``"judge"``.
    """

    def __init__(self, group: str, noun: str) -> None:
        self.group = group
        self.noun = noun

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted({point.name for point in self._points()})

    def __contains__(self, name: str) -> bool:
        return any(point.name == name for point in self._points())

    def get(self, name: str) -> Any:
        """The object registered as `name`.

        Raises:
            UnknownName: Nobody registered it; the message names the nearest ones.
        """
        for point in self._points():
            if point.name == name:
                return point.load()
        names = self.names()
        near = get_close_matches(name, names, n=2)
        hint = f"Did you mean {' or '.join(near)}? Known" if near else "Known"
        raise UnknownName(f"Unknown {self.noun} {name!r}", f"{hint} {self.noun}s: {', '.join(names) or 'none'}")

    def _points(self) -> Sequence[EntryPoint]:
        return tuple(entry_points(group=self.group))


judges = Registry("pointsman.judges", "judge")
models = Registry("pointsman.models", "model")
behaviors = Registry("pointsman.behaviors", "behavior set")
scenarios = Registry("pointsman.scenarios", "scenario")
