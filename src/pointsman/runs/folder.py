"""Files of a run folder, which may come from a stranger: nothing in it is ever followed out of it.

A link that waits in a folder for its next writer turns a truncated journal into a truncated file of the user's, and a
report into a copy of it. So the whole folder is looked through before anything is written or read (`refuse_links`), and
every file is opened without following (`open_file`), in case a link comes later.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pointsman.errors import PointsmanError, RunError

TEMPORARY = ".tmp-"
PRIVATE = 0o600  # of files that hold prompts, answers or paths of this machine
USUAL = 0o666  # less what the user's mask takes

_WRITTEN_IN_PLACE = ("lock", "journal.jsonl")
_NEVER_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_REMEDY = "Do not use a folder of others that holds one; in your own, put the file itself in its place"


def refuse_links(folder: Path) -> None:
    """Raise if anything in a folder is neither a plain file nor a folder, or leads somewhere else.

    The folder itself may be reached through a link: that one is the user's.

    Raises:
        RunError: It names the entry: a symbolic link, a pipe, a device, or a second name (hard link) of a file that is
            written in place.
    """
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except FileNotFoundError:
            continue  # a temporary file of a writer, gone meanwhile
        except OSError as error:
            raise RunError(f"{place} cannot be read: {error.strerror}", "Check its permissions") from None
        for entry in entries:
            try:
                state = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            what = _strange(state)
            if what is not None:
                raise RunError(f"{entry.path} is {what}, and nothing in a run folder is followed", _REMEDY)
            if stat.S_ISDIR(state.st_mode):
                waiting.append(Path(entry.path))
            elif place == folder and entry.name in _WRITTEN_IN_PLACE:
                _refuse_second_name(Path(entry.path), state)


def open_file(path: Path, flags: int, mode: int = USUAL) -> int:
    """Open a plain file, never what a link leads to, nor a pipe that would wait for its other end.

    Args:
        flags: As of `os.open`.
        mode: Of a file that is made.

    Returns:
        A file descriptor.

    Raises:
        RunError: It is something else, or, where it is to be written, has a second name (hard link).
        OSError: As of `os.open`.
    """
    try:
        descriptor = os.open(path, flags | _NEVER_FOLLOW | _BINARY, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EMLINK):
            raise RunError(f"{path} is a link or a pipe, and nothing in a run folder is followed", _REMEDY) from None
        raise
    try:
        state = os.fstat(descriptor)
        what = _strange(state) or ("a folder" if stat.S_ISDIR(state.st_mode) else None)
        if what is not None:
            raise RunError(f"{path} is {what}, where a run has a file", _REMEDY)
        if flags & (os.O_WRONLY | os.O_RDWR):
            _refuse_second_name(path, state)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: Path) -> bytes:
    """What a plain file holds. Raises as `open_file` does."""
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


def sha256_of(path: Path) -> str:
    """SHA-256 of a plain file, read a piece at a time. Raises as `open_file` does."""
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, data: bytes, mode: int = USUAL) -> None:
    """Write a file so that it is never seen half written. What stood there is replaced, never written into.

    Args:
        mode: Of the file, less what the user's mask takes.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Delete a file, a folder or a link, and never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn failures of the file system into a `RunError`."""
    try:
        yield
    except PointsmanError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RunError(
            f"Cannot write to {place}: {reason}",
            "Choose a folder you may write to with --out, or free some space",
        ) from error


def _strange(state: os.stat_result) -> str | None:
    """What an entry is, if it is neither a plain file nor a folder."""
    if stat.S_ISLNK(state.st_mode):
        return "a symbolic link"
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        return "a pipe, socket or device"
    return None


def _refuse_second_name(path: Path, state: os.stat_result) -> None:
    if state.st_nlink > 1:
        raise RunError(
            f"{path} is one file under {state.st_nlink} names (hard links), and would be changed under all of them",
            "Copy the folder with `cp -r`, and use the copy",
        )
