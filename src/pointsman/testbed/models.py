"""Where the testbed models are, and proof that they are the ones that were measured.

One checkpoint of each family ships in the package. Those of other training seeds are kept with the evidence, in the
source repository: an installed package does not have them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path

from pointsman.errors import ModelError, UnknownName

DEFAULT_FAMILY = "olmoe"
FAMILIES: tuple[str, ...] = ("olmoe", "qwen2_moe", "deepseek_v3")
"""Architectures that the testbed can be trained in."""

CHECKPOINTS = Path(__file__).parent / "checkpoints"
SOURCES = Path(__file__).parent.parent.parent
"""``src`` of a source tree; of an installed package whatever it was put into."""
KEPT = SOURCES.parent / "evidence" / "checkpoints"
"""Beside the package in a source tree. Elsewhere a folder of this name is somebody else's, see `homes`."""
HASHES = "hashes.json"
"""In either folder, committed: checkpoint name -> file name -> SHA-256."""

_SCHEME = "testbed"


def homes() -> tuple[Path, ...]:
    """Where checkpoints are: in the package, and in a source tree with the evidence."""
    in_tree = SOURCES.name == "src" and (SOURCES.parent / "scripts" / "testbed.py").is_file()
    return (CHECKPOINTS, KEPT) if in_tree else (CHECKPOINTS,)


def is_testbed(model: str) -> bool:
    """Whether ``model`` names a shipped model (``testbed`` or ``testbed:<checkpoint>``)."""
    return model == _SCHEME or model.startswith(f"{_SCHEME}:")


def shipped() -> tuple[str, ...]:
    """Names of the checkpoints in the package, one of each family: ``olmoe``, ..."""
    return tuple(sorted(_table(CHECKPOINTS)))


def kept() -> tuple[str, ...]:
    """Names of the checkpoints that are kept with the evidence: ``olmoe-seed1``, ...; none in an installed package."""
    return tuple(sorted(_table(KEPT))) if KEPT in homes() else ()


def locate(model: str = _SCHEME, *, verify: bool = True) -> Path:
    """The folder of a checkpoint, after checking its files against the committed hashes.

    Args:
        model: ``testbed``, ``testbed:olmoe``, ``testbed:qwen2_moe``, ``testbed:olmoe-seed1``, ...
        verify: read every file and compare its hash (some milliseconds; the files are small).

    Raises:
        UnknownName: there is no such checkpoint.
        ModelError: the files are missing or are not the ones that were measured.
    """
    if not is_testbed(model):
        raise UnknownName(f"{model!r} is not a testbed model", "Write testbed or testbed:<checkpoint>")
    name = model.partition(":")[2] or DEFAULT_FAMILY
    if name == "english":  # does not ship: it is built
        from pointsman.testbed.english.build import locate as locate_english

        return locate_english()
    home = next((home for home in homes() if name in _table(home)), None)
    if home is None:
        raise UnknownName(f"No testbed checkpoint is called {name!r}", _hint(name))
    if verify:
        _verify(home, name)
    return home / name


def _hint(name: str) -> str:
    family, seeded, seed = name.partition("-seed")
    if seeded and family in FAMILIES and seed.isdecimal():
        return (
            "Other training seeds are kept in the source repository, under evidence/checkpoints; or train it: "
            f"pointsman testbed train --family {family} --seed {seed}"
        )
    known = (*shipped(), *kept())
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean testbed:{close[0]}? " if close else ""
    return f"{hint}Known: {', '.join(known) or 'none'}"


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a checkpoint folder, by file name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()
    }


def record_hashes() -> None:
    """Write the tables for the checkpoints as they are now.  For maintainers, when freezing them."""
    for home in (CHECKPOINTS, KEPT):
        table = {path.name: hash_files(path) for path in sorted(home.iterdir()) if path.is_dir()}
        (home / HASHES).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _table(home: Path) -> dict[str, dict[str, str]]:
    file = home / HASHES
    if not file.is_file():
        return {}
    table: dict[str, dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    return table


def _verify(home: Path, name: str) -> None:
    for file, expected in _table(home)[name].items():
        path = home / name / file
        if not path.is_file():
            raise ModelError(f"{path} is missing", "Install pointsman again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ModelError(
                f"{path} is not the file that was measured (its SHA-256 differs)",
                "Install pointsman again, or name your own model by its folder",
            )
