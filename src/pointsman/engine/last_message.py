"""What the routers say to the last user message: raw logits at its tokens, as surrogates and gates read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pointsman.engine.types import Engine, Prompt
from pointsman.errors import DataError
from pointsman.routing.given import HasIntervention
from pointsman.routing.intervention import Intervention

TOGETHER = 64  # prompts in one trace, at most
_BYTES = 128 << 20  # of the logits of all their tokens

Logits = npt.NDArray[np.float32]


def user_span(prompt: Prompt, name: str) -> npt.NDArray[np.int64]:
    """Positions of the tokens of the last user message. Shape: [T].

    Args:
        name: Of the model, for the error.

    Raises:
        DataError: The chat template leaves none.
    """
    places = [n for n, role in enumerate(prompt.roles) if role == "content"]
    if not places:
        raise DataError(
            f"The chat template of {name} leaves no token of the last user message",
            "Give a template that writes user messages unchanged, with --chat-template FILE",
        )
    return np.array(places, dtype=np.int64)


def last_message_logits(
    engine: Engine, prompts: Sequence[Prompt], routing: Sequence[Intervention | HasIntervention | None]
) -> Iterator[list[Logits]]:
    """Raw router logits at the last user message of every prompt, in order, a bounded number of prompts at a time.

    Args:
        routing: In force meanwhile, one for each prompt. Shape: [B].

    Yields:
        One array a MoE layer. Shapes: [T, E_l].

    Raises:
        DataError: A user message cannot be located in the chat template; nothing was asked of the model then.
    """
    spans = [user_span(prompt, engine.info.name) for prompt in prompts]
    for rows in _together(prompts, 4 * sum(router.experts for router in engine.routers)):
        trace = engine.trace([prompts[n] for n in rows], routing=[routing[n] for n in rows])
        for row, n in enumerate(rows):
            begins = [int(np.searchsorted(layer.row, row)) for layer in trace.layers]  # by row, then position from 0
            yield [layer.logits[begin + spans[n]] for layer, begin in zip(trace.layers, begins, strict=True)]


def _together(prompts: Sequence[Prompt], wide: int) -> Iterator[list[int]]:
    """Numbers of the prompts in their order, in parts whose logits take bounded memory. wide: bytes of one token."""
    part: list[int] = []
    tokens = 0
    for n, prompt in enumerate(prompts):
        tokens += len(prompt)
        if part and (len(part) == TOGETHER or tokens * wide > _BYTES):
            yield part
            part, tokens = [], len(prompt)
        part.append(n)
    if part:
        yield part
