"""What an audit asks, as it stands in a run's manifest: files by path and content hash, or a registered suite."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pointsman.cli.manifest import files_json, located
from pointsman.errors import RunError, UsageError

if TYPE_CHECKING:
    from pointsman.data.types import Suite
    from pointsman.runs.run import Run

_FILES = ("behaviors", "benign", "borderline")


@dataclass(frozen=True)
class Prompts:
    """Where the prompts of a run come from.

    Attributes:
        suite: Name of a registered suite; None if files are given.
        files: Paths by option.
        digest: SHA-256 of the registered suite's content when the run began.
    """

    suite: str | None
    files: Mapping[str, Path]
    digest: str | None = None

    @classmethod
    def of(cls, model: str, behaviors: Path | None, benign: Path | None, borderline: Path | None) -> Self:
        """From the options of ``audit``.

        Raises:
            UsageError: There is nothing to ask, or an option that would be ignored.
        """
        from pointsman.registry import behaviors as registered

        name = model.partition(":")[0]
        given = {"behaviors": behaviors, "benign": benign, "borderline": borderline}
        if behaviors is None:
            if name not in registered:
                near = get_close_matches(name, registered.names(), n=1)
                raise UsageError(
                    f"No behaviours come with {model}",
                    (f"Did you mean {near[0]}? Else give" if near else "Give")
                    + " a file with --behaviors FILE (columns Goal, Target, Category, as in JailbreakBench)",
                )
            for option in ("benign", "borderline"):
                if given[option] is not None:
                    raise UsageError(
                        f"--{option} needs --behaviors: {name} brings its own prompts",
                        f"Give --behaviors FILE as well, or leave --{option} out",
                    )
        files = {key: path.expanduser() for key, path in given.items() if path is not None}
        return cls(name if behaviors is None else None, files)

    def read(self) -> Suite:
        """The suite.

        Raises:
            DataError: A file cannot be used.
        """
        if self.suite is not None:
            from pointsman.registry import behaviors as registered

            suite: Suite = registered.get(self.suite)()
            return suite
        from pointsman.data.loaders import load_suite

        return load_suite(
            self.files["behaviors"], benign=self.files.get("benign"), borderline=self.files.get("borderline")
        )

    def read_again(self, run: Run) -> Suite:
        """The suite of a run that is resumed.

        Raises:
            RunError: The registered suite is not what it was.
        """
        suite = self.read()
        if self.suite is not None and _digest(suite) != self.digest:
            raise RunError(
                f"The prompts of {self.suite} have changed since {run.folder} began",
                "Continue it with the version of Pointsman that made it, or start a new run",
            )
        return suite

    def to_json(self, suite: Suite) -> dict[str, Any]:
        """For the manifest of a run that asks `suite`, which was read just now."""
        return {
            "suite": self.suite,
            "digest": _digest(suite) if self.suite is not None else None,
            "files": files_json(self.files),
        }

    @classmethod
    def of_run(cls, run: Run) -> Self:
        """Those of a run that is resumed.

        Raises:
            RunError: A file is not there, or not what it was.
            KeyError, TypeError, ValueError: The manifest does not say.
        """
        data = run.config["prompts"]
        files = {key: data["files"][key] for key in _FILES if key in data["files"]}
        if data["suite"] is None and "behaviors" not in files:
            raise ValueError("neither a suite nor a file")
        return cls(data["suite"], located(run, files), data["digest"])


def _digest(suite: Suite) -> str:
    """Of all prompts, targets, splits and settings of a suite."""
    return hashlib.sha256(repr(suite).encode()).hexdigest()
