"""How many rows go into one forward: chosen from memory, halved when it does not fit, never changing a result."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn

from pointsman.errors import OutOfMemory

Item = TypeVar("Item")
Result = TypeVar("Result")

_SHARE_OF_MEMORY = 0.3
_MOST_TOKENS = {"cpu": 8192, "cuda": 131072}
_CPU_ALLOCATION_FAILED = "can't allocate memory"


def rows_that_fit(model: nn.Module, tokens_per_row: int) -> int:
    """Rows of `tokens_per_row` tokens that one forward may hold, at least 1."""
    return max(1, int(tokens_that_fit(model) // max(tokens_per_row, 1)))


def tokens_that_fit(model: nn.Module) -> float:
    """Tokens that one forward may hold, over all its rows.

    An estimate from the *total* memory of the device, not from what happens to be free, so that the same machine
    always forms the same batches and a resumed run repeats them.
    """
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    device = next(model.parameters()).device
    kind = device.type if device.type in _MOST_TOKENS else "cuda"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.device == device)
    width = next(model.parameters()).element_size()
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    per_token = width * hidden * (2 * layers + 32) + 8 * int(config.vocab_size)
    budget = max(total - weights, total // 10) * _SHARE_OF_MEMORY
    return float(min(budget / per_token, _MOST_TOKENS[kind]))


def in_batches(items: Sequence[Item], rows: int, compute: Callable[[Sequence[Item]], list[Result]]) -> Iterator[Result]:
    """Compute all items in batches of at most `rows`, halving the batch whenever memory runs out.

    May be nested: where not even one row of an inner batch fits, the outer batch is halved.

    Raises:
        OutOfMemory: Not even one row fits.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + rows]
        try:
            results = compute(batch)
        except (OutOfMemory, torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(batch) == 1:
                raise OutOfMemory(
                    "Not even one row fits into memory", "Use a smaller dtype, 4-bit loading, or shorter prompts"
                ) from error
            rows = max(1, len(batch) // 2)
            continue
        yield from results
        start += len(batch)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, OutOfMemory | torch.OutOfMemoryError | MemoryError) or _CPU_ALLOCATION_FAILED in str(error)


def give_memory_back() -> None:
    """What freed tensors took goes back to the system: the C library of Linux keeps it otherwise, in pieces that the
    next large tensor may not fit into. Takes milliseconds."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not every C library has it
        if trim is not None:
            trim(0)
