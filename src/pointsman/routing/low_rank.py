"""`LowRank`: a vector on the logits that depends on the token. METHODS section 10, Pointsman's own.

A constant vector on router logits cannot tell words apart. This one reads what the router reads: with x the input of
the router, and A and B of a rank q far below its width::

    B A x                 linear: the same as another weight of the router, W + B A
    B relu(A x - b)       nothing until A x passes a threshold
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import InterventionError

PARTS = ("down", "up", "threshold")


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to the logits of one router, as a function of the input of that router. Immutable and hashable.

    Attributes:
        down: A, read-only. Shape: [q, d], float32.
        up: B, read-only. Shape: [E, q], float32.
        threshold: b, read-only; None for the linear one. Shape: [q], float32.

    Raises:
        InterventionError: They are not finite numbers of such shapes, or the rank is above the width or the experts.
    """

    down: np.ndarray
    up: np.ndarray
    threshold: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in PARTS:
            value = getattr(self, name)
            if value is None and name == "threshold":
                continue
            object.__setattr__(self, name, _numbers(value, name, 1 if name == "threshold" else 2))
        rank, (width, experts) = len(self.down), (self.down.shape[1], len(self.up))
        if self.up.shape[1] != rank or (self.threshold is not None and len(self.threshold) != rank):
            raise InterventionError(
                f"A conditional rule whose parts have other ranks: {rank} rows in `down`, {self.up.shape[1]} columns "
                "in `up`" + ("" if self.threshold is None else f", {len(self.threshold)} thresholds"),
                "Give down [q, d], up [E, q] and, if any, threshold [q]",
            )
        if rank > min(width, experts):
            raise InterventionError(
                f"A rank of {rank} for a router with an input of {width} and {experts} experts",
                f"Give a rank of at most {min(width, experts)}",
            )

    @property
    def rank(self) -> int:
        """q."""
        return len(self.down)

    @property
    def width(self) -> int:
        """Of the input of the router (d)."""
        return int(self.down.shape[1])

    @property
    def experts(self) -> int:
        """E."""
        return len(self.up)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shapes and numbers, in hexadecimal."""
        found = hashlib.sha256()
        for name in PARTS:
            value = getattr(self, name)
            if value is not None:
                found.update(f"{name}{value.shape}".encode())
                found.update(np.ascontiguousarray(value).tobytes())
        return found.hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, LowRank) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"LowRank(rank={self.rank}, width={self.width}, experts={self.experts}, linear={self.threshold is None})"

    def scaled(self, alpha: float) -> LowRank:
        """The same, `alpha` times as strong."""
        with np.errstate(over="ignore", invalid="ignore"):
            up = (self.up.astype(np.float64) * alpha).astype(np.float32)
        return LowRank(self.down, up, self.threshold)

    @property
    def product(self) -> np.ndarray:
        """B A, what the linear one adds to the weight of the router. Shape: [E, d], float64."""
        return np.asarray(self.up.astype(np.float64) @ self.down.astype(np.float64))

    def to_json(self) -> dict[str, Any]:
        """As lists of numbers."""
        return {name: value.tolist() for name in PARTS if (value := getattr(self, name)) is not None}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LowRank:
        """The inverse of `to_json`, which also takes arrays."""
        return LowRank(data["down"], data["up"], data.get("threshold"))


def low_rank_shift(x: Tensor, down: Tensor, up: Tensor, threshold: Tensor | None = None) -> Tensor:
    """B A x of every token, or B relu(A x - b). Shapes: [N, d], [q, d], [E, q], [q] -> [N, E]."""
    inner = x @ down.T  # shape: [N, q]
    if threshold is not None:
        inner = (inner - threshold).relu()
    return inner @ up.T


class LowRankStep:
    """The conditional rules of one layer, one (or None) for every entry of a plan's table.

    Args:
        maps: Shape: [S].
    """

    def __init__(self, maps: list[LowRank | None]) -> None:
        self.maps = maps
        self._on: dict[tuple[LowRank, torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor | None]] = {}

    def apply(self, logits: Tensor, x: Tensor, entry: Tensor | int) -> Tensor:
        """The shifted logits, a new tensor. Shape: [B * T, E] -> [B * T, E].

        Args:
            logits: Shape: [B * T, E].
            x: What the router made them of. Shape: [B * T, d].
            entry: Of every token, or one for all. Shape: [B * T].

        Raises:
            InterventionError: The rule is for an input of another width.
        """
        wide = x if x.dtype == torch.float64 else x.float()
        if isinstance(entry, int):
            one = self.maps[entry]
            return logits if one is None else logits + self._shift(one, wide).to(logits)
        shift = torch.zeros(logits.shape, dtype=wide.dtype, device=wide.device)
        for one in dict.fromkeys(m for m in self.maps if m is not None):
            like = torch.tensor([other == one for other in self.maps], device=wide.device)
            here = like[entry.to(wide.device)]  # shape: [B * T]
            shift = torch.where(here[:, None], self._shift(one, wide), shift)
        return logits + shift.to(logits)

    def _shift(self, one: LowRank, x: Tensor) -> Tensor:
        if one.width != x.shape[-1]:
            raise InterventionError(
                f"A conditional rule for an input of width {one.width}, and the router reads one of {x.shape[-1]}",
                "Learn it on this model",
            )
        key = (one, x.device, x.dtype)
        if key not in self._on:
            down, up, threshold = (
                None if part is None else torch.from_numpy(part.copy()).to(x.device, x.dtype)
                for part in (one.down, one.up, one.threshold)
            )
            assert down is not None
            assert up is not None
            self._on[key] = down, up, threshold
        return low_rank_shift(x, *self._on[key])


def _numbers(value: Any, name: str, dims: int) -> np.ndarray:
    """A read-only copy in float32.

    Raises:
        InterventionError: It is not an array of finite numbers with so many axes.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            copy = np.array(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InterventionError(
            f"`{name}` of a conditional rule is not numbers ({error})", "Give finite numbers"
        ) from error
    if copy.ndim != dims or not copy.size or not np.isfinite(copy).all():
        raise InterventionError(
            f"`{name}` of a conditional rule is not {'a matrix' if dims == 2 else 'a vector'} of finite numbers in "
            "float32",
            "Give down [q, d], up [E, q] and, if any, threshold [q]",
        )
    copy.setflags(write=False)
    return copy
