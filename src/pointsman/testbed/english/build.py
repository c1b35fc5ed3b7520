"""Building the checkpoint of ``testbed:english``, once, and finding it again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pointsman.errors import ModelError, RunError
from pointsman.testbed.english import dense
from pointsman.testbed.english.mixture import Shape, merge, upcycle

NAME = "testbed:english"
COMMAND = "pointsman testbed build english"
ADAPTERS = Path(__file__).with_name("adapters.safetensors")
ADAPTERS_SHA256 = "95e04d99dbd7cdb37801f193573762ae6b9a33cb76bc36f4fd7140b95f6836f9"
CARD = "english.json"
"""Beside the checkpoint, written last: what it was made of, and the SHA-256 of each of its files."""


def cached() -> Path:
    """Where the checkpoint lies unless a user says otherwise: in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pointsman" / "english"


def locate() -> Path:
    """The folder of the built checkpoint.

    Raises:
        ModelError: It was not built, was built from other adapters, or a file is missing or of another size.
    """
    folder = cached()
    card = read_card(folder)
    if card is None:
        raise ModelError(f"{NAME} is not built yet", f"Give `{COMMAND}`; it takes about a minute and 1.5 GB of disk")
    if card["made_of"] != made_of():
        raise ModelError(f"{folder} was built by another version of Pointsman", f"Delete it and give `{COMMAND}`")
    for name, size in card["sizes"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ModelError(f"{path} is missing or not whole", f"Delete {folder} and give `{COMMAND}`")
    return folder


def build(out: Path | None = None) -> tuple[Path, bool]:
    """Write the checkpoint, as a folder that transformers loads as any other Mixtral.

    A build that is killed leaves nothing under the name of the folder. A folder that holds what would be built is
    checked against its hashes and left as it is.

    Returns:
        The folder, and whether it was built now.

    Raises:
        ModelError: The dense model or the adapters are not there, or are not the right ones.
        RunError: The folder cannot be written, or holds something else.
    """
    folder = cached() if out is None else out
    card = read_card(folder)
    if card is not None:
        _refuse_changed(folder, card)
        return folder, False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} holds something else", "Delete it, or choose another folder with --out")
    _write(folder, dense.find())
    return folder, True


def made_of() -> dict[str, str]:
    """What the checkpoint is made of, by hash."""
    return {"dense": dense.SHA256, "adapters": ADAPTERS_SHA256}


def read_card(folder: Path) -> dict[str, Any] | None:
    """What was built in a folder; None if nothing was."""
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return card if {"made_of", "sizes", "sha256"} <= card.keys() else None
    except (OSError, ValueError):
        return None


def adapters() -> dict[str, Any]:
    """The shipped adapters and routers, after comparing their hash.

    Raises:
        ModelError: The file is missing, or not the one that was measured.
    """
    from safetensors.torch import load_file

    if not ADAPTERS.is_file():
        raise ModelError(f"{ADAPTERS} is missing", "Install pointsman again")
    if dense.file_hash(ADAPTERS) != ADAPTERS_SHA256:
        raise ModelError(f"{ADAPTERS} is not the file that was measured", "Install pointsman again")
    return dict(load_file(ADAPTERS))


def _write(folder: Path, source: Path) -> None:
    """All files into a folder beside the right one, which then takes its name."""
    taught = adapters()
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*.part"):  # of a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        model, tokenizer = dense.load(source)
        mixture = upcycle(model, Shape())
        merge(mixture, taught)
        mixture.save_pretrained(part)
        tokenizer.save_pretrained(part)
        files = sorted(path for path in part.iterdir() if path.is_file())
        card = {
            "made_of": made_of(),
            "sizes": {path.name: path.stat().st_size for path in files},
            "sha256": {path.name: dense.file_hash(path) for path in files},
        }
        (part / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # empty, as `build` has seen
        part.replace(folder)
    except OSError as error:
        raise RunError(f"Cannot write {folder} ({error.strerror})", "Choose another folder with --out") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_changed(folder: Path, card: dict[str, Any]) -> None:
    """Raise unless a folder holds what would be built, file by file."""
    if card["made_of"] != made_of():
        raise RunError(f"{folder} was built by another version of Pointsman", "Delete it and give the command again")
    for name, expected in card["sha256"].items():
        path = folder / name
        if not path.is_file() or dense.file_hash(path) != expected:
            raise ModelError(f"{path} is missing or not what was built", f"Delete {folder} and give the command again")
