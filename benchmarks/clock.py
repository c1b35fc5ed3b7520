"""Seconds, and what many of them say."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

Value = TypeVar("Value")


@dataclass(frozen=True)
class Clock:
    """Processor seconds on a CPU (robust to other load, if there is one thread), synchronised wall seconds on a GPU."""

    device: str

    def timed(self, work: Callable[[], Value]) -> tuple[float, Value]:
        """Do `work`; its seconds and its result."""
        if not self.device.startswith("cuda"):
            began = time.process_time()
            value = work()
            return time.process_time() - began, value
        torch.cuda.synchronize()
        began = time.perf_counter()
        value = work()
        torch.cuda.synchronize()
        return time.perf_counter() - began, value

    def seconds(self, work: Callable[[], Any]) -> float:
        """The seconds of `work` alone."""
        return self.timed(work)[0]


@dataclass(frozen=True)
class Figure:
    """One measured number, and what was asked of it.

    Attributes:
        part: The measurement it belongs to.
        name: What was measured.
        value: The number: the median of `n` repeats unless `n` says otherwise.
        unit: ``x``, ``%``, ``s``, ...
        asked: The bound that was asked for; None: for information.
        bound: Whether `asked` is a lower or an upper bound.
        n: Repeats, in words.
        low, high: The least and the largest of the repeats.
        note: What a reader must know to read the number right.
    """

    part: str
    name: str
    value: float
    unit: str
    asked: float | None = None
    bound: Literal["least", "most"] = "least"
    n: str = "1"
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the number keeps its bound; None if there is none."""
        if self.asked is None:
            return None
        return self.value >= self.asked if self.bound == "least" else self.value <= self.asked


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest, as `Figure` names them."""
    return dict(value=statistics.median(values), low=min(values), high=max(values))
