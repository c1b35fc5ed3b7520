"""Evidence is made from a clean tree, on one commit. Used by every script that measures.

    commit = require_clean_tree(ROOT)           # before anything is measured
    require_same_commit(run, commit)            # before a run is begun or resumed
    refuse_changes(evidence, name)              # before a table is made of it

What is measured may lie in evidence/ already, from the script before: that alone may differ from the commit, and not
what is measured on (evidence/checkpoints) or planned.
Standard library only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MADE = re.compile(r"evidence/([^/]+\.json|rows/.+|work/.+)")
"""What the scripts write. All else must be as it was committed, untracked files included."""
CHANGES = "+changes"
"""Behind the commit of what was made on a tree with changes."""


def require_clean_tree(root: Path) -> str:
    """The commit of a checkout in which nothing differs from it; ends with one line that names the first file if not.

    Nor may git be told to look away from a file (``assume-unchanged``, ``skip-worktree``).

    Args:
        root: Of the checkout.
    """
    unwatched = [entry[2:] for entry in _git(root, "ls-files", "-v", "-z").split("\0") if entry[:1] not in ("", "H")]
    if unwatched:
        sys.exit(f"Evidence is made from a clean tree, and git is told not to look at {unwatched[0]}.")
    changed = [name for name in _changed(root) if not MADE.fullmatch(name)]
    if changed:
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        sys.exit(
            f"Evidence is made from a clean tree, and {changed[0]}{more} differs from the commit: commit it first."
        )
    return _git(root, "rev-parse", "HEAD").strip()


def require_same_commit(run: Path, commit: str) -> None:
    """Note beside a run folder on which commit it begins; end with one line if it began on another, or on none known.

    Args:
        run: Its folder, which need not be there yet.
        commit: From `require_clean_tree`.
    """
    note = _note_of(run)
    began = note.read_text(encoding="utf-8").strip() if note.exists() else None
    if run.exists() and began != commit:
        sys.exit(
            f"{run} was begun on commit {(began or 'unknown')[:12]}, and this is {commit[:12]}: go back to that commit "
            "to finish it, or remove the folder to measure anew."
            if began != f"{commit}{CHANGES}"
            else f"The tree changed while {run} was made: remove the folder to measure anew."
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{commit}\n", encoding="utf-8")


def note_changes(run: Path, commit: str) -> None:
    """Note beside a run folder that the tree changed while the run was made: `require_same_commit` refuses it then."""
    _note_of(run).write_text(f"{commit}{CHANGES}\n", encoding="utf-8")


def _note_of(run: Path) -> Path:
    return run.with_name(f"{run.name}.commit")


def refuse_changes(evidence: Mapping[str, Any], name: str) -> None:
    """End with one line if evidence says that it was made from no commit, or from a tree with changes."""
    commit = evidence["provenance"]["commit"]
    if not commit or commit.endswith(CHANGES):
        sys.exit(f"{name} was made from {commit or 'no commit'}: no table is made of it. Measure it on a clean tree.")


def _changed(root: Path) -> list[str]:
    """Paths that differ from the commit, in git's order; of a renamed file the new one."""
    told = _git(root, "status", "--porcelain", "-z", "--untracked-files=all").split("\0")
    found: list[str] = []
    entries = iter(told)
    for entry in entries:
        if entry:
            found.append(entry[3:])
            if entry[0] in "RC":
                next(entries, None)  # where it was
    return found


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError as error:
        sys.exit(f"Evidence names its commit, and git is not there: {error}.")
    if done.returncode:
        sys.exit(f"Evidence names its commit, and git says of {root}: {done.stderr.strip() or done.returncode}")
    return done.stdout
