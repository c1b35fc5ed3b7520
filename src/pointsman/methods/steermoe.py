"""SteerMoE, the baseline (arXiv 2509.09660; METHODS section 6): pin experts that two sets of tokens use unlike.

The experts of the largest difference delta[l, e] between two activation rates are pinned on or off. Which tokens are
counted, and how hard experts are pinned, is what two variants differ in (`published`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from pointsman.errors import UsageError
from pointsman.routing.intervention import Intervention, Phase

PUBLISHED_EPS = 0.01
"""How far beyond the largest and the smallest score the authors' code sets a pinned one."""


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
        eps: How far beyond the largest logit an expert is pinned on, and below the smallest one off, in logit units.
        capped: Whether no layer has more than its top-k experts pinned on; an expert beyond that is left out, and no
            other takes its place. So it is with one too many off, which otherwise comes from the next layer.
    """

    on: int
    off: int
    phase: Phase = "both"
    eps: float = 1.0
    capped: bool = False

    def __post_init__(self) -> None:
        if self.on < 0 or self.off < 0 or not self.on + self.off:
            raise UsageError(f"{self.on} experts on and {self.off} off", "Give 0 or more of each, and at least one")

    @staticmethod
    def published(on: int, off: int, phase: Phase = "both") -> SteerMoE:
        """As its authors run it: with their eps and their cap, for rates on response tokens of paired texts.

        They pin log-softmax scores, to max + .01 and min - .01. These are the logits less one number a token, which
        the softmax behind takes away again, so pinning the logits is the same. Only what a layer cannot do differs:
        they set more than E - top-k experts of one to the same lowest score and let the top-k pick among them.
        """
        return SteerMoE(on, off, phase, PUBLISHED_EPS, capped=True)

    def pin(self, wanted: Activations, unwanted: Activations, top_k: Sequence[int]) -> Intervention | None:
        """The intervention: delta[l, e] = activation rate on tokens of `wanted` minus that on tokens of `unwanted`.

        Experts without a difference are not pinned, nor more than ``E - top_k`` of a layer off.

        Args:
            top_k: Experts that each layer activates. Shape: [L].

        Returns:
            None if no expert differs, or no token was counted.
        """
        if not wanted.tokens or not unwanted.tokens:
            return None
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
            if delta > 0 and not (self.capped and len(on.get(layer, ())) == top_k[layer]):
                on.setdefault(layer, []).append(expert)
        off: dict[int, list[int]] = {}
        left = self.off
        for delta, layer, expert in reversed(ranked):
            if not left or delta >= 0:
                break
            room = len(wanted.counts[layer]) - top_k[layer]
            fits = len(off.get(layer, ())) < room
            if fits:
                off.setdefault(layer, []).append(expert)
            left -= fits or self.capped
        return Intervention.pin(on, off, eps=self.eps, phase=self.phase) if on or off else None


def sizes(entries: int) -> list[tuple[int, int]]:
    """(n+, n-) to try for a model with so many experts in all: on, off and both, from two to a sixth of them."""
    return [pair for n in _counts(entries, 2) for pair in ((n, 0), (0, n), (n, n))]


def swept_sizes(entries: int) -> list[tuple[int, int]]:
    """(n+, n-) to try, each for itself: every pair of nothing, 2, 8, 32 and so on to a sixth of all experts."""
    counts = (0, *_counts(entries, 4))
    return [(on, off) for on, off in product(counts, counts) if on or off]


def _counts(entries: int, factor: int) -> list[int]:
    counts = [2]
    while counts[-1] * factor <= entries // 6:
        counts.append(counts[-1] * factor)
    return counts
