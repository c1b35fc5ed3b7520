"""Prompts that a model's context has no room for: left out one by one, named, and never in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pointsman.data import splits
from pointsman.data.splits import Item
from pointsman.engine.types import Engine
from pointsman.errors import PromptTooLong

_NAMED = 8  # in a sentence; all are in the results


class Room:
    """What fits into the context of one model.

    Args:
        engine: The model.
        tokens: How many tokens an item needs at least, with its answer.

    Attributes:
        left_out: Ids of what does not fit, in the order in which they were met, each once.
    """

    def __init__(self, engine: Engine, tokens: Callable[[Any], int]) -> None:
        self._engine, self._tokens = engine, tokens
        self.left_out: dict[str, int] = {}

    def take(self, items: Sequence[Item], n: int, seed: int) -> tuple[Item, ...]:
        """As `take`, of the items that fit: others take the places of those that do not."""
        order = splits.take(items, n if n < 0 else max(n, len(items)), seed)
        chosen: list[Item] = []
        for item in order:
            if len(chosen) == n:
                break
            tokens = self._tokens(item)
            if tokens <= self._engine.info.context:
                chosen.append(item)
            else:
                self.left_out[item.id] = tokens
        return tuple(chosen)

    def refuse_none(self, what: str, candidates: Sequence[Any], chosen: Sequence[Any]) -> None:
        """Raise if there were candidates and none of them fits."""
        if chosen or not candidates:
            return
        name, context = self._engine.info.name, self._engine.info.context
        first = next((c for c in candidates if c.id in self.left_out), None)
        if first is not None:
            raise PromptTooLong(
                f"No {what} fits: {first.id} needs {self.left_out[first.id]} tokens with its answer, and {name} has a "
                f"context of {context}",
                "Shorten or remove it",
            )

    def notes(self) -> list[str]:
        """A sentence, if something was left out."""
        if not self.left_out:
            return []
        ids, number = list(self.left_out), len(self.left_out)
        more = f" and {number - _NAMED} more" if number > _NAMED else ""
        return [
            f"{number} {'prompt does' if number == 1 else 'prompts do'} not fit into the context of "
            f"{self._engine.info.name} ({self._engine.info.context} tokens) with an answer and "
            f"{'is' if number == 1 else 'are'} left out: {', '.join(ids[:_NAMED])}{more}"
        ]

    def tell(self, note: Callable[[str], None]) -> None:
        """Say the notes."""
        for each in self.notes():
            note(each)
