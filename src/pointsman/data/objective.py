"""What a scenario is about, its objective, and which prompts each objective asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Objective = Literal["defend", "allow"]

FILES = ("conversations", "benign_conversations", "restricted", "scenario", "benign", "borderline")
"""What a scenario can ask. Names of the lists of a `Suite`, and keys below `prompts` in the YAML file."""
NEEDED: Mapping[Objective, tuple[str, ...]] = {
    "defend": ("conversations", "restricted", "benign"),
    "allow": ("scenario", "restricted", "benign"),
}
UNUSED: Mapping[Objective, str] = {"defend": "scenario", "allow": "conversations"}
"""What the other objective is about."""
