"""Run what depends on transformers under several versions of it: `make test-versions`, or with names of some of them.

    python scripts/versions.py [oldest] [locked] [newest]

Each has a virtual environment of its own in .venv-versions, kept while nothing changes that it was made from:

    oldest  constraints-oldest.txt: the lower bound of pyproject.toml
    locked  constraints.txt
    newest  constraints.txt, and on top of it the newest transformers that pyproject.toml allows

The tests are those with the marker `versions`. Ends with a table, and with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lock import LOCKED, OLDEST, ROOT, floor, locked, requirement
from packaging.version import Version

HOME = ROOT / ".venv-versions"
NAMES = ("oldest", "locked", "newest")
PACKAGES = ("transformers", "torch", "huggingface-hub", "tokenizers")
# Area -> how the names of its test modules begin.
AREAS = {
    "control": "tests.routing.test_control_families",
    "layout, edges": "tests.routing.test_control_edges",
    "paths": "tests.routing.test_paths",
    "phases": "tests.routing.test_phases",
    "families": "tests.families.",
    "resume": "tests.engine.test_resume",
    "learning": "tests.engine.test_learning",
    "generation": "tests.engine.test_hf",
    "audit": "tests.jobs.audit.test_audit",
    "steering": "tests.jobs.steer.test_steer",
    "doctor": "tests.cli.test_cli_doctor",
}
OTHER = "other"  # a marked test elsewhere, or a module that cannot be imported


@dataclass
class Result:
    """One version: what was installed, and what the tests gave.

    Attributes:
        name: Which one was asked for.
        installed: Package -> version, as installed.
        counts: Area -> how many tests passed, failed and were skipped.
        seconds: Area -> seconds spent in its tests, over all processes.
        failed: The failed tests.
        wrong: Why nothing was measured, or why the figures are not to be trusted; else empty.
    """

    name: str
    installed: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    wrong: str = ""

    @property
    def good(self) -> bool:
        return not self.failed and not self.wrong


def newest() -> str:
    """The newest transformers within the bounds of pyproject.toml, asked of the package index."""
    command = [*_pip(sys.executable), "--dry-run", "--no-deps", "--ignore-installed", "--report", "-"]
    command.append(requirement("transformers"))
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return str(found["install"][0]["metadata"]["version"])


def prepare(name: str, constraints: Path, then: str = "") -> Path:
    """The virtual environment `name`: Pointsman under these constraints, then one more requirement without them.

    Returns:
        Its Python.
    """
    folder = HOME / name
    python, stamp = folder / "bin" / "python", folder / "made-from"
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = json.dumps([whole["project"], whole["build-system"]])  # what the tools are told changes no installation
    recipe = [sys.version, then, constraints.read_text(encoding="utf-8"), asked]
    made_from = hashlib.sha256("\n".join(recipe).encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == made_from:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{name}: installing into {folder.relative_to(ROOT)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    held = [*_pip(python), "-c", constraints]
    with (HOME / f"{name}-pip.log").open("w", encoding="utf-8") as log:
        for arguments in (
            [*held, "hatchling", "editables"],
            [*held, "--no-build-isolation", "-e", f"{ROOT}[dev]"],
            *([[*_pip(python), "--upgrade", then]] if then else []),
        ):
            subprocess.run(arguments, check=True, stdout=log, stderr=subprocess.STDOUT)
    stamp.write_text(made_from, encoding="utf-8")
    return python


def _pip(python: Path | str) -> list[Path | str]:
    return [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def run(name: str, python: Path, processes: int) -> Result:
    """Run the marked tests with this Python."""
    junit = HOME / f"{name}.xml"
    junit.unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    command = [
        *(python, "-m", "pytest", "-m", "versions and not slow", "-p", "no:cacheprovider"),
        *("-n", str(processes), "--dist", "loadfile", f"--junitxml={junit}", "tests"),
    ]
    begun = time.monotonic()
    with (HOME / f"{name}.log").open("w", encoding="utf-8") as log:
        code = subprocess.run(
            command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    print(f"{name}: {time.monotonic() - begun:.0f} s; see {(HOME / f'{name}.log').relative_to(ROOT)}", flush=True)
    result = Result(name, versions(python))
    if junit.exists():
        read(junit.read_text(encoding="utf-8"), result)
    if code != 0 and not result.failed:
        result.wrong = f"pytest ended with {code}"
    elif not result.counts:
        result.wrong = "no test has the marker"
    return result


def versions(python: Path) -> dict[str, str]:
    """What is really installed beside this Python."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    told = subprocess.run([python, "-c", code, *PACKAGES], stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, str] = json.loads(told)
    return found


def read(junit: str, result: Result) -> None:
    """Add what pytest's XML says of its tests to `result`."""
    for case in ET.fromstring(junit).iter("testcase"):
        module = case.get("classname") or case.get("name") or ""
        area = next((a for a, begin in AREAS.items() if f"{module}.".startswith(f"{begin.rstrip('.')}.")), OTHER)
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        result.counts.setdefault(area, Counter())[outcome] += 1
        result.seconds[area] += float(case.get("time", 0))
        if outcome == "failed":
            result.failed.append(f"{module.replace('.', '/')}.py::{case.get('name')}")


def table(results: list[Result]) -> str:
    """One line for every version; in a cell: passed/failed/skipped, and seconds over all processes."""
    areas = [area for area in (*AREAS, OTHER) if area != OTHER or any(OTHER in r.counts for r in results)]
    lines = [["", *PACKAGES, *areas]]
    for result in results:
        cells = []
        for area in areas:
            count = result.counts.get(area, Counter())
            said = "/".join(str(count[outcome]) for outcome in ("passed", "failed", "skipped"))
            cells.append(f"{said} {result.seconds[area]:.0f} s" if count else "-")
        lines.append([result.name, *(result.installed.get(p, "-") for p in PACKAGES), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Test under several versions of transformers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all of them if none is given")
    parser.add_argument("-n", "--processes", type=int, default=2)
    options = parser.parse_args()
    wanted = options.names or NAMES
    for name in wanted:
        if name not in NAMES:
            parser.error(f"unknown name {name!r}: use {', '.join(NAMES)}")
    HOME.mkdir(exist_ok=True)
    results = []
    if "oldest" in wanted:
        if Version(locked("transformers", OLDEST)) != Version(floor("transformers")):
            print(f"{OLDEST.name} is not of the lower bound in pyproject.toml: make lock")
            return 1
        results.append(run("oldest", prepare("oldest", OLDEST), options.processes))
    if "locked" in wanted:
        results.append(run("locked", prepare("locked", LOCKED), options.processes))
    if "newest" in wanted:
        latest = newest()
        if latest == locked("transformers"):
            print(f"newest: {latest} is the locked one")
            if "locked" not in wanted:
                results.append(run("locked", prepare("locked", LOCKED), options.processes))
        else:
            python = prepare("newest", LOCKED, then=f"transformers=={latest}")
            results.append(run("newest", python, options.processes))
    print(f"\n{table(results)}\n\nPassed/failed/skipped, and seconds over all processes.")
    for result in results:
        if result.wrong:
            print(f"{result.name}: {result.wrong}")
        for test in result.failed:
            print(f"{result.name}: FAILED {test}")
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
