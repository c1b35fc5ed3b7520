"""`Layout`: which row, position and phase each token of one forward is, read from the model's own arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pointsman.errors import ControlFailed, InterventionError
from pointsman.routing.calling import Given, cache_among

PHASES_UNKNOWN = (
    "Call model.generate inside the block and without guidance_scale, or give control(..., prompt_lengths=[...])"
)
_AMBIGUOUS = "Give a 2-D attention_mask over all tokens so far, [batch, cached + new] (and a dynamic cache)"


@dataclass(frozen=True)
class Layout:
    """Which row and position each token of a forward is.

    Attributes:
        position: From the first real token of the row; -1 for padding. Shape: [B, T], int64.
        decode: Whether it is an answer token. Shape: [B, T], bool.
        prefill_possible, decode_possible: False if no token can be of that phase (known without looking).
        phases_known: False if nothing says whether the tokens are prompt or answer: several after a cache, or a forward
            of another text within `generate`.
        copies: Rows of each prompt: beams and returned sequences follow one another. Row r belongs to prompt
            ``r // copies``.
    """

    position: Tensor
    decode: Tensor
    prefill_possible: bool = True
    decode_possible: bool = True
    phases_known: bool = True
    copies: int = 1

    def times(self, copies: int) -> Layout:
        """The same rows so many times, one batch after another."""
        return replace(self, position=self.position.repeat(copies, 1), decode=self.decode.repeat(copies, 1))

    @property
    def prompts(self) -> int:
        return self.position.shape[0] // self.copies


@dataclass
class Generation:
    """What one call of `generate` was given; its forwards alone do not say where the prompt ends.

    Attributes:
        width: Columns of the prompts, padding and earlier turns included; None if it was given none.
        prompts: How many prompts; None if it was given none.
        guided: Whether some of its forwards are of a second prompt, by which the answer is guided.
        beams: Whether its rows change the sequence that they belong to.
        cache: The cache of its forwards, once one was seen.
    """

    width: int | None
    prompts: int | None
    guided: bool = False
    beams: bool = False
    cache: Any = None

    def owns(self, given: Given) -> bool:
        """Whether a forward is of the text that is generated, and not of another one asked on the way."""
        if self.cache is None:
            self.cache = given.cache
        return not self.guided and given.cache is self.cache

    @staticmethod
    def of(generate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Generation:
        """Read the arguments of a call.

        The tokens may be all of the conversation or, beside a cache, the new ones only: the attention mask then
        covers all of it.
        """
        signature = inspect.signature(generate)
        given = dict(signature.bind_partial(*args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind == parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        named = (given.get(name) for name in ("inputs_embeds", "inputs", "input_ids"))
        tokens = next((value for value in named if isinstance(value, Tensor) and value.dim() > 1), None)
        usual = getattr(getattr(generate, "__self__", None), "generation_config", None)

        def setting(name: str) -> Any:
            """As transformers has it: what is passed, else the configuration that is, else the model's own."""
            places = (given.get(name), getattr(given.get("generation_config"), name, None), getattr(usual, name, None))
            return next((value for value in places if value is not None), None)

        guided = setting("guidance_scale") not in (None, 1, 1.0)
        beams = (setting("num_beams") or 1) > 1
        if tokens is None:
            return Generation(None, None, guided, beams)
        width, mask = int(tokens.shape[1]), given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            width = max(width, int(mask.shape[1]))
        past = Given(tokens, cache_among(given), mask, None, None).cached
        if width <= past:
            width += past
        return Generation(width, int(tokens.shape[0]), guided, beams)


def read_layout(
    given: Given, prompt_lengths: tuple[int, ...] | None = None, generation: Generation | None = None
) -> Layout:
    """The layout of a forward that is called with the arguments `given`.

    Positions count real tokens. They come from a 2-D attention mask; or from the 4-D causal mask that
    transformers makes of one for a static cache; or, without a mask, from the length of the cache. Whatever
    leaves them in doubt (packed sequences, masks of another shape) is refused.

    Phases come from `prompt_lengths`; or from the call of `generate` that the forward belongs to, whether it uses a
    cache, reads the prompt in chunks or continues an earlier cache. A forward by hand is prefill if nothing is cached
    and decode if it is one token after a cache; several tokens after a cache may be either.

    Args:
        given: The arguments of the forward.
        prompt_lengths: Real prompt tokens of each prompt.
        generation: The call of `generate` that it belongs to.

    Raises:
        ControlFailed: The positions cannot be told.
        InterventionError: There is not one prompt length for each prompt.
    """
    tokens, past = given.tokens, given.cached
    batch, length = int(tokens.shape[0]), int(tokens.shape[1])
    mask = given.attention_mask
    if isinstance(mask, Mapping):  # one mask for each kind of attention layer
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        position = torch.arange(past, past + length, device=tokens.device).expand(batch, length)
        stated = given.position_ids
        if isinstance(stated, Tensor) and stated.dim() == 2 and not bool((stated == position).all()):
            raise ControlFailed(
                "position_ids without an attention_mask do not count the tokens from the start of each row",
                _AMBIGUOUS,
            )
    else:
        position = _from_mask(mask, batch, past, length, given.position_ids)
    copies = _copies(batch, generation)
    if prompt_lengths is not None:
        if len(prompt_lengths) * copies != batch:
            raise InterventionError(
                f"{len(prompt_lengths)} prompt lengths for a batch of {batch // copies} rows",
                "Give one for each row (for each prompt, where it has several beams or sequences)",
            )
        limits = torch.tensor(prompt_lengths, device=position.device).repeat_interleave(copies)[:, None]
        # Left padding lies before the prompt, so the length of the cache says nothing about the phase here.
        return Layout(position, position >= limits, copies=copies)
    if generation is not None and not generation.owns(given):
        unknown = torch.zeros(batch, length, dtype=torch.bool, device=position.device)
        return Layout(position, unknown, phases_known=False, copies=copies)
    if generation is not None and generation.width is not None:
        width, end = generation.width, past + length
        column = torch.arange(past, end, device=position.device).expand(batch, length)
        return Layout(position, column >= width, past < width, end > width, copies=copies)
    decode = torch.full((batch, length), past > 0, dtype=torch.bool, device=position.device)
    return Layout(position, decode, past == 0, past > 0, phases_known=past == 0 or length == 1, copies=copies)


def _copies(batch: int, generation: Generation | None) -> int:
    """How many rows each prompt has in a batch."""
    prompts = generation.prompts if generation is not None else None
    if prompts is None or batch == prompts:
        return 1
    if prompts == 0 or batch % prompts:
        raise ControlFailed(
            f"A forward of {batch} rows within a generation of {prompts} prompts",
            "Generate in a way that gives every prompt equally many rows; please report this one",
        )
    return batch // prompts


def _from_mask(mask: Any, batch: int, past: int, length: int, stated: Any) -> Tensor:
    """Positions, -1 for padding. Shape: [B, T]."""
    end = past + length
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[0] == batch and mask.shape[1] >= end:
        real = mask != 0  # shape: [B, >= end]
    elif isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[2] == length and mask.shape[3] >= end:
        real = _from_causal(mask, batch, past, length, stated)
    else:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ControlFailed(
            f"An attention mask ({shape}) that does not tell the positions of {batch} x {length} new tokens after "
            f"{past} cached ones",
            _AMBIGUOUS,
        )
    position = (real.long().cumsum(-1) - 1).masked_fill(~real, -1)
    return position[:, past:end]


def _from_causal(mask: Tensor, batch: int, past: int, length: int, stated: Any) -> Tensor:
    """Which keys are real tokens, if the 4-D mask is a causal one with padding. Shape: [B, S], bool."""
    visible = mask[:, 0] == 0 if mask.is_floating_point() else mask[:, 0] != 0
    odd = mask.is_floating_point() and bool((~visible & (mask[:, 0] > -1e4)).any())  # a bias, not a mask
    visible = visible.expand(batch, -1, -1)  # shape: [B, T, S]
    real = visible[:, -1]  # the last token sees every real one. Shape: [B, S]
    keys = torch.arange(mask.shape[-1], device=mask.device)
    queries = torch.arange(past, past + length, device=mask.device)
    expected = real[:, None, :] & (keys <= queries[:, None])  # shape: [B, T, S]
    empty = (visible == visible[..., :1]).all(-1)  # padding sees nothing, or (to avoid NaN) everything
    right = torch.where(real[:, past : past + length], (visible == expected).all(-1), empty)
    odd = odd or not bool(right.all()) or bool(real[:, past + length :].any())
    if not odd and not bool(real[:, : past + length].all()):  # what is hidden is padding only if position_ids agree
        counted = (real.long().cumsum(-1) - 1)[:, past : past + length]
        odd = not _agree(stated, counted, real[:, past : past + length])
    if odd:
        raise ControlFailed(
            "A 4-D attention mask that is not plainly causal attention to all earlier tokens does not tell positions",
            _AMBIGUOUS,
        )
    return real


def _agree(stated: Any, counted: Tensor, real: Tensor) -> bool:
    """Whether position_ids are the counted positions at every real token. Shapes: [B, T]."""
    if not isinstance(stated, Tensor) or stated.dim() != 2:
        return False
    return bool(((stated == counted) | ~real).all())
