"""A run folder may come from a stranger: nothing in it is followed, and what was changed in it is noticed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pointsman.errors import RunError
from pointsman.jobs.finished import write_report
from pointsman.runs.folder import open_file, read_file, replace_file
from pointsman.runs.lock import FolderLock
from pointsman.runs.provenance import shareable, shareable_command
from pointsman.runs.run import Run

CONFIG: dict[str, Any] = {"model": "testbed:olmoe", "seed": 3, "samples": 20}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with an artefact in a folder of its own."""
    with Run.create(tmp_path / "r", "audit", CONFIG) as made:
        made.remember("a", lambda: 1)
        made.write_text("artefacts/completions.jsonl", "{}\n")
        made.write_text("artefacts/traces-x/traces.json", "{}\n")
        made.write_results({"x": 1})
        made.write_text("report.html", "<p>")
    return tmp_path / "r"


def everything(folder: Path) -> dict[Path, Any]:
    """What is in a folder, and when it was written."""
    return {p: (p.lstat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in sorted(folder.rglob("*"))}


WRITERS: dict[str, Callable[[Path], object]] = {
    "open": Run.open,
    "read only": lambda folder: Run.open(folder, read_only=True),
    "create": lambda folder: Run.create(folder, "audit", CONFIG),
    "report": write_report,
}


# ---------------------------------------------------------------------- links


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize(
    "name",
    ["lock", "journal.jsonl", "manifest.json", "results.json", "report.html", "artefacts",
     "artefacts/completions.jsonl", "artefacts/traces-x", "artefacts/traces-x/traces.json", ".tmp-1",
     "artefacts/.tmp-1", ".report.html.1.tmp", "local.json"],
)  # fmt: skip
def test_a_symbolic_link_anywhere_is_refused_before_anything_is_written(
    tmp_path: Path, run: Path, name: str, how: str
) -> None:
    mine = tmp_path / "mine"
    if (run / name).is_dir():
        (run / name).rename(mine)
    else:
        mine.write_bytes((run / name).read_bytes() if (run / name).exists() else b"precious")
        (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(mine)
    before = everything(tmp_path)
    with pytest.raises(RunError) as refused:
        WRITERS[how](run)
    assert str(refused.value).startswith(f"{run / name} is a symbolic link, and nothing in a run folder is followed.")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["lock", "journal.jsonl"])
def test_a_link_that_leads_nowhere_makes_no_file_there(tmp_path: Path, run: Path, name: str) -> None:
    (run / name).unlink()
    (run / name).symlink_to(tmp_path / "new")
    with pytest.raises(RunError, match="is a symbolic link"):
        Run.open(run)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["lock", "journal.jsonl", "results.json", "artefacts/traces-x/pipe"])
def test_a_pipe_is_refused_and_not_waited_for(run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    for how in WRITERS.values():
        with pytest.raises(RunError, match=f"{run / name} is a pipe, socket or device"):
            how(run)


@pytest.mark.parametrize("name", ["lock", "journal.jsonl"])
def test_a_hard_link_is_not_written_through(tmp_path: Path, run: Path, name: str) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious")
    (run / name).unlink()
    (run / name).hardlink_to(mine)
    with pytest.raises(RunError, match=rf"{name} is one file under 2 names \(hard links\).*cp -r"):
        Run.open(run)
    assert mine.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["results.json", "report.html", "artefacts/completions.jsonl"])
def test_what_is_replaced_leaves_its_other_name_alone(tmp_path: Path, run: Path, name: str) -> None:
    mine = tmp_path / "mine"
    mine.hardlink_to(run / name)
    before = mine.read_bytes()
    with Run.open(run) as opened:
        opened.write_text(name, "new")
    assert mine.read_bytes() == before
    assert (run / name).read_text() == "new"


def test_the_folder_itself_may_be_reached_through_a_link(tmp_path: Path, run: Path) -> None:
    (tmp_path / "latest").symlink_to(run)
    with Run.open(tmp_path / "latest") as opened:
        assert opened.read_results() == {"x": 1}


def test_a_link_that_comes_later_is_not_followed_either(tmp_path: Path, run: Path) -> None:
    """Between the look through the folder and the opening of a file."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious")
    with Run.open(run) as opened:
        (run / "results.json").unlink()
        (run / "results.json").symlink_to(mine)
        with pytest.raises(RunError, match="is a link or a pipe"):
            opened.read_results()
        opened.write_results({"x": 2})
        assert opened.read_results() == {"x": 2}
    (tmp_path / "lock").symlink_to(mine)
    with pytest.raises(RunError, match="is a link or a pipe"):
        FolderLock(tmp_path / "lock").acquire()
    with pytest.raises(RunError, match="is a link or a pipe"):
        open_file(tmp_path / "lock", os.O_WRONLY | os.O_CREAT)
    (tmp_path / f".tmp-{os.getpid()}-new").symlink_to(mine)
    replace_file(tmp_path / "new", b"x")
    assert (read_file(tmp_path / "new"), mine.read_bytes()) == (b"x", b"precious")


def test_leftovers_are_cleared_and_nothing_beyond(tmp_path: Path, run: Path) -> None:
    """Should a link come after the look through the folder."""
    from pointsman.runs.folder import remove

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    remove(tmp_path / "link")
    assert (tmp_path / "mine" / "precious").read_text() == "x"
    assert not (tmp_path / "link").is_symlink()


# ---------------------------------------------------------------------- who may read


def test_files_with_prompts_and_answers_are_for_their_owner_alone(run: Path) -> None:
    os.umask(before := os.umask(0))
    assert before != 0o077, "this test needs a mask that shows something"
    with Run.open(run) as opened:
        opened.keep_local({"model": "/data/me/model"})
        opened.write_text("artefacts/contexts.jsonl", "{}\n")
    private = ["journal.jsonl", "local.json", "artefacts/completions.jsonl", "artefacts/contexts.jsonl"]
    assert {name: stat.S_IMODE((run / name).stat().st_mode) for name in private} == dict.fromkeys(private, 0o600)
    for name in ("manifest.json", "results.json"):
        assert stat.S_IMODE((run / name).stat().st_mode) == 0o666 & ~before


def test_a_path_as_it_may_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home" / "someone", tmp_path / "work" / "here"
    for folder in (home, here):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for path, shown in {
        "testbed:olmoe": "testbed:olmoe", "org/name": "org/name", "./model": "./model", "data/b.csv": "data/b.csv",
        f"{here}/data/b.csv": "data/b.csv", f"{home}/models/x": "~/models/x", "~/x": "~/x",
        f"{tmp_path}/elsewhere/x": "x", "../someone/x": "x", f"{here}": "here", "/": "/",
    }.items():  # fmt: skip
        assert shareable(path) == shown
        assert shareable(shown) == shown
    monkeypatch.chdir(tmp_path / "home")  # relative to it, the home would say who
    assert shareable(f"{home}/models/x") == "~/models/x"
    command = f"pointsman audit '{home}/my models/x' --out={tmp_path}/there --behaviors ../../y/b.csv --limit 6"
    shown = "pointsman audit ~/'my models/x' --out=there --behaviors b.csv --limit 6"
    assert shareable_command(command) == shown
    assert shareable_command(shown) == shown


# ---------------------------------------------------------------------- what was changed


@pytest.mark.parametrize(
    "change", [{"samples": 2000}, {"seed": 4}, {"model": "other"}, {"more": 1}], ids=lambda c: next(iter(c))
)
def test_a_manifest_that_was_edited_is_refused(run: Path, change: dict[str, Any]) -> None:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest))  # written otherwise, the same
    Run.open(run).close()
    path.write_text(json.dumps({**manifest, "config": {**manifest["config"], **change}}))
    before = everything(run)
    for read_only in (True, False):
        with pytest.raises(RunError, match=r"manifest\.json is not what .*r began with: it was changed afterwards"):
            Run.open(run, read_only=read_only)
    after = everything(run)
    assert {p: v for p, v in after.items() if p.name != "lock"} == {p: v for p, v in before.items() if p.name != "lock"}


def test_a_journal_of_an_earlier_version_takes_its_manifest_as_it_stands(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r", "audit", CONFIG) as made:
        made.remember("a", lambda: 1)
    journal = tmp_path / "r" / "journal.jsonl"
    bound, old = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(old)
    with Run.open(tmp_path / "r", read_only=True) as read:
        assert not read.was_bound
    assert journal.read_bytes() == old
    with Run.open(tmp_path / "r") as opened:
        assert not opened.was_bound
        assert opened.keys() == ("a",)
    assert journal.read_bytes() == old + bound
    with Run.open(tmp_path / "r") as opened:
        assert opened.was_bound


def test_a_file_that_is_missing_or_was_changed_is_named(run: Path) -> None:
    with Run.open(run, read_only=True) as opened:
        assert opened.changes() == []
    with Run.open(run) as opened:
        opened.write_text("artefacts/completions.jsonl", '{"new": 1}\n')
        assert opened.changes() == []
    (run / "artefacts/completions.jsonl").write_text("{}\n")  # as it was once
    (run / "artefacts/traces-x/traces.json").unlink()
    with Run.open(run, read_only=True) as opened:
        assert opened.changes() == [
            f"{run}/artefacts/completions.jsonl is not what this run wrote: it was changed afterwards",
            f"{run}/artefacts/traces-x/traces.json is missing, which this run wrote",
        ]
        assert len(opened.changes(within="artefacts/traces-x")) == 1
        assert opened.read_results() == {"x": 1}, "the results stay readable"


@pytest.mark.parametrize("spoil", [lambda d: d[:-4], lambda d: d.replace(b"1", b"2"), lambda d: b""])
def test_results_that_were_spoilt_are_none(run: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = run / "results.json"
    with Run.open(run) as opened:
        assert opened.finished
        path.write_bytes(spoil(path.read_bytes()))
        assert not opened.finished
        opened.write_results({"x": 1})
        assert opened.finished


def test_a_kill_between_checksum_and_file_leaves_an_unfinished_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pointsman.runs.run as module

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with Run.open(run) as opened:
        monkeypatch.setattr(module, "replace_file", killed)
        with pytest.raises(KeyboardInterrupt):
            opened.write_results({"x": 2})
    with Run.open(run) as opened:
        assert not opened.finished


def test_a_journal_cannot_point_at_files_outside(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with Run.open(run) as opened:
        for number, name in enumerate(["../mine", str(tmp_path / "mine"), "", "a\0b"]):
            opened.remember(f"pointsman:file:9{number}:{name}", lambda: {"sha256": "0"})
        opened.remember("pointsman:file:", lambda: 1)
        opened.remember("pointsman:file:100:x", lambda: [1])
    with Run.open(run, read_only=True) as opened:
        assert opened.changes() == []
