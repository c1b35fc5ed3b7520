"""Ctrl-C and ``kill -9`` lose nothing: a resumed run gives what an uninterrupted one gives."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import (
    EFFORT,
    Cli,
    forget_checksums,
    save_moe,
    start,
    steps_done,
    testbed_rows,
    wait_for,
    without_times,
    write_csv,
)

from pointsman.cli import main

ASKED = ("--behaviors", "b.csv", "--out", "run", *EFFORT, "--candidates", "4")
"""Relative paths: the same command line, and so the same provenance, in every folder."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes folders with the same model and behaviours in them."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        save_moe(folder / "model")
        write_csv(folder / "b.csv", testbed_rows("restricted", 40))
        return folder

    return make


@pytest.fixture(scope="module")
def whole(places: Callable[[str], Path]) -> Any:
    """The results of a run that nobody stopped."""
    folder = places("whole")
    with chdir(folder):
        assert main(["audit", "model", *ASKED]) == 0
    return json.loads((folder / "run/results.json").read_text())


def check_resumed(cli: Cli, folder: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, *, begun: bool = True) -> None:
    """Resume from another working folder, and compare with `whole`."""
    assert not (folder / "run/results.json").exists()
    monkeypatch.chdir("/")
    done = cli("resume", folder / "run", "--json")
    assert done.code == 0, done.err
    assert _comparable(done.json) == _comparable(whole)
    assert ("\nThe whole run: about " in done.err) == begun  # the forecast
    assert (folder / "run/report.html").is_file()


def _comparable(results: Any) -> Any:
    kept = without_times(results)
    kept["provenance"].pop("threads")
    return kept


def test_ctrl_c_exits_130_and_resume_gives_the_same_results(
    cli: Cli, places: Callable[[str], Path], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = places("interrupted")
    process = start(folder, "audit", "model", *ASKED)
    wait_for(process, lambda: steps_done(folder / "run") >= 8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "pointsman: Interrupted. Continue with `pointsman resume run`."
    assert "Traceback" not in err
    assert err.count("pointsman: ") == 1
    check_resumed(cli, folder, whole, monkeypatch)


def test_kill_9_and_resume_give_the_same_results(
    cli: Cli, places: Callable[[str], Path], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = places("killed")
    process = start(folder, "audit", "model", *ASKED)
    wait_for(process, lambda: steps_done(folder / "run") >= 12)
    process.kill()
    process.communicate(timeout=240)
    journal = folder / "run/journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"key": "torn')  # as a kill in the middle of a write would leave it
    check_resumed(cli, folder, whole, monkeypatch)


def test_ctrl_c_before_anything_is_done(
    cli: Cli, places: Callable[[str], Path], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = places("early")
    process = start(folder, "audit", "model", *ASKED)
    wait_for(process, lambda: steps_done(folder / "run") >= 2)  # the manifest's checksum, and the command line
    time.sleep(0.2)  # the model is being loaded
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "pointsman: Interrupted. Continue with `pointsman resume run`."
    check_resumed(cli, folder, whole, monkeypatch, begun=False)


# ---------------------------------------------------------------------- what a resumed run must be


@pytest.fixture
def stopped(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped in the middle, in this process."""
    from pointsman.methods.rosais import RoSais

    save_moe(here / "model")
    write_csv(here / "b.csv", testbed_rows("restricted", 40))

    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RoSais, "rank", stop)
        done = cli("audit", "model", "--behaviors", "b.csv", "--out", "run", *EFFORT)
    assert done.code == 130
    assert done.err.splitlines()[-1] == "pointsman: Interrupted. Continue with `pointsman resume run`."
    assert steps_done(here / "run") >= 1
    return here / "run"


def test_a_stopped_run_is_continued(cli: Cli, stopped: Path) -> None:
    assert "has no results.json, so there is nothing to report yet" in cli("report", stopped).refusal()
    done = cli("resume", "run")
    assert done.code == 0
    assert done.out.splitlines()[-1] == "run/report.html"


def test_the_same_command_continues_too(cli: Cli, stopped: Path) -> None:
    before = steps_done(stopped)
    assert cli("audit", "model", "--behaviors", "b.csv", "--out", "run", *EFFORT).code == 0
    assert steps_done(stopped) > before


def test_changed_behaviors_are_refused(cli: Cli, here: Path, stopped: Path) -> None:
    kept = (here / "b.csv").read_bytes()
    (here / "b.csv").write_bytes(kept + b"\n")
    line = cli("resume", "run").refusal()
    assert "b.csv has changed since run began. Put the old content back" in line
    (here / "b.csv").unlink()
    assert "b.csv, which run began with, cannot be read (No such file" in cli("resume", "run").refusal()
    (here / "b.csv").write_bytes(kept)
    assert cli("resume", "run").code == 0


def test_another_model_is_refused(cli: Cli, here: Path, stopped: Path) -> None:
    save_moe(here / "model", seed=1)
    line = cli("resume", "run").refusal(notes=1)
    assert "is not the model that this run began with" in line
    assert "Put the old checkpoint back" in line


def test_another_version_of_the_judge_is_refused(cli: Cli, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pointsman.testbed.plugin import TestbedJudge

    monkeypatch.setattr(TestbedJudge, "version", "99")
    assert "judge testbed is version 99 now" in cli("resume", "run").refusal()


def test_a_manifest_that_says_too_little_is_refused(cli: Cli, stopped: Path) -> None:
    manifest = json.loads((stopped / "manifest.json").read_text())
    for missing in ("load", "prompts", "judge", "seed"):
        changed = {**manifest, "config": {k: v for k, v in manifest["config"].items() if k != missing}}
        (stopped / "manifest.json").write_text(json.dumps(changed))
        forget_checksums(stopped)
        assert f"does not say all that is needed (KeyError: '{missing}')" in cli("resume", "run").refusal(notes=1)
    (stopped / "manifest.json").write_text(json.dumps({**manifest, "verb": "harden"}))
    forget_checksums(stopped)
    assert "run of `pointsman harden`" in cli("resume", "run").refusal()


def test_a_run_that_is_being_written_is_refused(cli: Cli, stopped: Path) -> None:
    from pointsman.runs.run import Run

    with Run.open(stopped):
        assert "is being written by process" in cli("resume", "run").refusal()


def test_an_error_in_the_middle_says_that_nothing_is_lost(
    cli: Cli, here: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointsman.methods.fsour import FSour

    def fail(*arguments: Any, **more: Any) -> None:
        raise OSError("the disk is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(FSour, "search", fail)
        done = cli("resume", "run")
    assert done.code == 1
    assert "OSError: the disk is on fire. What was done is kept: `pointsman resume run` continues." in done.err
    assert cli("resume", "run").code == 0
