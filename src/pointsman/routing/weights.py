"""`weights_hash`: which checkpoint a model in memory is, all of it. The fingerprint knows its routers only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_AT_ONCE = 1 << 24  # values that are rounded at once
_known: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], str]] = WeakKeyDictionary()


def weights_hash(model: nn.Module) -> str:
    """Identify a model by every tensor of its checkpoint: names, shapes and values.

    Values enter rounded to bfloat16, so that the same checkpoint loaded in float32 or bfloat16 has one hash. All of the
    model is read once, about a gigabyte a second and thread; the hash is kept for as long as no tensor is changed (of
    changes through ``.data``, which torch does not count, only those are noticed that reach a sample of the values).

    Args:
        model: A transformers model; weights that accelerate keeps on disk are read from there.

    Returns:
        16 hex digits; followed by ``+`` and how many tensors could not be read, if any.
    """
    tensors = dict(_tensors(model))
    token = tuple(
        (name, t.data_ptr(), t._version, _glance(t)) for name, t in tensors.items() if t is not None and not t.is_meta
    )
    known = _known.get(model)
    if known is not None and known[0] == token:
        return known[1]
    names = sorted(tensors)
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # hashing lets go of the interpreter
        digests = list(pool.map(lambda name: _digest(tensors[name]), names))
    shapes = [None if tensor is None else list(tensor.shape) for tensor in map(tensors.get, names)]
    whole = hashlib.sha256(json.dumps(list(zip(names, shapes, digests, strict=True))).encode())
    unread = digests.count(None)
    found = whole.hexdigest()[:16] + (f"+{unread}" if unread else "")
    _known[model] = (token, found)
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """Every parameter and every buffer of the checkpoint by its name; None if it lies nowhere that can be read."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        weights = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        lasting = [n for n in module._buffers if n not in module._non_persistent_buffers_set]
        for name in (*module._parameters, *lasting):
            tensor: Tensor | None = getattr(module, name)
            if tensor is None:
                continue
            if tensor.is_meta and weights is not None:
                try:
                    tensor = weights[name]
                except (KeyError, OSError):
                    tensor = None
            yield prefix + name, None if tensor is None else tensor.detach()
            for scale in _scales(tensor):
                yield f"{prefix}{name}.scale", scale


def _scales(tensor: Tensor | None) -> list[Tensor]:
    """What the numbers of a tensor that bitsandbytes quantised stand for, beside their codes."""
    state = getattr(tensor, "quant_state", None)
    found = (getattr(state, "absmax", None), getattr(tensor, "SCB", None))
    return [scale.detach() for scale in found if isinstance(scale, Tensor)]


def _glance(tensor: Tensor) -> float:
    """A sum over a sample of the values: cheap, and different after most changes."""
    if tensor.numel() == 0:
        return 0.0
    flat = tensor.detach().reshape(-1)
    return float(flat[:: max(1, len(flat) // 1024)].double().nan_to_num().sum())


def _digest(tensor: Tensor | None) -> str | None:
    """SHA-256 of the values of a tensor, rounded to bfloat16; None if it cannot be read."""
    if tensor is None or tensor.is_meta:
        return None
    digest = hashlib.sha256()
    flat = tensor.reshape(-1)
    for part in torch.split(flat, _AT_ONCE):  # shapes: [values]
        rounded = part.to(torch.bfloat16) if part.is_floating_point() else part
        digest.update(rounded.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
