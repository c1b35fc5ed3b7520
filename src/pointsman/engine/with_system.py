"""An engine that asks everything with the same system prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from pointsman.engine.types import Engine, Prompt


def with_system(engine: Engine, system: str | None) -> Engine:
    """The same engine, whose prompts begin with `system` unless `encode` is given another; itself if there is none."""
    return cast(Engine, _WithSystem(engine, system)) if system else engine


class _WithSystem:
    def __init__(self, engine: Engine, system: str) -> None:
        self._engine, self._system = engine, system

    def encode(
        self, turns: str | Sequence[str], *, answers: str | Sequence[str] = (), system: str | None = None
    ) -> Prompt:
        return self._engine.encode(turns, answers=answers, system=self._system if system is None else system)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
