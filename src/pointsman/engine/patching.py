"""Residual streams of prompts under a routing, and what the model says when some of them are exchanged.

A *cell* is a decoder layer and some tokens. To patch a cell, the residual stream after that layer is taken from
another run of the same prompt at those tokens, and everything above is computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pointsman.engine.batching import in_batches
from pointsman.engine.resume import Memory, Resume
from pointsman.engine.types import Cost, Prompt, refuse_rows
from pointsman.errors import BadLogits
from pointsman.routing.control import Controller
from pointsman.routing.given import HasIntervention, plain
from pointsman.routing.intervention import Intervention


@dataclass(frozen=True)
class First:
    """What an answer begins with.

    Attributes:
        logits: Of the tokens that were asked for. Shape: [R, tokens], float64.
        top: The most probable token. Shape: [R].
    """

    logits: np.ndarray
    top: np.ndarray


@dataclass(frozen=True)
class Streams:
    """What B prompts computed under their routing. Made by `Patcher.streams`, and of use to it only.

    Attributes:
        lengths: Tokens of each prompt (T). Shape: [B].
        routing: Of each prompt. Shape: [B].
        logits: At the last token of each prompt. Shape: [B, V], float64.
    """

    lengths: tuple[int, ...]
    routing: tuple[Intervention | None, ...]
    logits: np.ndarray
    _memory: Memory

    def after(self, layer: int) -> np.ndarray:
        """Residual stream after a decoder layer; what follows a prompt's end means nothing. Shape: [B, S, d]."""
        stream: np.ndarray = _known(self, layer).double().cpu().numpy()
        return stream


@dataclass(frozen=True)
class Cell:
    """What to exchange in one row: the stream after decoder layer `layer` of prompt `row`, at `tokens`."""

    row: int
    layer: int
    tokens: tuple[int, ...]


class Patcher:
    """Made by an engine's `patcher`; of use within its block.

    Args:
        resume, controller: Attached.
        rows_that_fit: Rows of a number of tokens that one forward may hold.
        cost: Where forwards are counted.
        name: Of the model, for errors.
    """

    def __init__(
        self,
        resume: Resume,
        controller: Controller,
        *,
        rows_that_fit: Callable[[int], int],
        cost: Cost,
        device: torch.device,
        name: str,
    ) -> None:
        self.layers = resume.replay.count  # decoder layers (D)
        self._resume = resume
        self._controller = controller
        self._rows_that_fit = rows_that_fit
        self._cost = cost
        self._device = device
        self._name = name

    def streams(self, prompts: Sequence[Prompt], routing: Sequence[Intervention | HasIntervention | None]) -> Streams:
        """One full forward of all prompts, each under its routing: give no more than fit. Shapes: [B] each."""
        rules = plain(routing)
        refuse_rows(rules)
        started = time.perf_counter()
        lengths = [len(p) for p in prompts]
        ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt.ids)
        self._controller.set(rules, prompt_lengths=lengths)
        keep = slice(min(lengths) - 1, max(lengths))
        memory, logits = self._resume.remember(ids.to(self._device), keep)
        last = self._last(logits, lengths, keep.start)
        self._count(ids.numel(), self.layers, started)
        return Streams(tuple(lengths), tuple(rules), last.double().cpu().numpy(), memory)

    def patched(self, into: Streams, donor: Streams, cells: Sequence[Cell], read: np.ndarray) -> First:
        """What answers begin with when each cell of `into` is taken from `donor`; the routing stays that of `into`.

        Args:
            into, donor: Of the same prompts in the same order (B).
            cells: One row each. Shape: [R].
            read: Tokens whose logits are wanted for each prompt. Shape: [B, tokens].
        """
        by_layer: dict[int, list[int]] = {}
        for n, cell in enumerate(cells):
            by_layer.setdefault(cell.layer, []).append(n)
        logits = np.zeros((len(cells), read.shape[1]))
        top = np.zeros(len(cells), dtype=np.int64)
        most = self._rows_that_fit(max(into.lengths))
        for layer, numbers in sorted(by_layer.items()):

            def batch(some: Sequence[int], layer: int = layer) -> list[tuple[np.ndarray, int]]:
                entering = _exchanged(into, donor, layer, [cells[n] for n in some])
                first = self._above(into, [cells[n].row for n in some], layer + 1, entering, read)
                return list(zip(first.logits, first.top.tolist(), strict=True))

            for n, (values, token) in zip(numbers, in_batches(numbers, most, batch), strict=True):
                logits[n], top[n] = values, token
        return First(logits, top)

    def lens(self, streams: Streams, layer: int, read: np.ndarray) -> First:
        """What answers would begin with if the stream after `layer` went to the final norm and head at once."""
        return self._above(streams, range(len(streams.lengths)), self.layers, _known(streams, layer), read)

    # -- the work ----------------------------------------------------------------------------------------------

    def _above(self, streams: Streams, rows: Sequence[int], layer: int, entering: Tensor, read: np.ndarray) -> First:
        """Decoder layers from `layer` on, from a stream of these rows. Shape of `entering`: [R, S, d]."""
        started = time.perf_counter()
        lengths = [streams.lengths[row] for row in rows]
        known = streams._memory
        stream: list[Tensor | None] = [None] * (self.layers + 1)
        stream[layer] = entering
        ids = known.ids[torch.tensor(rows, device=known.ids.device)]
        self._controller.set([streams.routing[row] for row in rows], prompt_lengths=lengths)
        keep = slice(min(lengths) - 1, max(lengths))
        every = torch.arange(len(rows), device=ids.device)
        memory = Memory(ids, stream, known.keys, known.values)  # its keys are not read: tokens begin at 0
        logits, _ = self._resume.run(memory, every, layer, 0, ids.shape[1], keep)
        last = self._last(logits, lengths, keep.start)
        wanted = torch.from_numpy(read[list(rows)]).to(last.device)
        self._count(ids.numel(), self.layers - layer, started)
        return First(last.gather(-1, wanted).double().cpu().numpy(), last.argmax(-1).cpu().numpy())

    def _last(self, logits: Tensor, lengths: Sequence[int], begin: int) -> Tensor:
        """Logits at the last token of each row. Shapes: [R, kept, V], of which the first is at `begin` -> [R, V]."""
        place = torch.tensor([n - 1 - begin for n in lengths], device=logits.device)
        last = logits[torch.arange(len(lengths), device=logits.device), place]
        if not bool(torch.isfinite(last.amax(-1)).all()):
            raise BadLogits(f"{self._name} returned NaN or infinite logits", "Try another dtype, such as bfloat16")
        return last

    def _count(self, tokens: int, layers: int, started: float) -> None:
        self._cost.forwards += 1
        self._cost.tokens += tokens
        self._cost.token_layers += tokens * layers
        self._cost.seconds += time.perf_counter() - started


def _exchanged(into: Streams, donor: Streams, layer: int, cells: Sequence[Cell]) -> Tensor:
    """The stream of `into` after `layer`, with the cells of `donor` in it. Shape: [R, S, d]."""
    old, new = _known(into, layer), _known(donor, layer)
    index = torch.tensor([cell.row for cell in cells], device=old.device)
    taken = torch.zeros(len(cells), old.shape[1], 1, dtype=torch.bool)
    for n, cell in enumerate(cells):
        taken[n, list(cell.tokens)] = True
    return torch.where(taken.to(old.device), new[index], old[index])


def _known(streams: Streams, layer: int) -> Tensor:
    stream = streams._memory.residual[layer + 1]
    if stream is None:
        raise ValueError(f"no residual stream is known after layer {layer}")
    return stream
