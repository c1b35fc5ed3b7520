"""Small engines for tests: a tiny random model of any family, with the testbed's tokenizer and chat template."""

from __future__ import annotations

from typing import Any

import torch

from families.tiny import tiny
from pointsman.data.types import Behaviour
from pointsman.engine.hf import HFEngine
from pointsman.testbed.language import nouns, requests
from pointsman.testbed.tokenizer import build_tokenizer


def small_engine(
    family: str = "olmoe",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    batch_size: int | None = None,
    **changes: Any,
) -> HFEngine:
    """An untrained engine; in float64 by default, so that equal means equal."""
    tokenizer = build_tokenizer()
    ends = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    model = tiny(family, seed, dtype, vocab_size=len(tokenizer), **ends, **changes)
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the grouped kernel knows no float64
    return HFEngine(model, tokenizer, name=f"tiny {family}", batch_size=batch_size)


def behaviours(count: int) -> list[Behaviour]:
    """Restricted requests of the testbed, of several lengths in tokens."""
    return [
        Behaviour(r.id, r.text, r.target, r.category, r.source, "test") for r in requests("restricted", limit=count)
    ]


def behaviours_of_one_length(count: int) -> list[Behaviour]:
    """Restricted requests of the testbed about nouns that have no ending: all have as many tokens."""
    plain = [r for r in requests("restricted", limit=6 * count) if nouns()[r.noun].cue in ("context", "none")]
    return [Behaviour(r.id, r.text, r.target, r.category, r.source, "test") for r in plain[:count]]
