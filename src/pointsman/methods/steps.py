"""What a method needs from whoever runs it: seeded streams, a memory of finished units, a place to tell progress."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from pointsman.engine.types import Cost, Engine

Value = TypeVar("Value")
Row = TypeVar("Row")
CHUNK = 128  # rows of one stored unit; fixed, so that a resumed run forms the same batches
Remember = Callable[[str, Callable[[], Any]], Any]
"""``remember(key, compute)``: the JSON value stored under `key`, or `compute()`, stored before it is returned."""


def stream(seed: int, *key: str | int) -> np.random.Generator:
    """A random stream that is a pure function of `seed` and `key`: independent of order, batching and resumption."""
    digest = hashlib.sha256(json.dumps([seed, *key]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def compute_fresh(key: str, compute: Callable[[], Value]) -> Value:
    """A memory that remembers nothing."""
    return compute()


def ignore(units: int) -> None:
    """A listener to progress that does not listen."""


@dataclass(frozen=True)
class Steps:
    """How the units of a method are remembered and announced.

    Attributes:
        remember: Called once per unit with a key and the computation; may return a stored value instead.
        advance: Called with the number of units done.
        spent: The cost of every unit by its key, filled as they are done or recalled.
        prefix: Before the key of every unit.
    """

    remember: Remember = compute_fresh
    advance: Callable[[int], None] = ignore
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    prefix: str = ""

    def under(self, name: str) -> Steps:
        """The same, with ``name/`` before every key: for a method that runs more than once, with other parameters."""
        return replace(self, prefix=f"{self.prefix}{name}/")

    def unit(self, key: str, engine: Engine, compute: Callable[[], dict[str, Any]], units: int = 1) -> dict[str, Any]:
        """Compute (or recall) one unit; its cost is stored with it, so that a resumed run reports the same."""

        key = self.prefix + key

        def measured() -> dict[str, Any]:
            before = engine.cost.copy()
            value = compute()
            spent: Cost = engine.cost - before
            cost = {**asdict(spent), "seconds": round(spent.seconds, 3)}
            return {**value, "cost": cost}

        value: dict[str, Any] = self.remember(key, measured)
        self.spent[key] = value["cost"]
        self.advance(units)
        return value

    def units(
        self,
        key: str,
        engine: Engine,
        rows: Sequence[Row],
        compute: Callable[[Sequence[Row]], dict[str, Any]],
        size: int | None = None,
        *,
        counted: bool = True,
    ) -> list[dict[str, Any]]:
        """`unit` for every `size` of some rows, `CHUNK` if None; the number of a unit's first row ends its key.

        Args:
            counted: Whether these rows are part of the progress.
        """
        size = size or CHUNK
        parts = {start: rows[start : start + size] for start in range(0, len(rows), size)}
        return [
            self.unit(f"{key}/{start}", engine, partial(compute, part), len(part) if counted else 0)
            for start, part in parts.items()
        ]

    def cost(self) -> dict[str, float]:
        """Forwards, tokens (rows x length, padding included), token-layers and seconds of all units so far."""
        return {f.name: sum(c[f.name] for c in self.spent.values()) for f in fields(Cost)}
