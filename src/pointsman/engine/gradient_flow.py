"""Gradients from what a model says to its experts: nobody switches them off, and a model without them is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pointsman.engine.batching import is_out_of_memory
from pointsman.errors import ModelError


@contextmanager
def gradients_kept() -> Iterator[None]:
    """Within it gradients are computed, whatever the model's own code wants."""
    with torch.enable_grad(), _Overruled():
        yield


class _Overruled(TorchFunctionMode):
    """Within it, nobody switches gradients off: code that serves answers does, such as deepseek-moe-16b's own."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        return func(*args, **(kwargs or {}))


def no_gradient(name: str, error: Exception | None = None) -> ModelError:
    """What to raise; memory that runs out is no lack of a gradient, and goes on as it is."""
    if error is not None and is_out_of_memory(error):
        raise error
    why = f" ({' '.join(str(error).split())[:160]})" if error is not None else ""
    return ModelError(
        f"{name} passes no gradient from what it says to its experts{why}",
        "Search its routes with F-SOUR (--attack fsour), or load it unquantised",
    )
