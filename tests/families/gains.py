"""What a route gradient foretells, held against what forcing the sets really does: on any model, without its tokenizer.

Sets are drawn for every layer and prompt token of short random prompts. Of each, the estimated gain is compared with
the exact change of log p(target) in a forward with this one pair forced.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Prompt
from pointsman.routing.intervention import Intervention
from pointsman.stats.rank_agreement import spearman
from pointsman.testbed.tokenizer import build_tokenizer

TOKENS, ANSWER, SETS = 7, 3, 200
STILL = 1e-7
"""Nats; a model whose log p(target) no forced set moves by more shows nothing but rounding."""


class NothingMoves(Exception):
    """Forced sets do not change what the model says."""


def engine_of(model: Any) -> HFEngine:
    """An engine for prompts that are made by hand; its tokenizer has nothing to do with the model."""
    return HFEngine(model, build_tokenizer(), name=model.config.model_type)


def prompt_of(ids: list[int]) -> Prompt:
    """Tokens of no text."""
    return Prompt(tuple(ids), ("",) * len(ids), ("content",) * len(ids))


def gains(engine: HFEngine, *, sets: int = SETS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of some 200 forced pairs, the estimated and the exact gain in nats. Shapes: [pairs].

    Raises:
        ModelError: The model cannot be searched by its gradient.
    """
    rng = np.random.default_rng(seed)
    vocabulary = len(engine.model.get_input_embeddings().weight)
    prompt = prompt_of(rng.integers(3, vocabulary, TOKENS).tolist())
    target = tuple(rng.integers(3, vocabulary, ANSWER).tolist())
    (gradient,) = engine.route_gradients([prompt], [target])
    places = [(router, token) for router in engine.routers for token in range(len(prompt))]
    each = -(-sets // len(places))
    tried = [
        (router.layer, token, experts)
        for router, token in places
        for experts in router.draw(rng, each).tolist()
    ]  # fmt: skip
    estimated = [float(gradient.layers[layer].gain(experts)[token]) for layer, token, experts in tried]
    routing = [Intervention.force({(layer, token): experts}) for layer, token, experts in tried]
    scores = engine.score([prompt] * len(tried), [target] * len(tried), routing=routing)
    return np.array(estimated), np.array([score.total for score in scores]) - gradient.log_prob


def agreement(model: Any) -> float:
    """Spearman's correlation of estimated and exact gains.

    Raises:
        ModelError: The model cannot be searched by its gradient.
        NothingMoves: Its exact gains are rounding.
    """
    estimated, exact = gains(engine_of(model))
    found = spearman(estimated, exact)
    if found is None or np.abs(exact).max() < STILL:
        raise NothingMoves(f"no forced set moves log p by more than {np.abs(exact).max():.0e}")
    return found
