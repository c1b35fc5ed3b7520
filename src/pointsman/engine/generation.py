"""Greedy answers of transformers models: the most probable token each time, whatever the model's own settings say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from pointsman.errors import BadLogits


def most_probable(
    model: Any, ids: Tensor, mask: Tensor, most: int, *, ends: Sequence[int], pad: int, name: str
) -> list[list[int]]:
    """What a model says after rows that are padded on the left, until all of them have ended.

    Args:
        ids, mask: Shapes: [B, T].
        most: New tokens, at most.
        ends: Tokens that end an answer.
        pad: Token that stands after an end.
        name: Of the model, for errors.

    Returns:
        New tokens, as many for every row. Shape: [B, <= most].

    Raises:
        BadLogits: The model returned NaN or infinite logits.
    """
    watch = _FiniteLogits()
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        guidance_scale=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=most,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList([watch]),
        )
    new: list[list[int]] = output[:, ids.shape[1] :].tolist()
    watch.check(name)
    return new


class _FiniteLogits(LogitsProcessor):  # type: ignore[misc]
    """Notices NaN and +inf logits during generation without changing them."""

    def __init__(self) -> None:
        self._bad: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = ~torch.isfinite(scores.amax(-1)).all()
        self._bad = bad if self._bad is None else self._bad | bad
        return scores

    def check(self, name: str) -> None:
        if self._bad is not None and bool(self._bad):
            raise BadLogits(f"{name} returned NaN or infinite logits", "Try another dtype, such as bfloat16")
