"""What a steering moves: how often routers select every expert without it and under it, as ``results.json`` keeps it.

Counts of selections are kept, which are exact; shares and changes follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pointsman.stats.rates import Mean

Group = Literal["scenario", "restricted", "benign"]
"""What the scenario is about (conversations or requests), other restricted requests, and benign ones."""
GROUPS: tuple[Group, ...] = ("scenario", "restricted", "benign")
Counts = tuple[tuple[int, ...], ...]
"""Of selections. Shapes: [E_l], one per MoE layer."""


@dataclass(frozen=True, kw_only=True)
class GroupMoved:
    """The routing of one group of prompts, at the tokens of their last user messages.

    Attributes:
        tokens: That were read.
        swapped: Share of selected experts that are others under the steering (the total variation between the two
            selections), a mean over layers and tokens of each prompt, and then over prompts.
        without, under: How often each expert was selected, without the steering and under it.
    """

    group: Group
    tokens: int
    swapped: Mean
    without: Counts
    under: Counts


@dataclass(frozen=True)
class TokensSwapped:
    """Tokens, and the mean share of their selected experts that are others under the steering; None of no tokens."""

    n: int
    share: float | None


@dataclass(frozen=True)
class SwappedAt:
    """The same tokens, or tokens of the same place, in every group.

    Attributes:
        at: The token as text, untrusted; or the place within its message.
    """

    at: str
    by_group: Mapping[Group, TokensSwapped]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What a steering moves.

    Attributes:
        top_k: Experts that each layer selects for a token. Shape: [L].
        groups: In the order of `GROUPS`, without those that have no prompts.
        places: Thirds of the user messages.
        most, least: Tokens of the scenario at which most and fewest experts are swapped, from most to fewest.
    """

    top_k: tuple[int, ...]
    groups: tuple[GroupMoved, ...]
    places: tuple[SwappedAt, ...]
    most: tuple[SwappedAt, ...]
    least: tuple[SwappedAt, ...]

    @property
    def everywhere(self) -> SwappedAt:
        """All tokens, each counted once."""
        total: dict[Group, TokensSwapped] = {}
        for group in self.groups:
            here = [place.by_group[group.group] for place in self.places]
            swapped = sum(found.n * found.share for found in here if found.share is not None)
            total[group.group] = TokensSwapped(group.tokens, swapped / group.tokens if group.tokens else None)
        return SwappedAt("all tokens", total)

    def mass(self, group: GroupMoved, counts: Counts) -> list[np.ndarray]:
        """The routing mass of every expert: the share of selections that fall on it. Shapes: [E_l], each sums to 1."""
        return [np.array(row, dtype=np.float64) / (group.tokens * k) for row, k in zip(counts, self.top_k, strict=True)]

    def change(self, group: GroupMoved) -> list[np.ndarray]:
        """Routing mass under the steering less that without it. Shapes: [E_l], each sums to 0."""
        pairs = zip(self.mass(group, group.under), self.mass(group, group.without), strict=True)
        return [under - without for under, without in pairs]
