"""Where the shipped testbed models are, and proof that they are the ones that were measured."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path

from pointsman.errors import ModelError, UnknownName

DEFAULT_FAMILY = "olmoe"
FAMILIES: tuple[str, ...] = ("olmoe", "qwen2_moe")
"""Architectures that the testbed can be trained in."""

CHECKPOINTS = Path(__file__).parent / "checkpoints"
HASHES = CHECKPOINTS / "hashes.json"
"""Committed table: checkpoint name -> file name -> SHA-256."""

_SCHEME = "testbed"


def is_testbed(model: str) -> bool:
    """Whether ``model`` names a shipped model (``testbed`` or ``testbed:<checkpoint>``)."""
    return model == _SCHEME or model.startswith(f"{_SCHEME}:")


def shipped() -> tuple[str, ...]:
    """Names of the checkpoints in this installation: ``olmoe``, ``olmoe-seed1``, ..."""
    return tuple(sorted(_table()))


def locate(model: str = _SCHEME, *, verify: bool = True) -> Path:
    """The folder of a shipped checkpoint, after checking its files against the committed hashes.

    Args:
        model: ``testbed``, ``testbed:olmoe``, ``testbed:qwen2_moe``, ``testbed:olmoe-seed1``, ...
        verify: read every file and compare its hash (some milliseconds; the files are small).

    Raises:
        UnknownName: no such checkpoint ships.
        ModelError: the files are missing or are not the ones that were measured.
    """
    if not is_testbed(model):
        raise UnknownName(f"{model!r} is not a testbed model", "Write testbed or testbed:<checkpoint>")
    name = model.partition(":")[2] or DEFAULT_FAMILY
    if name == "english":  # does not ship: it is built
        from pointsman.testbed.english.build import locate as locate_english

        return locate_english()
    known = shipped()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean testbed:{close[0]}? " if close else ""
        raise UnknownName(f"No testbed checkpoint is called {name!r}", f"{hint}Known: {', '.join(known) or 'none'}")
    folder = CHECKPOINTS / name
    if verify:
        _verify(name, folder)
    return folder


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a checkpoint folder, by file name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()
    }


def record_hashes() -> None:
    """Write the table for the checkpoints as they are now.  For maintainers, when freezing them."""
    folders = sorted(path for path in CHECKPOINTS.iterdir() if path.is_dir())
    table = {path.name: hash_files(path) for path in folders}
    HASHES.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _table() -> dict[str, dict[str, str]]:
    if not HASHES.is_file():
        return {}
    table: dict[str, dict[str, str]] = json.loads(HASHES.read_text(encoding="utf-8"))
    return table


def _verify(name: str, folder: Path) -> None:
    for file, expected in _table()[name].items():
        path = folder / file
        if not path.is_file():
            raise ModelError(f"{path} is missing", "Install pointsman again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ModelError(
                f"{path} is not the file that was measured (its SHA-256 differs)",
                "Install pointsman again, or name your own model by its folder",
            )
