"""Answers that a judge could not score: no rate counts them as a success, and nobody should overlook them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pointsman.report.blocks import Text


class Judged(Protocol):
    """What some answers came to, such as `AttackRates`; so many of them could not be scored."""

    @property
    def unscored(self) -> int: ...


def unscored(found: Iterable[tuple[str, Judged]]) -> list[Text]:
    """A remark on the conditions, by name, in which there are such answers; nothing where there are none."""
    said = [f"{rates.unscored} ({name})" if name else f"{rates.unscored}" for name, rates in found if rates.unscored]
    return [Text(f"Answers that could not be scored, and count as no success: {', '.join(said)}.")] if said else []
