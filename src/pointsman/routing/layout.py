"""`Layout`: which row, position and phase each token of one forward is, read from the model's own arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pointsman.errors import ControlFailed, InterventionError
from pointsman.routing.calling import Given

_AMBIGUOUS = "Give a 2-D attention_mask over all tokens so far, [batch, cached + new] (and a dynamic cache)"


@dataclass(frozen=True)
class Layout:
    """Which row and position each token of a forward is.

    Attributes:
        position: From the first real token of the row; -1 for padding. Shape: [B, T], int64.
        decode: Whether it is an answer token. Shape: [B, T], bool.
        prefill_possible, decode_possible: False if no token can be of that phase (known without looking).
    """

    position: Tensor
    decode: Tensor
    prefill_possible: bool = True
    decode_possible: bool = True


def read_layout(given: Given, prompt_lengths: tuple[int, ...] | None) -> Layout:
    """The layout of a forward that is called with the arguments `given`.

    Positions count real tokens. They come from a 2-D attention mask; or from the 4-D causal mask that
    transformers makes of one for a static cache; or, without a mask, from the length of the cache. Whatever
    leaves them in doubt (packed sequences, masks of another shape) is refused.

    Raises:
        ControlFailed: The positions cannot be told.
        InterventionError: There is not one prompt length for each row.
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
    if prompt_lengths is None:
        decode = torch.full((batch, length), past > 0, dtype=torch.bool, device=position.device)
        return Layout(position, decode, prefill_possible=past == 0, decode_possible=past > 0)
    if len(prompt_lengths) != batch:
        raise InterventionError(
            f"{len(prompt_lengths)} prompt lengths for a batch of {batch} rows", "Give one for each row"
        )
    limits = torch.tensor(prompt_lengths, device=position.device)[:, None]
    # Left padding lies before the prompt, so the length of the cache says nothing about the phase here.
    return Layout(position, position >= limits)


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
