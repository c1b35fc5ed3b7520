"""What users say of the columns of their prompt files."""

from __future__ import annotations

from collections.abc import Container, Sequence
from difflib import get_close_matches

from pointsman.data.loaders import USES
from pointsman.errors import UsageError

_MAPPED = ("behaviors", "benign", "borderline")  # files whose columns can be named


def mapped_columns(said: Sequence[str], files: Container[str]) -> dict[str, dict[str, str]]:
    """Of every file, the columns that are named: ``goal=Question`` for the behaviours, ``benign.goal=...`` for others.

    Args:
        said: As a user writes them.
        files: The files that are given, by option.

    Raises:
        UsageError: One is malformed, names an unknown use or a file that is not given, or names a use twice.
    """
    found: dict[str, dict[str, str]] = {}
    for each in said:
        key, equals, column = (part.strip() for part in each.partition("="))
        file, _, use = key.partition(".") if "." in key else ("behaviors", "", key)
        if not equals or not column:
            raise UsageError(f"--column {each!r} names no column", "Write it as goal=Question or benign.goal=Question")
        if use not in USES:
            near = get_close_matches(use, USES, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(USES)}"
            raise UsageError(f"--column {each!r} is of an unknown use {use!r}", hint)
        if file not in _MAPPED or file not in files:
            raise UsageError(
                f"--column {each!r} is of a file {file!r} that is not given",
                f"Write {', '.join(f'{name}.{use}=...' for name in _MAPPED)} of a file that you give",
            )
        if use in found.setdefault(file, {}):
            raise UsageError(f"--column names {use} of {file} twice", "Name every use once")
        found[file][use] = column
    return found
