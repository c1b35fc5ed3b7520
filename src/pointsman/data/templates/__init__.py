"""Scenario files for real models, to be filled in."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from pointsman.errors import UnknownName

_FOLDER = Path(__file__).parent


def template_names() -> list[str]:
    """The templates, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def template(name: str) -> Path:
    """The file of a template.

    Raises:
        UnknownName: There is none of that name.
    """
    names = template_names()
    if name not in names:
        near = get_close_matches(name, names, n=1)
        raise UnknownName(
            f"There is no template {name[:60]!r} for real models",
            (f"Did you mean {near[0]}? Known: " if near else "Known: ") + ", ".join(names),
        )
    return _FOLDER / f"{name}.yaml"
