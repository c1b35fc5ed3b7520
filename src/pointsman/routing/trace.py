"""`RouteTrace`: what the routers did. Raw logits before any intervention, and the experts realised after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import InterventionError, RunError
from pointsman.routing.layout import PHASES_UNKNOWN, Layout

SCHEMA = "pointsman.trace/1"


@dataclass(frozen=True)
class LayerTrace:
    """One MoE layer, one entry per real token (N), ordered by row, then position.

    Attributes:
        row: Row of the batch (or prompt number) of each token. Shape: [N], int32.
        position: Position from the first real token of its row. Shape: [N], int32.
        decode: False for prompt tokens, True for answer tokens. Shape: [N], bool.
        logits: Raw router logits before any intervention. Shape: [N, E], float32.
        experts: Experts that were really used. Shape: [N, k], int32.
    """

    row: np.ndarray
    position: np.ndarray
    decode: np.ndarray
    logits: np.ndarray
    experts: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def select(self, row: int | None = None, decode: bool | None = None) -> LayerTrace:
        """The tokens of one row, of one phase, or both."""
        keep = np.ones(len(self), dtype=bool)  # shape: [N]
        if row is not None:
            keep &= self.row == row
        if decode is not None:
            keep &= self.decode == decode
        return LayerTrace(*(getattr(self, name)[keep] for name in _FIELDS))


_FIELDS = ("row", "position", "decode", "logits", "experts")


@dataclass(frozen=True)
class RouteTrace:
    """The trace of every MoE layer, in depth order; ``trace[layer]`` is a `LayerTrace`."""

    layers: tuple[LayerTrace, ...]

    def __getitem__(self, layer: int) -> LayerTrace:
        return self.layers[layer]

    def __len__(self) -> int:
        return len(self.layers)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; logits as float16 (METHODS section 5), unless they are too large for that."""
        from safetensors.numpy import save_file

        tensors = {
            f"{layer}.{name}": np.ascontiguousarray(
                _half(getattr(trace, name)) if name == "logits" else getattr(trace, name)
            )
            for layer, trace in enumerate(self.layers)
            for name in _FIELDS
        }
        target = Path(path)
        save_file(tensors, target, metadata={"pointsman": json.dumps({"schema": SCHEMA, "layers": len(self)})})
        return target

    @staticmethod
    def load(path: str | Path) -> RouteTrace:
        """Read what `save` wrote.

        Raises:
            RunError: The file is missing, damaged or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                about = json.loads((file.metadata() or {})["pointsman"])
                if about["schema"] != SCHEMA:
                    raise ValueError(f"schema {about['schema']!r}")
                parts = [[file.get_tensor(f"{n}.{name}") for name in _FIELDS] for n in range(int(about["layers"]))]
            for row, position, decode, logits, experts in parts:
                flat = row.shape == position.shape == decode.shape == (len(row),)
                if not flat or logits.ndim != 2 or experts.ndim != 2 or not len(row) == len(logits) == len(experts):
                    raise ValueError("tensors that do not fit together")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is not a whole trace ({error})", "Trace again and save it") from error
        return RouteTrace(tuple(LayerTrace(r, p, d, logits.astype(np.float32), e) for r, p, d, logits, e in parts))

    @staticmethod
    def concatenate(parts: Sequence[RouteTrace]) -> RouteTrace:
        """Several traces of one model as one, ordered by row, then position."""
        layers = []
        for group in zip(*(part.layers for part in parts), strict=True):
            joined = {name: np.concatenate([getattr(t, name) for t in group]) for name in _FIELDS}
            order = np.lexsort((joined["position"], joined["row"]))
            layers.append(LayerTrace(**{name: joined[name][order] for name in _FIELDS}))
        return RouteTrace(tuple(layers))


class Recorder:
    """Collects router calls while control is attached, and makes a `RouteTrace` of them.

    Within one call of `generate` a token may be read more than once: without a cache in every step, and where a draft
    was rejected. The last reading counts.

    Attributes:
        generation: Number of the call of `generate` that is under way; 0 for forwards by hand.
    """

    def __init__(self, layers: int) -> None:
        self.generation = 0
        self._calls: list[list[dict[str, np.ndarray]]] = [[] for _ in range(layers)]
        self._layout: Layout | None = None
        self._real: Tensor | None = None
        self._tokens: dict[str, np.ndarray] = {}

    def add(self, layer: int, layout: Layout, logits: Tensor, experts: Tensor) -> None:
        """Record one call of one router.

        Args:
            layer: MoE layer.
            layout: What its tokens are.
            logits: Raw logits. Shape: [B * T, E].
            experts: Realised experts. Shape: [B * T, k].
        """
        if layout is not self._layout:  # once per forward
            if not layout.phases_known:
                raise InterventionError(
                    "A trace says of which phase each token is, and those of this forward may be prompt or answer",
                    PHASES_UNKNOWN,
                )
            real = layout.position >= 0  # shape: [B, T]
            self._layout = layout
            self._real = None if bool(real.all()) else real.reshape(-1).nonzero()[:, 0]  # shape: [N]
            self._tokens = {
                "row": real.nonzero()[:, 0].cpu().numpy().astype(np.int32),
                "position": layout.position[real].cpu().numpy().astype(np.int32),
                "decode": layout.decode[real].cpu().numpy(),
                "generation": np.full(int(real.sum()), self.generation),
            }
        if self._real is not None:
            logits = logits[self._real.to(logits.device)]
            experts = experts[self._real.to(experts.device)]
        # Copies: the model is free to change its tensors later.
        kept = logits.detach().to("cpu", torch.float32, copy=True).numpy()
        used = experts.detach().to("cpu", torch.int32, copy=True).numpy()
        self._calls[layer].append({**self._tokens, "logits": kept, "experts": used})

    def trace(self) -> RouteTrace:
        """Everything recorded so far.

        Raises:
            InterventionError: Nothing was.
        """
        if not all(self._calls):
            raise InterventionError("No forward was recorded", "Call the model under control, then read the trace")
        layers = []
        for calls in self._calls:
            joined = {name: np.concatenate([call[name] for call in calls]) for name in (*_FIELDS, "generation")}
            last = _last_readings(joined["row"], joined["position"], joined["generation"])
            order = last[np.lexsort((joined["position"][last], joined["row"][last]))]
            layers.append(LayerTrace(**{name: joined[name][order] for name in _FIELDS}))
        return RouteTrace(tuple(layers))


def _last_readings(row: np.ndarray, position: np.ndarray, generation: np.ndarray) -> np.ndarray:
    """Which entries count: all of forwards by hand, and of a generation the last of each token. Shapes: [N] -> [M]."""
    order = np.lexsort((np.arange(len(row)), position, row, generation))
    key = np.stack([generation, row, position])[:, order]  # shape: [3, N]
    again = np.append((key[:, 1:] == key[:, :-1]).all(0), False) & (key[0] > 0)  # the next one is of the same token
    return np.sort(order[~again])


def _half(logits: np.ndarray) -> np.ndarray:
    """As float16 where no value becomes infinite."""
    fits = not logits.size or float(np.abs(logits).max()) <= float(np.finfo(np.float16).max)
    return logits.astype(np.float16) if fits else logits
