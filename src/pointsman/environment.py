"""Is what is installed beside Pointsman what it needs? Read from the packages' metadata: nothing heavy is imported.

pip keeps its promises only while it installs: a package that comes later may leave a transformers that is too old, or
one that does not start because of what stands beside it. That is told before anything is computed.

No operation of torch is looked for: whatever a torch within the bounds lacks, transformers has a way around (grouped
products of experts). Where that fails, the first forward says so; see `cannot_compute`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from pointsman.errors import UnsupportedEnvironment

NEWEST_TESTED = {"torch": "2.13.0", "transformers": "5.24.0"}
"""The newest versions that the tests of this version of Pointsman passed with; those of constraints.txt."""

_BESIDE = {"transformers": ("huggingface-hub", "safetensors", "tokenizers")}
"""Without the right versions of these, transformers does not even start."""

_IMPORTING = ("<module>", "__getattr__")
"""What runs while a module is imported, at once or when it is first used; errors of functions are another matter."""


@cache
def check() -> None:
    """Refuse a torch or transformers that this Pointsman does not support, or that cannot start as it is installed.

    Looks once, and remembers that all was well.

    Raises:
        UnsupportedEnvironment: One is missing or outside the bounds that Pointsman's own metadata gives, or what
            transformers needs beside it is missing or outside of transformers' bounds.
    """
    bounds = _requirements("pointsman")
    for name in NEWEST_TESTED:
        _check(name, bounds, "Pointsman")
        beside = _requirements(name)
        for other in _BESIDE.get(name, ()):
            _check(other, beside, f"{name} {metadata.version(name)}")


def notices() -> list[str]:
    """One sentence for every package that is newer than the newest that was tested; that is no error."""
    said = []
    for name, tested in NEWEST_TESTED.items():
        number = _number(found := _installed(name))
        if number is not None and Version(number.public) > Version(tested):
            said.append(
                f"{name} {found} is newer than {tested}, the newest that this version of Pointsman was tested with"
            )
    return said


@contextmanager
def importing() -> Iterator[None]:
    """Say in one line if torch or transformers cannot be imported in here.

    Raises:
        UnsupportedEnvironment: Instead of the import error that a broken installation raises.
    """
    try:
        yield
    except ImportError as error:
        told = broken(error)
        if told is None:
            raise
        raise told from error


def broken(error: ImportError) -> UnsupportedEnvironment | None:
    """What is to be said of an import error if torch or transformers raised it; None if it was somebody else."""
    name, trace = (error.name or "").partition(".")[0], error.__traceback__
    while trace is not None and name not in NEWEST_TESTED:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code.co_name in _IMPORTING:
            name = str(frame.f_globals.get("__name__")).partition(".")[0]
    if name not in NEWEST_TESTED:
        return None
    try:
        check()
    except UnsupportedEnvironment as cause:
        return cause
    first: BaseException = error  # transformers wraps what really happened
    while first.__cause__ is not None:
        first = first.__cause__
    reason = " ".join(str(first).split())[:200].rstrip(".")
    wanted = _wanted(name, _requirements("pointsman"))
    return UnsupportedEnvironment(f"{name} cannot be imported ({reason})", f"pip install --force-reinstall '{wanted}'")


def cannot_compute(model: str, error: NotImplementedError) -> UnsupportedEnvironment:
    """What is to be said where torch has no implementation of an operation for this device or dtype."""
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return UnsupportedEnvironment(
        f"torch {metadata.version('torch')} cannot compute a forward of {model} ({reason})",
        "Choose another device or dtype, or update torch; if its experts fail, "
        'model.set_experts_implementation("eager") does without grouped products',
    )


def _check(name: str, bounds: dict[str, Requirement], who: str) -> None:
    found, remedy = _installed(name), f"pip install '{_wanted(name, bounds)}'"
    if found is None:
        raise UnsupportedEnvironment(f"{who} needs {name}, which is not installed", remedy)
    number = _number(found)
    if name in bounds and number is not None and not bounds[name].specifier.contains(number, prereleases=True):
        raise UnsupportedEnvironment(f"{who} needs {_wanted(name, bounds)}, and {found} is installed", remedy)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _number(version: str | None) -> Version | None:
    """A version that can be compared; None of a build that somebody named in another way, which is then let be."""
    try:
        return None if version is None else Version(version)
    except InvalidVersion:
        return None


def _requirements(package: str) -> dict[str, Requirement]:
    """What a package says that it needs on this machine, by name; nothing of one that is not installed."""
    try:
        given = map(Requirement, metadata.requires(package) or ())
    except metadata.PackageNotFoundError:
        return {}
    return {canonicalize_name(r.name): r for r in given if r.marker is None or r.marker.evaluate({"extra": ""})}


def _wanted(name: str, bounds: dict[str, Requirement]) -> str:
    """``transformers>=5.20,<6``; the name alone where there are no bounds."""
    return name + ",".join(sorted(map(str, bounds[name].specifier), reverse=True) if name in bounds else ())
