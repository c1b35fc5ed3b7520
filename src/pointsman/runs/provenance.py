"""What a result was made with: versions, hardware, commit. Nothing that says who or where."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pointsman.environment import notices

PACKAGES = ("pointsman", "torch", "transformers", "numpy", "scipy", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result. Nothing is imported."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def provenance() -> dict[str, Any]:
    """Versions, platform, processor, accelerators, threads, commit. No host name, user name or path."""
    torch = sys.modules.get("torch")  # asked only if it is there: provenance imports nothing
    gpus: list[str] = []
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "notices": notices(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "gpus": gpus,
        "threads": torch.get_num_threads() if torch is not None else os.cpu_count(),
        "commit": _commit(),
    }


def without_home(text: str) -> str:
    """`text` with the user's home folder written as ``~``, for anything that is shown or shared."""
    home = str(Path.home())
    if home in ("", "/"):
        return text
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)


def shareable(path: str) -> str:
    """A path as it may be shared, without names of users and their folders; a name that is no path stays as it is.

    What was typed relative to the working folder stays, an absolute path becomes relative where it lies within the
    working folder, ``~/...`` within the user's home, and is its last name alone elsewhere, as is one with ``..`` in it.
    """
    place = Path(path).expanduser() if path.startswith("~") else Path(path)
    if not place.is_absolute():
        return place.name or path if ".." in place.parts else path
    home, here = Path.home(), Path.cwd()
    for form in (place, place.resolve()):
        if here != home and here not in home.parents and form.is_relative_to(here) and form != here:
            return str(form.relative_to(here))
    for form in (place, place.resolve()):
        if home != Path(home.root) and form.is_relative_to(home) and ".." not in form.parts:
            return "~" if form == home else f"~/{form.relative_to(home).as_posix()}"
    return place.resolve().name or path


def shareable_command(command: str) -> str:
    """A command line with its paths as they may be shared."""
    try:
        words = shlex.split(command)
    except ValueError:  # not one that a shell would take
        return without_home(command)
    return " ".join(map(_shareable_word, words))


_NAMED = re.compile(r"[\w.-]+:\w+=")


def _shareable_word(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if not value:
        return shlex.quote(word)
    if _NAMED.match(value):  # NAME:key=value,key=value, of which a value may be a path
        parts = (part.partition("=") for part in value.split(","))
        return shlex.quote(option + equals + ",".join(f"{key}{sign}{shareable(part)}" for key, sign, part in parts))
    if value.startswith("~") or Path(value).is_absolute() or ".." in Path(value).parts:
        value = shareable(value)
    rest = value.removeprefix("~/")  # a shell reads ~ only where it is not quoted
    return f"{option}{equals}{'~/' if rest != value else ''}{shlex.quote(rest)}"


def _cpu_name() -> str:
    """The processor's model name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of Pointsman's own checkout, ``+changes`` if files of the package differ; None outside of one.

    Others may: what a run measures is written into the checkout while the next one goes.
    """
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = _git(here.parent, "rev-parse", "HEAD")
    if not commit:
        return None
    package = here.parents[1]
    return commit + ("+changes" if _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".") else "")


def _git(folder: Path, *args: str) -> str | None:
    """What git says, or None if it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", *args],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
