"""Values that come from outside: checked, made unchangeable, and shown on one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from pointsman.errors import InterventionError


def vector(values: Any, layer: int) -> np.ndarray:
    """A read-only copy of the steering of one layer. Shape: [E], float32.

    Raises:
        InterventionError: It is not a vector of finite numbers.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            copy = np.array(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InterventionError(
            f"The steering matrix of layer {layer} is not numbers ({error})", "Give one finite number per expert"
        ) from error
    if copy.ndim != 1 or not len(copy) or not np.isfinite(copy).all():
        raise InterventionError(
            f"The steering matrix of layer {layer} is not a finite vector", "Give one finite number per expert"
        )
    copy += 0.0  # no negative zero, which is not in the circuit and would be lost
    copy.setflags(write=False)
    return copy


def number(value: Any, what: str) -> float:
    """A finite number.

    Raises:
        InterventionError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise InterventionError(f"{value!r} is no {what}", "Give a finite number")
    return float(value)


def frozen(value: Any) -> Any:
    """A copy of JSON data that cannot be changed: lists become tuples.

    Raises:
        InterventionError: It is not JSON data.
    """
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InterventionError("What a steering says about itself has a key that is no text", "Give JSON data")
        return MappingProxyType({key: frozen(part) for key, part in value.items()})
    if isinstance(value, list | tuple):
        return tuple(frozen(part) for part in value)
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if value is None or isinstance(value, str | bool) or finite:
        return value
    raise InterventionError(f"What a steering says about itself holds {value!r}", "Give JSON data: no NaN, no objects")


def thawed(value: Any) -> Any:
    """What was given to `frozen`, as JSON data."""
    if isinstance(value, Mapping):
        return {key: thawed(part) for key, part in value.items()}
    return [thawed(part) for part in value] if isinstance(value, tuple) else value


def one_line(text: str) -> str:
    """Text of others, without line breaks and other characters that cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
