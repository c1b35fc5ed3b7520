"""A run survives everything: kills at any byte, damage, a second writer, and people who mix folders up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pointsman.runs.run as run_module
from pointsman.errors import RunError
from pointsman.runs.provenance import provenance, without_home
from pointsman.runs.run import Run

CONFIG: dict[str, Any] = {"model": "testbed:olmoe", "seed": 3, "n": [1, 2, 5]}
SOURCE = Path(run_module.__file__).parents[2]


def step(i: int) -> dict[str, Any]:
    """A deterministic step whose floats have no short decimal form."""
    return {
        "i": i,
        "x": (i + 1) / 7,
        "tiny": 5e-324 * i,
        "parts": [1e300 / (i + 3), -0.0],
        "text": "é\u2028\n",
    }


def never() -> Any:
    raise AssertionError("a step that is done was computed again")


# ---------------------------------------------------------------------- kill and resume

WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_run import CONFIG, work
from pointsman.runs.run import Run
with Run.create(Path(sys.argv[1]), "audit", CONFIG) as run:
    work(run, pause=0.02)
"""


def work(run: Run, pause: float = 0.0) -> None:
    """Twenty steps, then results that depend on every bit of them."""
    values = []
    for i in range(20):
        values.append(run.remember(f"step/{i}", lambda i=i: step(i)))  # type: ignore[misc]
        time.sleep(pause)
    run.write_results({"values": values, "sum": sum(v["x"] for v in values)})


def test_kill_minus_nine_and_resume(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with Run.create(whole, "audit", CONFIG) as run:
        work(run)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(killed), str(Path(__file__).parent)], env=environment)
    journal = killed / "journal.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, "the worker ended on its own"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with pytest.raises(RunError, match=f"written by process {process.pid}"):
        Run.open(killed)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "results.json").exists()
    assert (killed / "lock").exists(), "a stale lock file stays"
    with Run.open(killed) as run:
        assert 4 <= len(run.keys()) < 20
        work(run)
    assert (killed / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert journal.read_bytes() == (whole / "journal.jsonl").read_bytes()


def test_torn_at_every_byte(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r", "audit", CONFIG) as run:
        for i in range(3):
            run.remember(str(i), partial(step, i))
    journal = tmp_path / "r" / "journal.jsonl"
    whole = journal.read_bytes()
    for length in range(len(whole)):
        journal.write_bytes(whole[:length])
        with Run.open(tmp_path / "r") as run:
            assert len(run.keys()) == max(0, whole[:length].count(b"\n") - 1)  # the first line is of the manifest
            assert [run.remember(str(i), partial(step, i)) for i in range(3)] == [step(i) for i in range(3)]
        assert journal.read_bytes() == whole


@pytest.mark.parametrize("noise", [b"\0" * 50, b"\0" * 50 + b"\n", b'{"key": "2", "value": 1, "crc32": "00000000"}\n'])
def test_a_last_line_of_noise_is_dropped(tmp_path: Path, noise: bytes) -> None:
    with Run.create(tmp_path / "r", "audit", CONFIG) as run:
        run.remember("0", lambda: 1)
    journal = tmp_path / "r" / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + noise)
    with Run.open(tmp_path / "r", read_only=True) as run:
        assert run.keys() == ("0",)
    assert journal.read_bytes() == whole + noise, "a reader changes nothing"
    with Run.open(tmp_path / "r") as run:
        assert run.keys() == ("0",)
    assert journal.read_bytes() == whole


def flip(data: bytes) -> bytes:
    return data.replace(b'"x": 0.2857', b'"x": 0.2858')


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda d: d.replace(b'"i": 1', b'"i":  1'),
        lambda d: d.replace(b"\n", b"\n\n", 1),
        lambda d: d + d,
    ],
    ids=["digit", "space", "blank line", "twice"],
)
def test_damage_in_the_middle_is_told(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    with Run.create(tmp_path / "r", "audit", CONFIG) as run:
        for i in range(3):
            run.remember(str(i), partial(step, i))
    journal = tmp_path / "r" / "journal.jsonl"
    damaged = damage(journal.read_bytes())
    assert damaged != journal.read_bytes()
    journal.write_bytes(damaged)
    with pytest.raises(RunError, match=r"line [235]: the journal is damaged.*Delete this line"):
        Run.open(tmp_path / "r")
    assert journal.read_bytes() == damaged


# ---------------------------------------------------------------------- remember


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(value=json_values, key=st.text())
def test_values_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, value: Any, key: str) -> None:
    folder = tmp_path_factory.mktemp("any") / "r"
    with Run.create(folder, "audit", CONFIG) as run:
        first = run.remember(key, lambda: value)
    with Run.open(folder) as run:
        again = run.remember(key, never)
    assert repr(first) == repr(again)
    assert first == value


def test_remember_reads_back(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r", "audit", CONFIG) as run:
        first = run.remember("a", lambda: {"t": (1, 2), "odd": {1: 0.5}})  # type: ignore[dict-item]
        assert first == {"t": [1, 2], "odd": {"1": 0.5}}
        first["t"].append(3)
        assert run.remember("a", never)["t"] == [1, 2], "callers cannot spoil the journal"
        assert "a" in run
        assert "b" not in run
        nested = run.remember("outer", lambda: run.remember("inner", lambda: 1) + 1)
        assert nested == 2
        assert run.keys() == ("a", "inner", "outer")


def test_what_is_not_json_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r", "audit", CONFIG) as run:
        run.remember("good", lambda: 1)
        before = (tmp_path / "r" / "journal.jsonl").read_bytes()
        for value in (float("nan"), [float("inf")]):
            with pytest.raises(RunError, match="step 'bad' holds a number that is not finite"):
                run.remember("bad", lambda value=value: value)  # type: ignore[misc]
        with pytest.raises(RunError, match="is not JSON"):
            run.remember("bad", lambda: {1, 2})  # type: ignore[arg-type, return-value]
        with pytest.raises(KeyboardInterrupt):
            run.remember("bad", interrupt)
        assert (tmp_path / "r" / "journal.jsonl").read_bytes() == before
        with pytest.raises(RunError, match="not finite"):
            run.write_results({"x": float("nan")})
        assert not (tmp_path / "r" / "results.json").exists()


def interrupt() -> Any:
    raise KeyboardInterrupt


def test_a_failed_write_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a line: what was written of it goes, and the next step is sound."""
    with Run.create(tmp_path / "r", "audit", CONFIG) as run:
        run.remember("a", lambda: 1)
        write = os.write

        def full(file: int, data: bytes) -> int:
            write(file, data[:7])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(RunError, match=r"No space left on device.*free some space"):
                run.remember("b", lambda: 2)
        assert "b" not in run
        assert run.remember("b", lambda: 3) == 3
    with Run.open(tmp_path / "r") as run:
        assert (run.remember("a", never), run.remember("b", never)) == (1, 3)


# ---------------------------------------------------------------------- folders


def test_manifest_and_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Run.create(None, "audit", CONFIG) as one, Run.create(None, "audit", CONFIG) as two:
        assert one.folder != two.folder
        assert one.folder.parent == Path("runs")
        assert one.folder.name.startswith("audit-testbed-olmoe-2")
        manifest = json.loads((one.folder / "manifest.json").read_bytes())
    assert (manifest["schema"], manifest["verb"], manifest["config"]) == ("pointsman.run/1", "audit", CONFIG)
    assert manifest["seed"] == 3
    assert {"python", "torch", "transformers", "pointsman"} <= manifest["versions"].keys()
    assert manifest["created"].endswith("+00:00")
    with Run.create(None, "audit", {"model": "/home/someone/My Model!/"}) as run:
        assert run.folder.name.startswith("audit-my-model-2")


def test_the_same_run_is_continued_another_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with Run.create(folder, "audit", CONFIG) as run:
        run.remember("a", lambda: 1)
    with Run.create(folder, "audit", CONFIG) as run:
        assert run.remember("a", never) == 1
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for verb, config in (("audit", {**CONFIG, "seed": 4}), ("harden", CONFIG)):
        with pytest.raises(RunError, match=r"holds another run.*`pointsman resume"):
            Run.create(folder, verb, config)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.tex").write_text("x")
    with pytest.raises(RunError, match="not empty and is no run"):
        Run.create(mine, "audit", CONFIG)
    assert [p.name for p in mine.iterdir()] == ["chapter.tex"]
    with pytest.raises(RunError, match="is a file"):
        Run.create(mine / "chapter.tex", "audit", CONFIG)
    with pytest.raises(RunError, match=r"Cannot write to .*--out"):
        Run.create(mine / "chapter.tex" / "deeper", "audit", CONFIG)
    if os.geteuid() != 0:
        mine.chmod(0o500)
        with pytest.raises(RunError, match=r"Cannot write to .*--out"):
            Run.create(mine / "deeper", "audit", CONFIG)
        mine.chmod(0o700)
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path / "empty", "audit", CONFIG).close()


def test_open_wants_a_sound_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a folder"):
        Run.open(tmp_path / "none")
    with pytest.raises(RunError, match=r"is no run: it has no manifest\.json"):
        Run.open(tmp_path)
    folder = tmp_path / "r"
    Run.create(folder, "audit", CONFIG).close()
    manifest = folder / "manifest.json"
    good = manifest.read_text()
    for text, message in (
        (good[:40], "is damaged"),
        ("[]", "is damaged"),
        (good.replace("run/1", "run/9"), "schema 'pointsman.run/9'"),
        ('{"schema": "pointsman.run/1"}', "is damaged"),
        ("\xff", "is damaged"),
    ):
        manifest.write_text(text, encoding="latin-1")
        with pytest.raises(RunError, match=message):
            Run.open(folder)
    manifest.write_text(good)
    with Run.open(folder) as run:
        assert run.config == CONFIG
        assert run.verb == "audit"
        assert run.version_changes() == []
    manifest.write_text(json.dumps({**json.loads(good), "versions": {"torch": "1.0", "gone": "2"}}))
    with Run.open(folder) as run:
        (change,) = run.version_changes()
        assert change.startswith("torch 1.0 -> ")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", "audit", CONFIG)
    attempts: list[Callable[[], Run]] = [
        partial(Run.open, tmp_path / "r"),
        partial(Run.create, tmp_path / "r", "audit", CONFIG),
    ]
    for again in attempts:
        with pytest.raises(RunError, match=f"is being written by process {os.getpid()}"):
            again()
    with Run.open(tmp_path / "r", read_only=True) as reader:
        with pytest.raises(RunError, match="reading only"):
            reader.remember("a", never)
        with pytest.raises(RunError, match="reading only"):
            reader.write_results({})
        with pytest.raises(RunError, match="no results yet"):
            reader.read_results()
    run.close()
    run.close()
    with pytest.raises(RunError, match="closed"):
        run.remember("a", never)
    Run.open(tmp_path / "r").close()


def test_a_failed_open_gives_the_lock_back(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r", "audit", CONFIG) as run:
        run.remember("a", lambda: 1)
    journal = tmp_path / "r" / "journal.jsonl"
    good = journal.read_bytes()
    journal.write_bytes(b"x\n" + good)
    for _ in range(2):
        with pytest.raises(RunError, match="line 1: the journal is damaged"):
            Run.open(tmp_path / "r")
    journal.write_bytes(good)
    Run.open(tmp_path / "r").close()


# ---------------------------------------------------------------------- files


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r", "audit", CONFIG) as run:
        run.write_results({"x": 0.1})
        assert run.read_results() == {"x": 0.1}
        assert run.write_text("report.html", "<p>é</p>").read_text(encoding="utf-8") == "<p>é</p>"
        assert json.loads(run.write_json("artefacts/a/b.json", [1]).read_bytes()) == [1]

        def two(path: Path) -> None:
            path.write_text("json")
            path.with_suffix(".safetensors").write_text("tensors")

        assert run.artefact("mask.json", two) == tmp_path / "r" / "artefacts" / "mask.json"
        assert run.path("artefacts/mask.safetensors").read_text() == "tensors"

        def half(path: Path) -> None:
            path.write_text("half")
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            run.artefact("mask.json", half)
        assert run.path("artefacts/mask.json").read_text() == "json"
        for name in ("../x", "/x", "a/../../x", ""):
            with pytest.raises(ValueError, match="not the name of a file within a run"):
                run.write_text(name, "x")
    left = sorted(p.name for p in (tmp_path / "r").rglob(".tmp*"))
    assert left == []


def test_leftovers_of_a_kill_are_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / ".tmp-1-manifest.json").write_text("{")
    (folder / "lock").write_text("999999\n")
    with Run.create(folder, "audit", CONFIG):
        pass
    (folder / "artefacts" / ".tmp-1").mkdir()
    (folder / "artefacts" / ".tmp-1" / "x").write_text("half")
    with Run.open(folder):
        pass
    assert sorted(p.name for p in folder.iterdir()) == ["artefacts", "journal.jsonl", "lock", "manifest.json"]
    assert list((folder / "artefacts").iterdir()) == []


def test_damaged_results(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r", "audit", CONFIG) as run:
        run.path("results.json").write_text("{")
        with pytest.raises(RunError, match=r"results\.json is damaged.*pointsman resume"):
            run.read_results()


# ---------------------------------------------------------------------- provenance


def test_provenance_says_what_but_not_who_or_where() -> None:
    facts = provenance()
    assert facts["versions"]["python"].startswith("3.")
    assert facts["threads"] >= 1
    assert facts["cpu"]
    text = json.dumps(facts, allow_nan=False)
    for private in (os.uname().nodename, str(Path.home()), str(Path.cwd())):
        assert f'"{private}"' not in text
        assert len(private) < 5 or private not in text
    assert "/home" not in text


def test_without_home() -> None:
    home = str(Path.home())
    assert without_home(f"{home}/models/x and {home}") == "~/models/x and ~"
    assert without_home(f"{home}less/x") == f"{home}less/x"
