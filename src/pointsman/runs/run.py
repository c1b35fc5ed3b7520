"""A run is a folder that survives a kill: manifest, append-only journal, artefacts, results, report.

    manifest.json   what was asked: verb, full config, versions, seed; no path of this machine, no consent to anything
    journal.jsonl   one line for every finished step: {key, value, crc32}; the truth about what is done
    artefacts/      interventions, traces: whatever is too large for the journal
    results.json    the numbers
    report.html     the page
    local.json      where model and prompts lie on this machine: for `resume`, not for sharing

Whoever computes goes through `Run.remember`: it returns what the journal holds, or computes and writes it
down. Values always come back as read from JSON, so a resumed run and an uninterrupted one see the same
floats.

A run folder may come from a stranger: nothing in it is followed (`folder.refuse_links`), and the journal knows the
checksums of the manifest and of every file that the run wrote, so that a change is noticed.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zlib import crc32

from pointsman.environment import notices
from pointsman.errors import RunError
from pointsman.runs.folder import (
    PRIVATE,
    TEMPORARY,
    USUAL,
    open_file,
    read_file,
    refuse_links,
    remove,
    replace_file,
    sha256_of,
    writing,
)
from pointsman.runs.lock import FolderLock
from pointsman.runs.provenance import versions

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

SCHEMA = "pointsman.run/1"
MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
RESULTS = "results.json"
REPORT = "report.html"
ARTEFACTS = "artefacts"
COMPLETIONS = f"{ARTEFACTS}/completions.jsonl"
LOCK = "lock"
LOCAL = "local.json"
MODEL_STEP, COMMAND_STEP, ABLE, FORECAST = "model", "command", "able", "forecast"
"""The steps before the work: what a run loaded, how it was begun, what its model is able to, what it will take."""
_OWN = "pointsman:"  # begins the keys of journal lines that are no steps
_BOUND = f"{_OWN}manifest"
_WROTE = f"{_OWN}file:"


class Run:
    """One run's folder, from `create` or `open`; as a context manager it releases the folder at its end."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], lock: FolderLock | None) -> None:
        """Not for callers: use `create` or `open`. `lock` is held; without one the run is read-only."""
        self.folder = folder
        self.manifest = manifest
        self._lock = lock
        self._journal: int | None = None  # file descriptor
        self._done, self._end = _read_journal(folder / JOURNAL)
        self._wrote = _files_of(self._done)  # the checksum of every file that the run wrote, the last one written down
        self._check_manifest()
        self.was_bound = _BOUND in self._done or not self._done
        if lock is not None:
            self._prepare()

    # ------------------------------------------------------------------ making and opening

    @classmethod
    def create(
        cls,
        folder: Path | None,
        verb: str,
        config: Mapping[str, Any],
        same: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = operator.eq,
    ) -> Self:
        """Start a run, or continue it if `folder` holds the very same one (same verb and config).

        Args:
            folder: Where it lives; new, empty, or this run's own. None: ``runs/<verb>-<model>-<time>``.
            verb: The command, for example ``"audit"``.
            config: Everything that decides the results, as JSON; not `folder` itself. Its entries `model` and
                `seed` are used for the folder's name and the manifest.
            same: Whether the config of a run that is there and `config` ask the same.

        Raises:
            RunError: The folder cannot be used.
        """
        config = json.loads(_dumps(config, "the config"))
        folder = _default_folder(verb, str(config.get("model", ""))) if folder is None else folder
        _refuse_foreign(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        lock = FolderLock(folder / LOCK)
        lock.acquire()
        try:
            if (folder / MANIFEST).exists():
                manifest = _read_manifest(folder)
                if manifest["verb"] != verb or not same(manifest["config"], config):
                    raise RunError(
                        f"{folder} holds another run ({manifest['verb']} with other settings)",
                        f"Choose another folder with --out, or continue it with `pointsman resume {folder}`",
                    )
            else:
                manifest = {
                    "schema": SCHEMA,
                    "verb": verb,
                    "config": config,
                    "seed": config.get("seed"),
                    "versions": versions(),
                    "notices": notices(),
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                replace_file(folder / MANIFEST, _dumps(manifest, MANIFEST, indent=2).encode() + b"\n")
            return cls(folder, manifest, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, folder: Path, *, read_only: bool = False) -> Self:
        """Open a run that exists.

        A last journal line that was cut off by a kill is dropped.

        Args:
            folder: The run's folder.
            read_only: Look only: take no lock, and change nothing.

        Raises:
            RunError: It is no run, it is damaged, something in it leads out of it, or another process is writing it.
        """
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder", "Give the folder of a run, for example one in runs/")
        if not os.path.lexists(folder / MANIFEST):
            raise RunError(f"{folder} is no run: it has no {MANIFEST}", "Give the folder of a run")
        refuse_links(folder)
        manifest = _read_manifest(folder)
        if read_only:
            return cls(folder, manifest, None)
        lock = FolderLock(folder / LOCK)
        lock.acquire()
        try:
            return cls(folder, manifest, lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Release the folder. What was written stays."""
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ what it is

    @property
    def verb(self) -> str:
        return str(self.manifest["verb"])

    @property
    def config(self) -> dict[str, Any]:
        """A copy of the config that the run was created with."""
        config: dict[str, Any] = json.loads(json.dumps(self.manifest["config"]))
        return config

    def version_changes(self) -> list[str]:
        """Packages whose version differs from the one the run began with: resumed results may then differ."""
        then, now = self.manifest.get("versions", {}), versions()
        return [f"{name} {then[name]} -> {now[name]}" for name in then if name in now and then[name] != now[name]]

    # ------------------------------------------------------------------ the journal

    def __contains__(self, key: object) -> bool:
        """Is this step done?"""
        return key in self._done

    def keys(self) -> tuple[str, ...]:
        """The steps that are done, in the order they were."""
        return tuple(key for key in self._done if not key.startswith(_OWN))

    @property
    def has_begun(self) -> bool:
        """Is a step of the work itself done?"""
        return bool(set(self.keys()) - {MODEL_STEP, COMMAND_STEP, ABLE, FORECAST})

    def remember(self, key: str, compute: Callable[[], JSON]) -> Any:
        """The value of step `key`: from the journal if it is done, else computed and written there.

        Args:
            key: Name of the step, unique within the run.
            compute: Makes the value: JSON, without NaN or infinities. Called only if the step is not done.

        Returns:
            The value as read back from JSON (tuples are lists), a fresh copy at every call.

        Raises:
            RunError: The value is not JSON, or the journal cannot be written.
        """
        if key not in self._done:
            self._refuse_read_only()
            what = f"step {key!r}"
            value = _dumps(compute(), what)
            value = _dumps(json.loads(value), what)  # as read back, also where keys were no strings
            self._append(key, value)
        return self.recall(key)

    def recall(self, key: str) -> Any:
        """The value of a step that is done."""
        return json.loads(self._done[key])

    def _append(self, key: str, value: str) -> None:
        """Write one line and wait until it is on disk; if that fails, leave no trace of it."""
        assert self._journal is not None
        data = _line(key, value)
        end = self._end
        try:
            with writing(self.folder):
                written = 0
                while written < len(data):
                    written += os.write(self._journal, data[written:])
                os.fsync(self._journal)
            self._done[key] = value
            self._end = end + len(data)
        except BaseException:  # also Ctrl-C between two bytes
            self._done.pop(key, None)
            self._end = end
            with suppress(OSError):
                os.ftruncate(self._journal, end)
            raise

    def _prepare(self) -> None:
        """Make the folder ready to be written: no torn line, no leftovers of a kill."""
        with writing(self.folder):
            (self.folder / ARTEFACTS).mkdir(exist_ok=True)
            for place in (self.folder, self.folder / ARTEFACTS):
                for leftover in place.glob(f"{TEMPORARY}*"):
                    remove(leftover)
            self._journal = open_file(self.folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
            try:
                os.ftruncate(self._journal, self._end)
                if _BOUND not in self._done:
                    self._append(_BOUND, _dumps({"sha256": _bound(self.manifest)}, MANIFEST))
            except BaseException:
                os.close(self._journal)
                self._journal = None
                raise

    def _check_manifest(self) -> None:
        """Raise if the manifest is not the one that the journal began with."""
        if _BOUND not in self._done:
            return  # of a version that did not write it down
        bound = json.loads(self._done[_BOUND])
        if not isinstance(bound, dict) or bound.get("sha256") != _bound(self.manifest):
            raise RunError(
                f"{self.folder / MANIFEST} is not what {self.folder} began with: it was changed afterwards",
                "Put the old one back, or start a new run in another folder",
            )

    # ------------------------------------------------------------------ files

    def write_results(self, results: Mapping[str, Any]) -> Path:
        """Write ``results.json``, whole or not at all."""
        return self.write_json(RESULTS, results)

    @property
    def finished(self) -> bool:
        """Are its results there, and what the run wrote? Those that are not can be made again, from the journal."""
        path = self.folder / RESULTS
        if not path.is_file():
            return False
        try:
            _read_object(path, "")
        except RunError:
            return False
        return self._wrote.get(RESULTS) in (None, sha256_of(path))

    def changes(self, within: str = "") -> list[str]:
        """What is missing or changed of the files that the run wrote, each in a sentence without its stop.

        Args:
            within: Of the files in this folder (relative to the run's) alone.
        """
        found = []
        for name, known in self._wrote.items():
            if not Path(name).is_relative_to(within):
                continue
            path = self.folder / name
            try:
                if sha256_of(path) != known:
                    found.append(f"{path} is not what this run wrote: it was changed afterwards")
            except FileNotFoundError:
                found.append(f"{path} is missing, which this run wrote")
            except OSError as error:
                found.append(f"{path}, which this run wrote, cannot be read ({error.strerror})")
        return found

    def read_results(self) -> dict[str, Any]:
        """What ``results.json`` holds.

        Raises:
            RunError: The run has not finished, or the file is damaged.
        """
        path = self.folder / RESULTS
        if not path.exists():
            raise RunError(f"{self.folder} has no results yet", f"Finish it with `pointsman resume {self.folder}`")
        return _read_object(path, f"Make it again with `pointsman resume {self.folder}`")

    def write_json(self, name: str, value: JSON) -> Path:
        """Write `value` to the file `name` (relative to the run's folder), whole or not at all."""
        return self.write_text(name, _dumps(value, name, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Write `text` to the file `name` (relative to the run's folder) as UTF-8, whole or not at all.

        An artefact is for its owner's eyes alone: most hold prompts and answers.
        """
        path = self._inside(name)
        self._refuse_read_only()
        data = text.encode("utf-8")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_down(name, hashlib.sha256(data).hexdigest())
            replace_file(path, data, PRIVATE if Path(name).parts[0] == ARTEFACTS else USUAL)
        return path

    def artefact(self, name: str, write: Callable[[Path], object]) -> Path:
        """Make the artefact `name`, whole or not at all.

        Args:
            name: File name within ``artefacts/``.
            write: Is given a path of that name in a temporary folder and writes there; files that it puts
                beside it (a ``.safetensors`` beside a ``.json``) come along.

        Returns:
            The path of the artefact.
        """
        final = self._inside(f"{ARTEFACTS}/{name}")
        self._refuse_read_only()
        workshop = self.folder / ARTEFACTS / f"{TEMPORARY}{os.getpid()}"
        with writing(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            remove(workshop)
            workshop.mkdir()
            try:
                write(workshop / final.name)
                for made in sorted(workshop.iterdir()):
                    place = final.parent / made.name
                    self._write_down(place.relative_to(self.folder).as_posix(), sha256_of(made))
                    made.replace(place)
            finally:
                with suppress(OSError):
                    remove(workshop)
        return final

    def note_files(self, name: str) -> None:
        """Write down what the files of the folder `name` (relative to the run's folder) hold, as others wrote them."""
        self._refuse_read_only()
        with writing(self.folder):
            for path in sorted(self._inside(name).iterdir()):
                if path.is_file() and not path.name.startswith(TEMPORARY):
                    self._write_down(path.relative_to(self.folder).as_posix(), sha256_of(path))

    def _write_down(self, name: str, sha256: str) -> None:
        """Let the journal know what a file is about to hold.

        A kill in between does not pass for a change: a run without its results, written last, is not finished.
        """
        name = Path(name).as_posix()
        if self._wrote.get(name) != sha256:
            number = sum(key.startswith(_WROTE) for key in self._done)
            self._append(f"{_WROTE}{number}:{name}", _dumps({"sha256": sha256}, name))
            self._wrote[name] = sha256

    # ------------------------------------------------------------------ where things lie on this machine

    def keep_local(self, places: Mapping[str, JSON]) -> None:
        """Remember where things lie on this machine, for `resume` on this machine: no part of what is shared."""
        self._refuse_read_only()
        text = _dumps({"what": "Where things lie on this machine. Not for sharing.", **places}, LOCAL, indent=2)
        with writing(self.folder):
            replace_file(self.folder / LOCAL, text.encode() + b"\n", PRIVATE)

    def local(self) -> dict[str, Any]:
        """What `keep_local` was given; nothing, where the folder came without it."""
        path = self.folder / LOCAL
        return _read_object(path, f"Delete {LOCAL}") if path.exists() else {}

    def path(self, name: str) -> Path:
        """The path of the file `name` (relative to the run's folder), whether or not it is there."""
        return self._inside(name)

    def _inside(self, name: str) -> Path:
        """A path in the run's folder; a name that leads out of it is a bug of the caller."""
        if not _is_inside(name):
            raise ValueError(f"{name!r} is not the name of a file within a run")
        return self.folder / name

    def _refuse_read_only(self) -> None:
        if self._journal is None:
            raise RunError(f"{self.folder} is closed or open for reading only", f"Use `pointsman resume {self.folder}`")


# ---------------------------------------------------------------------- helpers


def _line(key: str, value: str) -> bytes:
    """A journal line. `value` is JSON text; the checksum is over key and value as they are written."""
    name = json.dumps(key)
    check = crc32(f"{name}\n{value}".encode())
    return f'{{"key": {name}, "value": {value}, "crc32": "{check:08x}"}}\n'.encode()


def _read_journal(path: Path) -> tuple[dict[str, str], int]:
    """Finished steps as JSON text, and the length of the good part in bytes. A torn last line is no step."""
    try:
        data = read_file(path)
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", "Check its permissions") from None
    done: dict[str, str] = {}
    end = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        step = _parse_line(line)
        last = number == len(lines) - 1 and not lines[-1]
        if step is None and last:
            break  # a crash of the machine can leave a whole line of noise
        if step is None or step[0] in done:
            raise RunError(
                f"{path}, line {number}: the journal is damaged",
                "Delete this line and all after it, then resume: what they held is computed again",
            )
        done[step[0]] = step[1]
        end += len(line) + 1
    return done, end


def _parse_line(line: bytes) -> tuple[str, str] | None:
    """Key and value (as JSON text) of a journal line, or None if it is not whole."""
    try:
        entry = json.loads(line)
        key, value = entry["key"], json.dumps(entry["value"], allow_nan=False)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (key, value) if isinstance(key, str) and _line(key, value) == line + b"\n" else None


def _dumps(value: Any, what: str, *, indent: int | None = None) -> str:
    """JSON text that reads back to the same value: no NaN, no infinity."""
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:
        raise RunError(
            f"{what} holds a number that is not finite",
            "Check the model with `pointsman doctor`; if it is sound, report this as a bug",
        ) from None
    except TypeError as error:
        raise RunError(f"{what} is not JSON ({error})", "Report this as a bug") from None


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        value = json.loads(read_file(path))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", "Check its permissions") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged", remedy)
    return value


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run, checked."""
    path = folder / MANIFEST
    if not path.exists():
        raise RunError(f"{folder} is no run: it has no {MANIFEST}", "Give the folder of a run")
    manifest = _read_object(path, "Start the run again in a new folder")
    if manifest.get("schema") != SCHEMA:
        raise RunError(
            f"{path} has the schema {manifest.get('schema')!r}, not {SCHEMA!r}",
            "Open it with the version of Pointsman that made it",
        )
    if not isinstance(manifest.get("verb"), str) or not isinstance(manifest.get("config"), dict):
        raise RunError(f"{path} is damaged", "Start the run again in a new folder")
    return manifest


def _refuse_foreign(folder: Path) -> None:
    """Raise if `folder` is something else than a run or an empty place."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file", "Choose a new folder with --out")
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror}", "Choose another folder with --out") from None
    strange = [name for name in names if name != LOCK and not name.startswith(TEMPORARY)]
    if strange and MANIFEST not in names:
        raise RunError(f"{folder} is not empty and is no run", "Choose a new or empty folder with --out")


def _default_folder(verb: str, model: str) -> Path:
    """``runs/<verb>-<model>-<time>``, one that does not exist."""
    slug = re.sub(r"[^a-z0-9._]+", "-", Path(model).name.lower()).strip("-.")[:60] or "model"
    stem = f"{verb}-{slug}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    folder, count = Path("runs") / stem, 1
    while folder.exists():
        count += 1
        folder = Path("runs") / f"{stem}-{count}"
    return folder


def _bound(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what decides the results, however it is written."""
    asked = {name: manifest.get(name) for name in ("verb", "config", "seed")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _files_of(done: Mapping[str, str]) -> dict[str, str]:
    """The last checksum of every file in a journal; lines that name no file within the run are nobody's."""
    found: dict[str, str] = {}
    for key, value in done.items():
        name = key.removeprefix(_WROTE).partition(":")[2] if key.startswith(_WROTE) else ""
        entry = json.loads(value) if name and _is_inside(name) else None
        if isinstance(entry, dict) and isinstance(entry.get("sha256"), str):
            found[name] = entry["sha256"]
    return found


def _is_inside(name: str) -> bool:
    """Is this the name of a file within a run?"""
    relative = Path(name)
    return not relative.is_absolute() and ".." not in relative.parts and bool(relative.parts) and "\0" not in name
