"""One writer for one folder: a lock that the operating system drops when its holder dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pointsman.errors import RunError
from pointsman.runs.folder import open_file

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: int) -> None:
        os.lseek(file, 1 << 20, os.SEEK_SET)  # far behind the process id, which others may read
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FolderLock:
    """An exclusive lock on a file that holds the process id of its holder.

    The file stays behind when the holder is killed; the lock does not, so a stale file stops nobody.

    Args:
        path: The lock file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RunError: Another process (or this one) holds it, or the place cannot be written.
        """
        try:
            file = open_file(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise RunError(
                f"Cannot write to {self.path.parent}: {error.strerror}",
                "Choose a folder you may write to with --out",
            ) from error
        try:
            _try_lock(file)
        except (BlockingIOError, PermissionError):
            holder = os.read(file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            raise RunError(
                f"{self.path.parent} is being written by process {holder}",
                "Wait until it ends, or stop it; then resume",
            ) from None
        except OSError as error:
            os.close(file)
            raise RunError(
                f"{self.path.parent} cannot be locked: {error.strerror}",
                "Choose a folder on a local disk with --out",
            ) from error
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, f"{os.getpid()}\n".encode())
        self._file = file

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
