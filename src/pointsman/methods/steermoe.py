"""SteerMoE, the baseline (arXiv 2509.09660; METHODS section 6): pin experts that two sets of tokens use unlike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pointsman.errors import UsageError
from pointsman.routing.intervention import Intervention, Phase


@dataclass(frozen=True)
class Activations:
    """How often every expert was activated.

    Attributes:
        tokens: Tokens that were counted.
        counts: Of activations. Shapes: [E_l], one per MoE layer.
    """

    tokens: int
    counts: tuple[np.ndarray, ...]

    def __add__(self, other: Activations) -> Activations:
        return Activations(
            self.tokens + other.tokens, tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        )


@dataclass(frozen=True)
class SteerMoE:
    """Pin the experts that differ most between two sets of tokens.

    Attributes:
        on: How many experts of the most positive difference are pinned on (n+).
        off: How many of the most negative are pinned off (n-).
        phase: Tokens at which they are pinned.
    """

    on: int
    off: int
    phase: Phase = "both"

    def __post_init__(self) -> None:
        if self.on < 0 or self.off < 0 or not self.on + self.off:
            raise UsageError(f"{self.on} experts on and {self.off} off", "Give 0 or more of each, and at least one")

    def pin(self, wanted: Activations, unwanted: Activations, top_k: Sequence[int]) -> Intervention | None:
        """The intervention: delta[l, e] = activation rate on tokens of `wanted` minus that on tokens of `unwanted`.

        Experts without a difference are not pinned, nor more than ``E - top_k`` of a layer off.

        Args:
            top_k: Experts that each layer activates. Shape: [L].

        Returns:
            None if no expert differs.
        """
        ranked = sorted(
            (
                (float(a[e] / wanted.tokens - b[e] / unwanted.tokens), layer, e)
                for layer, (a, b) in enumerate(zip(wanted.counts, unwanted.counts, strict=True))
                for e in range(len(a))
            ),
            key=lambda entry: (-entry[0], entry[1], entry[2]),
        )
        on: dict[int, list[int]] = {}
        for delta, layer, expert in ranked[: self.on]:
            if delta > 0:
                on.setdefault(layer, []).append(expert)
        off: dict[int, list[int]] = {}
        left = self.off
        for delta, layer, expert in reversed(ranked):
            if not left or delta >= 0:
                break
            room = len(wanted.counts[layer]) - top_k[layer]
            if len(off.get(layer, ())) < room:
                off.setdefault(layer, []).append(expert)
                left -= 1
        return Intervention.pin(on, off, phase=self.phase) if on or off else None


def sizes(entries: int) -> list[tuple[int, int]]:
    """(n+, n-) to try for a model with so many experts in all: on, off and both, from two to a sixth of them."""
    tried = []
    n = 2
    while n <= max(2, entries // 6):
        tried += [(n, 0), (0, n), (n, n)]
        n *= 2
    return tried
