"""Task files of the user. They are code: lm-eval runs what they say. So no manifest makes them run.

A manifest holds a hash of their content and nothing of where they lie, nor does ``local.json``: whoever resumes a run
names the folder again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pointsman.errors import DataError, RunError
from pointsman.runs.files import known_hash, typed

if TYPE_CHECKING:
    from pointsman.runs.run import Run

Q = TypeVar("Q")
LARGEST = 10**7
"""Bytes of all task files; data sets are named by them and lie elsewhere, or are not hashed."""
_KINDS = (".yaml", ".yml", ".py")
KEY = "task_folder"
"""In a manifest."""


@dataclass(frozen=True)
class TaskFolder:
    """A folder of task files.

    Attributes:
        name: Of the folder, without its path.
        sha256: Of the names and contents of all task files in it.
        path: Where it lies now; None where this command did not say.
    """

    name: str
    sha256: str
    path: Path | None = None

    @staticmethod
    def read(path: Path | None) -> TaskFolder | None:
        """A folder that a command names; None of None.

        Raises:
            DataError: It is none, or holds no task files.
        """
        if path is None:
            return None
        path = path.expanduser()
        files = sorted(p for p in path.rglob("*") if p.suffix in _KINDS and p.is_file()) if path.is_dir() else []
        if not files:
            raise DataError(f"{path} is no folder with task files", "Give one with the YAML files of lm-eval tasks")
        if sum(p.stat().st_size for p in files) > LARGEST:
            raise DataError(f"The task files in {path} have more than {LARGEST:,} bytes", "Give the tasks' own folder")
        known = hashlib.sha256()
        for file in files:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            known.update(f"{file.relative_to(path).as_posix()}\0{content}\n".encode())
        return TaskFolder(path.resolve().name, known.hexdigest(), path)

    @staticmethod
    def again(run: Run) -> TaskFolder | None:
        """The folder that a run began with, by its hash; None if there was none. Within `reading_manifest`."""
        saved = run.config.get(KEY)
        if saved is None:
            return None
        name = typed(saved["name"], str, "the name of the task folder")
        known_hash(run, f"the task folder {name}", saved.get("sha256"))
        return TaskFolder(name, saved["sha256"])

    def named(self, path: Path) -> TaskFolder:
        """The same folder, where it lies now.

        Raises:
            RunError: It is another one.
        """
        now = TaskFolder.read(path)
        assert now is not None
        if now.sha256 != self.sha256:
            raise RunError(f"The task files in {path} are not those that the run began with", "Put the old ones back")
        return replace(self, path=now.path)

    def place(self) -> Path:
        """Where it lies.

        Raises:
            RunError: This command did not say.
        """
        if self.path is None:
            raise RunError(
                f"This run solves tasks of the folder {self.name}, and task files are code",
                "Look at them, and say where they lie with --utility-tasks FOLDER",
            )
        return self.path


def task_config(folder: TaskFolder | None) -> Mapping[str, Any]:
    """For a manifest; nothing where there is no folder."""
    return {} if folder is None else {KEY: {"name": folder.name, "sha256": folder.sha256}}


def with_task_folder(question: Q, path: Path | None) -> Q:
    """The question of a run with the folder that this command names, if it does.

    Raises:
        RunError, DataError: The run began without one, or with another.
    """
    if path is None:
        return question
    folder: TaskFolder | None = getattr(question, "task_folder", None)
    if folder is None:
        raise RunError("This run began without --utility-tasks", "Leave the option out")
    return replace(question, task_folder=folder.named(path))  # type: ignore[type-var]
