"""How near two ways of computing the same thing must be, from the dtype that a model really computes in.

Matrix products and sigmoids of another shape round differently, and differently on every processor. A model that is
loaded in float64 may compute its router or a recurrent state in float32: then equal means equal in float32.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NEAR = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.3, torch.float16: 0.1}
"""Largest difference of a logit of the tiny models."""

_ROUNDS_BY_SHAPE = (
    *("mm", "convolution", "cumsum", "scaled_dot_product", "einsum"),
    *("sigmoid", "silu", "gelu", "tanh"),  # the last elements of a tensor go another way than the vectors before them
)
_known: WeakKeyDictionary[Any, dict[torch.dtype, torch.dtype]] = WeakKeyDictionary()


class _Seen(TorchDispatchMode):
    """The least precise dtype of an operation whose rounding depends on the shape that it is done in."""

    def __init__(self) -> None:
        super().__init__()
        self.least = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        first = output[0] if isinstance(output, tuple | list) and output else output
        if (
            isinstance(first, torch.Tensor)
            and first.is_floating_point()
            and any(part in name for part in _ROUNDS_BY_SHAPE)
        ):
            self.least = max(self.least, first.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return output


def computed_in(model: Any) -> torch.dtype:
    """The least precise dtype in which a forward of this model does what rounds by shape: products, sums, sigmoids."""
    known = _known.setdefault(model, {})
    if model.dtype not in known:
        device = next(model.parameters()).device
        with torch.no_grad(), _Seen() as seen:
            model(input_ids=torch.tensor([[3, 5, 7, 9]], device=device), use_cache=False)
        known[model.dtype] = seen.least
    return known[model.dtype]


def near(model: Any) -> float:
    """The absolute tolerance of logits and log-probabilities of this model."""
    return NEAR[computed_in(model)]
