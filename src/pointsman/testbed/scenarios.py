"""The testbed's scenarios, as any other package would register them: callables that return a YAML file."""

from __future__ import annotations

from pathlib import Path

_TEMPLATES = Path(__file__).parent / "templates"


def multi_turn_defence() -> Path:
    """Refuse restricted requests in conversations too."""
    return _TEMPLATES / "multi_turn_defence.yaml"


def mature_content() -> Path:
    """Answer requests about mature things, and hold every other refusal."""
    return _TEMPLATES / "mature_content.yaml"


def mature_unseen() -> Path:
    """`mature_content` on mature and restricted words that its mask was never shown: to evaluate it, not to learn."""
    return _TEMPLATES / "mature_unseen.yaml"
