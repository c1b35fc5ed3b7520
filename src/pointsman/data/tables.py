"""Rows of Parquet files and of data sets on the Hugging Face hub, through the packages of the extra ``hub``.

A data set is named ``hub:owner/name``, ``hub:owner/name:split``, ``hub:owner/name:config`` or
``hub:owner/name:config:split``; ``@revision`` may follow the name. No code of a data set is ever run.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from packaging.version import Version

from pointsman.errors import DataError

HUB = "hub:"
_NAMED = re.compile(
    r"hub:(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(:(?P<first>[\w.-]+))?(:(?P<second>[\w.-]+))?"
)
_NO_CODE = Version("4")  # of `datasets`: from here on it runs no code of a data set
_LONGEST = 200  # characters of what another library says

Row = dict[str, Any]


def on_hub(path: Path) -> bool:
    """Whether this names a data set on the hub, and no file."""
    return str(path).startswith(HUB)


def parquet_rows(path: Path) -> list[Row]:
    """The rows of a Parquet file.

    Raises:
        DataError: It cannot be read, or the package that reads it is not installed.
    """
    parquet = _library("pyarrow.parquet", str(path))
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except Exception as error:  # whatever the library raises on a damaged file
        raise DataError(f"{path} is no Parquet file that can be read ({_said(error)})", "Write it again") from None
    return rows


@lru_cache(maxsize=8)
def hub_rows(named: str) -> tuple[Row, ...]:
    """The rows of a data set, from the hub or from the cache of this machine; read once in a process.

    Raises:
        DataError: The name is malformed, it cannot be loaded, or it has several configs or splits and none is named.
    """
    found = _NAMED.fullmatch(named)
    if not found:
        raise DataError(f"{named} is no data set", "Write hub:owner/name, hub:owner/name:config:split or ...@revision")
    library = _library("datasets", named)
    if Version(library.__version__) < _NO_CODE:
        raise DataError(
            f"{named} is not loaded with datasets {library.__version__}, which may run code of a data set",
            f"Install datasets {_NO_CODE} or newer",
        )
    name, revision, config, split = (found[part] for part in ("name", "revision", "first", "second"))
    try:
        if config and not split and config not in library.get_dataset_config_names(name, revision=revision):
            config, split = None, config
        loaded = library.load_dataset(name, config, revision=revision)
    except Exception as error:  # of the network, of the cache, of the data: each release has its own
        raise DataError(
            f"{named} cannot be loaded ({_said(error)})",
            "Check its name and the network; if it is gated, log in to the hub; or give a file that you downloaded",
        ) from None
    splits = list(loaded)
    if split is None and len(splits) == 1:
        (split,) = splits
    if split not in splits:
        problem = f"has no split {split}" if split else f"has {len(splits)} splits"
        raise DataError(f"{named} {problem}", f"Name one: {', '.join(f'{named_part(named)}:{s}' for s in splits)}")
    return tuple(loaded[split].to_list())


def named_part(named: str) -> str:
    """A name without the split that is wrong in it."""
    return ":".join(named.split(":")[:-1]) if named.count(":") > 2 else named


def hub_sha256(named: str) -> str:
    """SHA-256 of the rows of a data set, whatever its files on the hub are called.

    Raises:
        DataError: As `hub_rows`.
    """
    text = json.dumps(hub_rows(named), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _library(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise DataError(
            f"{what} needs the package {package}, which is not installed",
            "Install it with `pip install 'pointsman[hub]'`, or save the rows as CSV or JSONL",
        ) from None


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
