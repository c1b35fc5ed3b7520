"""Hand-made traces: router logits in which some experts of some layers tell the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointsman.routing.store import TraceStore, TraceWriter


@dataclass(frozen=True)
class Made:
    """Traces, their labels and their source questions, two contexts each."""

    store: TraceStore
    labels: list[int]
    groups: list[str]


def logits(rng: np.random.Generator, length: int, experts: Sequence[int], shift: float = 0.0) -> list[np.ndarray]:
    """One context. `shift` is added to the first two experts of the first layer. Shapes: [length, E_l]."""
    made = [rng.normal(scale=1.5, size=(length, e)) for e in experts]
    made[0][:, :2] += shift
    return made


def write(folder: Path, contexts: Sequence[Sequence[np.ndarray]], **options: object) -> TraceStore:
    """A store of these contexts, named c0, c1, ..."""
    with TraceWriter(folder, experts=[r.shape[1] for r in contexts[0]], **options) as writer:  # type: ignore[arg-type]
        for number, context in enumerate(contexts):
            writer.add(f"c{number}", context)
    return TraceStore.open(folder)


def made(
    folder: Path, n: int = 80, experts: Sequence[int] = (8, 8, 8), shift: float = 2.0, seed: int = 0, **options: object
) -> Made:
    """Contexts of 3 to 7 tokens; those of label 1 are shifted."""
    rng = np.random.default_rng(seed)
    labels = [number % 2 for number in range(n)]
    contexts = [logits(rng, int(rng.integers(3, 8)), experts, shift * label) for label in labels]
    return Made(write(folder, contexts, **options), labels, [f"q{number // 2}" for number in range(n)])
