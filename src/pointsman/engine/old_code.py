"""What code that comes with a checkpoint expects of the transformers it was written for, and newer ones lack.

deepseek-moe-16b and its kin were written for transformers 4.36. Four things have changed since, and the last is silent:
names that such code imports are gone; a configuration without scaled positions says that it has some, of the default
kind; a cache no longer answers what such code asks of it, and `generate` hands it over in another way; and buffers that
a model computes when it is made and no checkpoint holds, such as the frequencies of its positions, are left as whatever
the memory held, since models are now made without memory.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import MethodType, ModuleType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from pointsman.errors import ModelError
from pointsman.routing.calling import cache_among

_MASKS = "transformers.modeling_attn_mask_utils"
_REMEDY = "Install a transformers that this code was written for, or use a model that transformers itself has"


_PATCHING = threading.RLock()
"""Held while anything that belongs to the whole process is patched: who comes second waits, and finds it as it was."""


@contextmanager
def old_names() -> Iterator[None]:
    """Within the block, code that is imported finds names of older versions where they were; one thread at a time."""
    from transformers.utils import import_utils

    with _PATCHING:
        no_module = _MASKS not in sys.modules and find_spec(_MASKS) is None
        no_question = not hasattr(import_utils, "is_torch_fx_available")
        if no_module:
            sys.modules[_MASKS] = _old_masks()
        if no_question:
            import_utils.is_torch_fx_available = lambda: False
        try:
            yield
        finally:
            if no_module:
                del sys.modules[_MASKS]
            if no_question:
                del import_utils.is_torch_fx_available


def serve_old_config(config: Any) -> None:
    """Let a configuration whose code came with its checkpoint say of scaled positions what it said before."""
    cls = type(config)
    usual = getattr(cls, "rope_scaling", None)
    if not _came_along(cls) or not isinstance(usual, property):
        return

    def scaling(self: Any) -> dict[str, Any] | None:
        known = self.rope_parameters
        kind = (known or {}).get("rope_type", "default")
        return None if kind == "default" else {"type": kind, **known}

    cls.rope_scaling = property(scaling, usual.fset)


def load_anew(config: Any) -> None:
    """Let transformers read a checkpoint's code as if for the first time.

    It registers the class that it finds there; when it meets that class again, it no longer gives it `generate`.
    """
    from transformers import AutoModelForCausalLM

    if _came_along(type(config)):
        getattr(AutoModelForCausalLM._model_mapping, "_extra_content", {}).pop(type(config), None)


def serve_old_code(network: Any) -> None:
    """Let a model whose code came with its checkpoint have what that code expects; others are left as they are.

    Raises:
        ModelError: It computes buffers when it is made, and cannot be made a second time.
    """
    if not _came_along(type(network)):
        return
    module = sys.modules[type(network).__module__]
    _fill_computed_buffers(network)
    for name, value in list(vars(module).items()):
        if isinstance(value, type) and value.__module__ == "transformers.cache_utils" and name == "DynamicCache":
            setattr(module, name, _with_old_verbs(value))
    if isinstance(network._tied_weights_keys, list | tuple):  # of weights that are not tied, else it would not be here
        network._tied_weights_keys = None
    network.register_forward_pre_hook(_answer_old_questions, with_kwargs=True)
    _let_generate_prepare(network)


def _came_along(cls: type) -> bool:
    """Whether a class is of code that came with a checkpoint."""
    return cls.__module__.partition(".")[0] == "transformers_modules"


def _old_masks() -> ModuleType:
    """The module of 4-D attention masks, as far as decoders call it; the rest can be imported, and not called."""
    module = ModuleType(_MASKS)
    vars(module).update(
        _prepare_4d_causal_attention_mask=causal_mask,
        _prepare_4d_causal_attention_mask_for_sdpa=causal_mask,
        __getattr__=_gone,
    )
    return module


def _gone(name: str) -> _Gone:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Gone(name)


class _Gone:
    """A name of an older transformers that nothing stands for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self()

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ModelError(f"The checkpoint's code calls {self._name}, which transformers no longer has", _REMEDY)


def causal_mask(
    attention_mask: Tensor | None,
    input_shape: tuple[int, int],
    inputs_embeds: Tensor,
    past_key_values_length: int,
    sliding_window: int | None = None,
) -> Tensor:
    """What is added to attention weights: 0 where a token may look, the least number elsewhere.

    Args:
        attention_mask: Over all tokens so far; or a mask that is finished. Shape: [B, S], or [B, 1, T, S].
        input_shape: Rows and new tokens (B, T).
        inputs_embeds: Of the new tokens: for dtype and device.
        past_key_values_length: Tokens before them (S - T).
        sliding_window: How far back a token may look.

    Returns:
        Shape: [B, 1, T, S].
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    rows, new = input_shape
    device, dtype = inputs_embeds.device, inputs_embeds.dtype
    key = torch.arange(past_key_values_length + new, device=device)
    query = key[past_key_values_length:, None]
    seen = key <= query  # shape: [T, S]
    if sliding_window is not None:
        seen = seen & (key > query - sliding_window)
    seen = seen.expand(rows, 1, -1, -1)
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, -len(key) :].bool()
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)


def _with_old_verbs(known: Any) -> Any:
    """A cache class with the verbs of older ones; itself if it has them."""
    if hasattr(known, "from_legacy_cache"):
        return known

    class OldDynamicCache(known):  # type: ignore[misc]
        @classmethod
        def from_legacy_cache(cls, past_key_values: Any = None) -> Any:
            cache = cls()
            for layer, (keys, values) in enumerate(past_key_values or ()):
                cache.update(keys, values, layer)
            _answer(cache)
            return cache

        def to_legacy_cache(self) -> Any:
            """Itself: later calls take it as it is."""
            return self

    return OldDynamicCache


def _answer_old_questions(network: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    cache = cache_among(kwargs)
    if cache is not None:
        _answer(cache)


def _answer(cache: Any) -> None:
    """Let a cache say how much of it is used, under the names of older versions."""
    if not hasattr(cache, "get_usable_length"):
        cache.get_usable_length = lambda new_seq_length, layer_idx=0: cache.get_seq_length(layer_idx)


def _let_generate_prepare(network: Any) -> None:
    """Prepare the inputs of `generate` by its own rules, where the checkpoint's code knows those of older versions.

    It is handed what it has no name for: how many tokens are new, and its cache under another name.
    """
    from transformers import GenerationMixin

    own, usual = type(network).__dict__.get("prepare_inputs_for_generation"), GenerationMixin
    if own is None or not isinstance(network, usual):
        return
    known = own.__code__.co_varnames[: own.__code__.co_argcount]
    wanted = usual.prepare_inputs_for_generation
    code = getattr(wanted, "__wrapped__", wanted).__code__
    if "next_sequence_length" in code.co_varnames[: code.co_argcount] and "next_sequence_length" not in known:
        network.prepare_inputs_for_generation = MethodType(wanted, network)


def _fill_computed_buffers(network: Any) -> None:
    """Give buffers that no checkpoint holds the values that the code computes for them."""
    empty = {
        (f"{path}." if path else "") + name: (module, name)
        for path, module in network.named_modules()
        for name in module._non_persistent_buffers_set
        if module._buffers.get(name) is not None
    }
    if not empty:
        return
    try:
        with _parameters_without_memory():
            made = dict(type(network)(copy.deepcopy(network.config)).named_buffers())
        values = {name: made[name] for name in empty}
    except Exception as error:
        raise ModelError(
            f"The checkpoint's code computes {min(empty)} when a model is made, and none can be made beside the loaded "
            f"one ({type(error).__name__}: {' '.join(str(error).split())[:120]})",
            _REMEDY,
        ) from error
    for name, value in values.items():
        module, short = empty[name]
        module._buffers[short] = value.to(module._buffers[short].device)


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Within the block, modules that this thread makes have their buffers, and parameters that have a shape only."""
    with _PATCHING:
        usual, here = nn.Module.register_parameter, threading.get_ident()

        def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
            usual(module, name, parameter)
            if parameter is not None and threading.get_ident() == here:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

        nn.Module.register_parameter = cast(Any, register)  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = usual  # type: ignore[method-assign]
