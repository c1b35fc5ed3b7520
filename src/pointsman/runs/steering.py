"""Finding the steering that a user names: a folder, the folder of a run that found one, or a hub id."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pointsman.errors import RunError, UsageError
from pointsman.runs.files import make_again

if TYPE_CHECKING:
    from pointsman.steering.artefact import Steering

CONTEXTS = "artefacts/contexts.jsonl"


def learnt_on(name: str) -> frozenset[str] | None:
    """The requests that a run's steering was learnt or chosen on, as `spoken`; None if no run says.

    What the unsteered model neither refused nor fell for is not among them.
    """
    from pointsman.data.splits import spoken

    try:
        lines = (Path(name).expanduser() / CONTEXTS).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return frozenset(spoken(row["goal"]) for row in rows if row["split"] != "test")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_steering(name: str) -> Steering:
    """The steering that a user names.

    Raises:
        InterventionError: There is none, or it is damaged.
        RunError: Something in the run leads out of it, or the steering is not the one that the run wrote.
        UsageError: The name is empty.
    """
    from pointsman.steering.artefact import DATA, Steering

    if not name.strip():
        raise UsageError("The name of the steering is empty", "Give its folder, that of a run, or a hub id")
    folder = Path(name).expanduser()
    of_run = folder / "artefacts" / "steering"
    if (folder / DATA).exists() or not os.path.lexists(of_run / DATA):
        return Steering.from_pretrained(name)
    from pointsman.runs.folder import refuse_links
    from pointsman.runs.run import MANIFEST, Run

    if not os.path.lexists(folder / MANIFEST):  # no more of a run than its artefacts
        refuse_links(folder)
        return Steering.from_pretrained(of_run)
    with Run.open(folder, read_only=True) as run:
        for change in run.changes(within="artefacts/steering"):
            raise RunError(change, f"Make it again ({make_again(run)}), or give {of_run} itself to use it as it is")
    return Steering.from_pretrained(of_run)
