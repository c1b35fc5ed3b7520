"""Gaussian noise on router logits that is a pure function of seed, layer, position and expert.

So a token gets the same noise whatever is beside it in the batch, however much padding is before it, and whether it
is decoded step by step or read in one forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import InterventionError
from pointsman.routing.intervention import Rule

BLOCK = 32
"""Positions that are drawn together: a part of the definition of the noise, so it never changes."""


def standard_normal(seed: int, layer: int, block: int, experts: int) -> np.ndarray:
    """The noise of positions ``BLOCK * block`` to ``BLOCK * (block + 1) - 1``, before scaling. Shape: [BLOCK, E]."""
    bits = np.random.Philox(np.random.SeedSequence([seed, layer, block]))
    return np.random.Generator(bits).standard_normal((BLOCK, experts))


@dataclass
class NoiseStep:
    """The noise rules of one layer, one (or None) for every entry of a plan's table.

    Attributes:
        layer: MoE layer.
        experts: E.
        rules: Shape: [S].
    """

    layer: int
    experts: int
    rules: list[Rule | None]
    _last: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)  # newest block of every seed

    def apply(self, logits: Tensor, entry: Tensor | int, position: Tensor) -> Tensor:
        """The noisy logits, a new tensor; padding stays as it is. Shape: [B * T, E] -> [B * T, E].

        Args:
            logits: Shape: [B * T, E].
            entry: Of every token, or one for all. Shape: [B * T].
            position: From the first real token of each row; -1 for padding. Shape: [B * T].

        Raises:
            InterventionError: The noise is too large for the dtype of the logits.
        """
        places = position.cpu().numpy()
        of_token = np.full_like(places, entry) if isinstance(entry, int) else entry.cpu().numpy()
        noise = np.zeros((len(places), self.experts))  # shape: [B * T, E]
        for n in np.unique(of_token):
            rule = self.rules[n]
            if rule is not None:
                tokens = np.flatnonzero((of_token == n) & (places >= 0))
                noise[tokens] = rule.std_of[self.layer] * self._normal(rule.seed, places[tokens])
        if np.abs(noise).max(initial=0.0) > torch.finfo(logits.dtype).max:
            raise InterventionError(
                f"A noise is too large for a router that computes in {logits.dtype}", "Use a smaller standard deviation"
            )
        return logits + torch.from_numpy(noise).to(logits.device, logits.dtype)

    def _normal(self, seed: int, places: np.ndarray) -> np.ndarray:
        """Shape: [N] -> [N, E]."""
        drawn = np.empty((len(places), self.experts))
        blocks = places // BLOCK
        for block in np.unique(blocks):
            here = blocks == block
            known = self._last.get(seed)
            if known is None or known[0] != block:
                known = (int(block), standard_normal(seed, self.layer, int(block), self.experts))
                self._last[seed] = known
            drawn[here] = known[1][places[here] % BLOCK]
        return drawn
