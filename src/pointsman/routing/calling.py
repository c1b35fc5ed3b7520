"""`Calling`: how a model is handed its tokens and its cache. The only file that knows the names of these arguments.

transformers renames them now and then (the cache was `past_key_values` and is `cache` from 5.24 on), and code that
comes with a checkpoint keeps the old names. So nothing here asks for a version: a cache that is given is known by what
it can do, and where one is to be given, the signature of the model's forward says under which name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pointsman.errors import ControlFailed

_CACHE_NAMES = ("cache", "past_key_values", "cache_params", "past_key_value")
"""Names under which models have taken a cache, where no annotation says which parameter it is; the newest first."""


@dataclass(frozen=True)
class Given:
    """What one forward was called with, as far as it tells which token is which.

    Attributes:
        tokens: Token ids, or embeddings. Shape: [B, T] or [B, T, d].
        cache: The cache, if one was given; it tells its length (`get_seq_length`).
        attention_mask: As given; a tensor, one for each kind of attention, or None.
        position_ids: As given.
        uses_cache: Whether the call keeps keys and values for a later one; None if it does not say.
    """

    tokens: Tensor
    cache: Any
    attention_mask: Any
    position_ids: Any
    uses_cache: bool | None

    @property
    def cached(self) -> int:
        """Tokens that came before, in the cache.

        A cache of nothing but recurrent states does not count its tokens; then the attention mask does.

        Raises:
            ControlFailed: Neither does.
        """
        if self.cache is None:
            return 0
        try:
            return int(self.cache.get_seq_length())
        except (ValueError, NotImplementedError):
            mask, new = self.attention_mask, int(self.tokens.shape[1])
            if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= new:
                return int(mask.shape[1]) - new
        raise ControlFailed(
            f"The cache is a {type(self.cache).__name__} that does not tell its length",
            "Give a 2-D attention_mask over all tokens so far",
        )


class Calling:
    """How one model is called, read from the signature of its forward.

    Attributes:
        cache_name: The parameter that takes a cache; None if there is none that can be told.
        keeps_logits: Whether it can be asked for some logits only.
        picks_logits: Whether it can be asked for them by their positions, not by their number alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._owner = type(model)
        self._signature = inspect.signature(type(model).forward)
        parameters = self._signature.parameters
        self._rest = next((p.name for p in parameters.values() if p.kind == p.VAR_KEYWORD), "")
        self.cache_name = _cache_parameter(self._signature)
        self.keeps_logits = "logits_to_keep" in parameters
        self.picks_logits = self.keeps_logits and "Tensor" in str(parameters["logits_to_keep"].annotation)

    def read(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Given:
        """What a forward of `model` is called with.

        Raises:
            ControlFailed: There are no tokens, or a cache that does not tell its length, or more than one.
        """
        given = dict(self._signature.bind_partial(model, *args, **kwargs).arguments)
        given |= given.pop(self._rest, {})
        tokens = given.get("input_ids")
        if tokens is None:
            tokens = given.get("inputs_embeds")
        if not isinstance(tokens, Tensor):
            raise ControlFailed(
                "The model was called without input_ids or inputs_embeds", "Pass one of them by its name"
            )
        return Given(
            tokens, self._cache_of(given), given.get("attention_mask"), given.get("position_ids"),
            given.get("use_cache"),
        )  # fmt: skip

    def _cache_of(self, given: Mapping[str, Any]) -> Any:
        """The cache among the arguments, whatever it is called there."""
        cache = cache_among(given)
        names = (self.cache_name, *_CACHE_NAMES)
        odd = next((given[name] for name in names if name and given.get(name) is not None), None)
        if cache is None and odd is not None:
            raise ControlFailed(
                f"The cache is a {type(odd).__name__} that does not tell its length",
                "Use a transformers Cache, such as DynamicCache",
            )
        return cache

    def with_positions(self, mask: Tensor, new: int) -> dict[str, Any]:
        """Keyword arguments that say where the newest tokens stand, counted from the first real one of each row.

        Args:
            mask: Attention mask over all tokens so far. Shape: [B, S].
            new: How many of them are new (T).

        Returns:
            Nothing for a model that takes no positions and finds them by itself.
        """
        if "position_ids" not in self._signature.parameters and not self._rest:
            return {}
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -new:]}

    def with_cache(self, cache: Any) -> dict[str, Any]:
        """Keyword arguments of a forward that reads this cache and writes to it.

        Raises:
            ControlFailed: It takes none under a name that can be told.
        """
        if self.cache_name is None:
            raise ControlFailed(
                f"{self._owner.__name__}.forward has no parameter that is known to take a cache",
                "Use a version of transformers that Pointsman was tested with; please report this architecture",
            )
        return {self.cache_name: cache, "use_cache": True}

    @contextmanager
    def handed_over(self, model: nn.Module) -> Iterator[None]:
        """Within the block, a cache that `generate` gives under another name than the model's reaches the model.

        transformers hands its own name for the cache to code that comes with a checkpoint too. Where that code takes
        any keyword, it would answer without its cache, and nobody would be told.
        """
        if self.cache_name is None:
            yield
            return

        def rename(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            stray = [name for name in kwargs if name not in self._signature.parameters and _is_cache(kwargs[name])]
            if len(stray) != 1 or kwargs.get(self.cache_name or "") is not None:
                return None
            return args, {(self.cache_name or "") if name == stray[0] else name: v for name, v in kwargs.items()}

        hook = model.register_forward_pre_hook(rename, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def without_wrappers(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers that only pass calls on, such as PEFT's or DistributedDataParallel's.

    `generate` of a wrapper calls the model inside, so that control belongs there; the wrapper may still be called.

    Raises:
        ControlFailed: The wrapper puts tokens of its own before the prompt (prompt tuning).
    """
    while True:
        config = getattr(model, "active_peft_config", None)
        if getattr(config, "is_prompt_learning", False):
            raise ControlFailed(
                f"{type(model).__name__} puts virtual tokens before the prompt, which no rule can name",
                "Control a model whose adapters lie in its layers (LoRA), or the base model",
            )
        base = getattr(model, "get_base_model", None)
        inner = base() if callable(base) else model._modules.get("module")
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def cache_among(given: Mapping[Any, Any]) -> Any:
    """The cache among some arguments or outputs, whatever it is called there; None if there is none.

    Raises:
        ControlFailed: There is more than one.
    """
    caches = {id(value): value for value in given.values() if _is_cache(value)}
    if len(caches) > 1:
        raise ControlFailed("The model was given more than one cache", "Give it one transformers Cache")
    return next(iter(caches.values()), None)


def _is_cache(value: Any) -> bool:
    return callable(getattr(value, "get_seq_length", None)) and not isinstance(value, type)


def _cache_parameter(signature: inspect.Signature) -> str | None:
    """The parameter that is annotated as a cache; else the first that is called like one."""
    parameters = signature.parameters
    annotated = [p.name for p in parameters.values() if "Cache" in str(p.annotation)]
    if len(annotated) == 1:
        return annotated[0]
    return next((name for name in _CACHE_NAMES if name in (annotated or parameters)), None)
