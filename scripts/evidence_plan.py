"""The plan of `make evidence`, evidence/plan.yaml: which runs there are, and how long all of them take together."""

from __future__ import annotations

import heapq
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

Kind = Literal["audit", "steer", "evaluate", "dominant"]
KEYS = {"name", "kind", "of", "model", "options", "minutes", "confirms", "needs"}
OPTIONAL = {"of", "options", "needs"}
NOT_PLANNED = ("--trust-remote-code", "--out")
"""Options that no run may have: evidence is not made by somebody else's code, and where it is kept is not asked."""


@dataclass(frozen=True)
class Planned:
    """One run of the plan.

    Attributes:
        name: Of the run, and of the file that is kept of it.
        kind: Which job it is.
        model: As on the command line.
        options: The rest of the command line.
        minutes: Expected, on one thread.
        confirms: Whether no method had been run on checkpoint or prompts before the plan was committed.
        needs: What must be there before; empty if that is shipped.
        of: The run whose steering is evaluated; empty for other kinds.
    """

    name: str
    kind: Kind
    model: str
    options: tuple[str, ...]
    minutes: float
    confirms: bool
    needs: str = ""
    of: str = ""

    @staticmethod
    def read(entry: Any) -> Planned:
        """An entry of the file.

        Raises:
            ValueError: A key is missing, unknown or not what it should be.
        """
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError(f"{entry!r} has no name")
        name = entry["name"]
        unknown, missing = entry.keys() - KEYS, KEYS - OPTIONAL - entry.keys()
        if unknown or missing:
            what = f"an unknown key {sorted(unknown)[0]!r}" if unknown else f"no {sorted(missing)[0]!r}"
            raise ValueError(f"{name} has {what}")
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"{name!r} cannot name a file")
        if entry["kind"] not in get_args(Kind):
            raise ValueError(f"{name} is of an unknown kind {entry['kind']!r}")
        if not isinstance(entry["confirms"], bool):
            raise ValueError(f"{name} confirms {entry['confirms']!r}, which is neither true nor false")
        if (entry["kind"] == "evaluate") != ("of" in entry):
            raise ValueError(f"{name} is of kind {entry['kind']}, and 'of' names the steering of an evaluation")
        model, given = entry["model"], entry.get("options", "")
        if not isinstance(model, str) or model.startswith("-") or not isinstance(given, str):
            raise ValueError(f"{name} has a model or options that are not plain text")
        options = tuple(shlex.split(given))
        if foreign := [option for option in options if option.partition("=")[0] in NOT_PLANNED]:
            raise ValueError(f"{name} cannot be planned with {foreign[0]}")
        minutes = float(entry["minutes"])
        return Planned(
            name, entry["kind"], model, options, minutes, entry["confirms"], entry.get("needs") or "",
            entry.get("of", ""),
        )  # fmt: skip

    @property
    def compares_searches(self) -> bool:
        """Whether it is an audit of the searches of routes, Guided beside F-SOUR, and of little else."""
        return self.kind == "audit" and self.name.startswith("guided-")

    @property
    def begun_as_published(self) -> bool:
        """Whether matrices on the surrogate start as in the code of MASCing's paper."""
        return "--init paper" in " ".join(self.options)

    def said(self) -> str:
        """The command, for whoever reads the evidence."""
        if self.kind == "dominant":
            return f"python scripts/dominant_layer.py {self.model}"
        return shlex.join(["pointsman", self.kind, self.model, *self._steering(Path("evidence/work")), *self.options])

    def command(self, root: Path, folder: Path) -> list[str]:
        """What begins the run, or goes on with it, in its folder."""
        if self.kind == "dominant":
            script = root / "scripts" / "dominant_layer.py"
            return [sys.executable, str(script), self.model, "--out", str(folder / "results.json")]
        command = [sys.executable, "-m", "pointsman.cli"]
        if (folder / "manifest.json").exists():
            return [*command, "resume", str(folder)]
        return [*command, self.kind, self.model, *self._steering(folder.parent), *self.options, "--out", str(folder)]

    def _steering(self, work: Path) -> list[str]:
        """The steering that is evaluated: that of a run beside this one."""
        return ["--steering", str(work / self.of)] if self.of else []


def read_plan(file: Path) -> tuple[Planned, ...]:
    """All runs in the order of the file.

    Raises:
        ValueError: The file is not a plan.
    """
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    runs = tuple(Planned.read(entry) for entry in data["runs"])
    names = [run.name for run in runs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{sorted(twice)[0]} is planned twice")
    steered = {(run.name, run.model) for run in runs if run.kind == "steer"}
    for run in runs:
        if run.of and (run.of, run.model) not in steered:
            raise ValueError(f"{run.name} is of {run.of!r}, which steers no {run.model}")
    return runs


def longest_first(runs: Iterable[Planned], begun: Sequence[str] = ()) -> list[Planned]:
    """The order in which they are done: what was begun, then the longest, so that no long one is left for the end."""
    return sorted(runs, key=lambda run: (run.name not in begun, -run.minutes, run.name))


def together(minutes: Iterable[float], processes: int) -> float:
    """How long it takes until all are done, if each is begun in this order as soon as a process is free."""
    free = [0.0] * processes
    for each in minutes:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free)


def pace(done: Iterable[tuple[float, float]], least: float = 20.0) -> float:
    """How much slower than planned this machine is, by expected and true minutes of what is done; 1 of too little."""
    pairs = list(done)
    expected, true = sum(e for e, _ in pairs), sum(t for _, t in pairs)
    return true / expected if expected >= least else 1.0
