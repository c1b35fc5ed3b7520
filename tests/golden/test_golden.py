"""The golden runs: a finished run of every verb, frozen with its journal, that must resume and render for ever.

They hold what a refactoring may not change: journal keys, random streams, artefacts, ``results.json``, pages and the
summary in the terminal. README.md tells how they were made, and that a refactoring never renews them.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import page_text, terminal_text

import pointsman
from pointsman.cli import main
from pointsman.jobs.finished import read_results
from pointsman.runs.results import dump

HERE = Path(__file__).resolve().parent
SHIPPED = Path(pointsman.__file__).resolve().parent / "testbed/checkpoints"
RUNS = ("audit", "steer", "evaluate")

Results = dict[str, Any]


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the golden runs with their model and prompts, as the working folder; its plug-in is installed."""
    folder = tmp_path / "golden"
    folder.mkdir()
    for name in (*RUNS, "model", "prompts", "plugin"):
        shutil.copytree(HERE / name, folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder / "plugin")
    yield folder
    sys.modules.pop("golden_world", None)


class Opened:
    """Which files this process opens and whether it looks for hosts, while it listens."""

    def __init__(self) -> None:
        self.listens = False
        self.files: list[Path] = []
        self.hosts: list[str] = []
        sys.addaudithook(self._hear)  # for ever: a hook cannot be taken away

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.listens:
            return
        if event == "open" and isinstance(arguments[0], str):
            self.files.append(Path(arguments[0]).absolute())
        elif event in ("socket.getaddrinfo", "socket.connect"):
            self.hosts.append(str(arguments))


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


def frozen(run: str) -> Results:
    results: Results = json.loads((HERE / run / "results.json").read_text(encoding="utf-8"))
    return results


def as_now(results: Results, schema: str) -> Results:
    """Frozen results as this version writes them: read through the migration that an old file takes."""
    return results if results["schema"] == schema else dump(read_results(results)[1])


def steps(folder: Path) -> list[str]:
    """The lines of a journal that are steps, as they are written."""
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith('{"key": "pointsman:')]


def asked(folder: Path) -> list[tuple[str, str]]:
    """Of all that was asked and is kept with its answer: the stage, and the id of the prompt."""
    lines = (folder / "artefacts/completions.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["stage"], row["id"]) for row in map(json.loads, lines)]


# ---------------------------------------------------------------------- the whole journal


@pytest.mark.parametrize("run", RUNS)
def test_a_whole_journal_resumes_to_the_frozen_results(
    golden: Path, run: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    import golden_world

    def refuse(self: Any, asked: Any, answers: Any) -> None:
        raise AssertionError("this stands in the journal and is done again")

    monkeypatch.setattr(golden_world.GoldenJudge, "judge", refuse)
    folder = golden / run
    (folder / "results.json").unlink()
    opened.files.clear()
    opened.listens = True
    try:
        code = main(["resume", run])
    finally:
        opened.listens = False

    assert code == 0
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert differences(as_now(frozen(run), results["schema"]), results) == []
    assert results["provenance"]["command"] == frozen(run)["provenance"]["command"]
    assert steps(folder) == steps(HERE / run)
    for artefact in sorted(p for p in (HERE / run / "artefacts").rglob("*") if p.is_file()):
        assert (golden / artefact.relative_to(HERE)).read_bytes() == artefact.read_bytes(), artefact.name
    assert results["headline"] in page_text((folder / "report.html").read_text(encoding="utf-8")).replace("‑", "-")

    assert golden / run / "journal.jsonl" in opened.files  # it was listened
    others = [f for f in opened.files if f.is_relative_to(HERE) or f.is_relative_to(SHIPPED)]
    assert [f for f in others if f.suffix != ".py"] == []  # a library may look at the source of who calls it
    assert opened.hosts == []


def differences(then: Any, now: Any, at: str = "") -> list[str]:
    """Where results differ, but for the clock and the machine; numbers that are derived anew may round differently."""
    if at == ".provenance":
        return []
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [f"{at}.{key} is in one alone" for key in sorted(then.keys() ^ now.keys())]
        return keys + [d for key in then.keys() & now.keys() for d in differences(then[key], now[key], f"{at}.{key}")]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [d for n, (a, b) in enumerate(zip(then, now, strict=True)) for d in differences(a, b, f"{at}[{n}]")]
    if isinstance(then, float) and type(now) is float:
        same = math.isclose(then, now, rel_tol=tolerance(at), abs_tol=tolerance(at))
    else:
        same = type(then) is type(now) and then == now
    return [] if same else [f"{at}: {then!r} became {now!r}"]


def tolerance(at: str) -> float:
    """What the surrogates say of traces is the only thing that torch computes again although the journal is whole."""
    return 1e-5 if at.startswith(".surrogate.") else 1e-12


# ---------------------------------------------------------------------- the page and the terminal


@pytest.mark.parametrize("run", RUNS)
def test_the_page_says_what_it_said(golden: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", run]) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n"
    text = page_text((golden / run / "report.html").read_text(encoding="utf-8"))
    assert text.splitlines() == (HERE / f"{run}.page.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("run", RUNS)
def test_the_terminal_says_what_it_said(golden: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", run]) == 0
    text = terminal_text(capsys.readouterr().out)
    assert text.splitlines() == (HERE / f"{run}.terminal.txt").read_text(encoding="utf-8").splitlines()


# ---------------------------------------------------------------------- half of the journal


@pytest.mark.parametrize("run", [pytest.param(run, marks=pytest.mark.slow if run == "steer" else ()) for run in RUNS])
def test_half_of_a_journal_is_completed(golden: Path, run: str) -> None:
    """What is computed anew may round differently on another processor, and then another route or mask is chosen.

    So no number of the second half is compared, but what was asked, what was counted and how the results are built; of
    the first half, every step.
    """
    folder = golden / run
    kept = forget_second_half(folder)
    assert main(["resume", run]) == 0

    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert steps(folder)[: len(kept)] == kept
    assert len(steps(folder)) > len(kept)
    assert asked(folder) == asked(HERE / run)
    assert counts(results) == counts(frozen(run))
    then, now = shape(as_now(frozen(run), results["schema"])), shape(results)
    empty = {path for path, kinds in (*then.items(), *now.items()) if "NoneType" in kinds or "empty" in kinds}

    def compared(paths: dict[str, set[str]]) -> set[str]:
        return {p for p in paths if not any(p == e or p.startswith((f"{e}.", f"{e}[]")) for e in empty)}

    assert compared(now) == compared(then)


def forget_second_half(folder: Path) -> list[str]:
    """Leave of a run what a kill in the middle would have left; the steps that are kept."""
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    kept = lines[: len(lines) // 2]
    journal.write_bytes(b"".join(kept))
    known = {str(json.loads(line)["key"]).partition("pointsman:file:")[2].partition(":")[2] for line in kept}
    for path in [p for p in (folder / "artefacts").rglob("*") if p.is_file()]:
        if path.relative_to(folder).as_posix() not in known:
            path.unlink()
    (folder / "results.json").unlink()
    return steps(folder)


def counts(results: Any, at: str = "") -> dict[str, int]:
    """How many prompts stand behind every rate that has a place of its own."""
    if not isinstance(results, dict):
        return {}
    own = {f"{at}.n": results["n"]} if "n" in results and "rate" in results else {}
    return own | {p: n for key, value in results.items() for p, n in counts(value, f"{at}.{key}").items()}


def shape(results: Any, at: str = "") -> dict[str, set[str]]:
    """The key paths of results, with the types that stand there; all entries of a list are taken together."""
    if isinstance(results, dict):
        parts = [shape(value, f"{at}.{key}") for key, value in results.items()]
        return _united([{at: {"dict"}}, *parts])
    if isinstance(results, list):
        return _united([{at: {"list" if results else "empty"}}, *(shape(value, f"{at}[]") for value in results)])
    return {at: {type(results).__name__}}


def _united(shapes: list[dict[str, set[str]]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for each in shapes:
        for path, kinds in each.items():
            found.setdefault(path, set()).update(kinds)
    return found
