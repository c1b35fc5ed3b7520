"""What a route gradient foretells, held against what forced sets really do: on any model, without its tokenizer.

Sets are drawn for every layer and prompt token of a short random prompt, some 200 in all. The estimated gain of each is
held against two exact ones, of forwards in which this one pair is forced:

- `slopes`: the output of the block is moved a little of the way to what it gives under the forced set. Here the
  estimate has to be right, whatever the model.
- `gains`: the set is forced. Here the estimate can only order the sets, and the less well the more they change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Prompt
from pointsman.routing.control import control
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import Router
from pointsman.stats.rank_agreement import spearman
from pointsman.testbed.tokenizer import build_tokenizer

TOKENS, ANSWER, SETS = 7, 3, 200
STEP = 3e-4  # of the way to what a block gives under a forced set


@dataclass(frozen=True)
class Drawn:
    """Pairs to be forced, one at a time, in a prompt of no text.

    Attributes:
        pairs: MoE layer, token and experts of each.
        estimated: What the route gradient says that they gain, in nats. Shape: [pairs].
    """

    prompt: Prompt
    target: tuple[int, ...]
    pairs: list[tuple[int, int, list[int]]]
    log_prob: float
    estimated: np.ndarray

    def routing(self) -> list[Intervention]:
        """One row for each pair."""
        return [Intervention.force({(layer, token): experts}) for layer, token, experts in self.pairs]


def engine_of(model: Any) -> HFEngine:
    """An engine for prompts that are made by hand; its tokenizer has nothing to do with the model."""
    return HFEngine(model, build_tokenizer(), name=model.config.model_type)


def prompt_of(ids: list[int]) -> Prompt:
    """Tokens of no text."""
    return Prompt(tuple(ids), ("",) * len(ids), ("content",) * len(ids))


def draw(engine: HFEngine, seed: int = 0) -> Drawn:
    """Some 200 pairs, and what the route gradient says of them.

    Raises:
        ModelError: The model cannot be searched by its gradient.
    """
    rng = np.random.default_rng(seed)
    vocabulary = len(engine.model.get_input_embeddings().weight)
    prompt = prompt_of(rng.integers(3, vocabulary, TOKENS).tolist())
    target = tuple(rng.integers(3, vocabulary, ANSWER).tolist())
    (gradient,) = engine.route_gradients([prompt], [target])
    places = [(router, token) for router in engine.routers for token in range(TOKENS)]
    each = -(-SETS // len(places))
    pairs = [(r.layer, token, experts) for r, token in places for experts in r.draw(rng, each).tolist()]
    estimated = [float(gradient.layers[layer].gain(experts)[token]) for layer, token, experts in pairs]
    return Drawn(prompt, target, pairs, gradient.log_prob, np.array(estimated))


def gains(engine: HFEngine, drawn: Drawn) -> np.ndarray:
    """By how much forcing each pair raises log p(target), in nats. Shape: [pairs]."""
    rows = len(drawn.pairs)
    scores = engine.score([drawn.prompt] * rows, [drawn.target] * rows, routing=drawn.routing())
    return np.array([score.total for score in scores]) - drawn.log_prob


def slopes(engine: HFEngine, drawn: Drawn) -> np.ndarray:
    """By how much log p(target) rises on the way to each pair, in nats for the whole way. Shape: [pairs].

    The modules whose outputs are moved are found by their place and their weights, in ordinary forwards.
    """
    forced: dict[int, Tensor] = {}

    def keep(layer: int, out: Tensor) -> Tensor:
        forced[layer] = out.clone()
        return out

    def move(layer: int, out: Tensor, by: float) -> Tensor:
        moved, other = out.clone(), forced[layer].reshape(out.shape)
        wide, there = (each.reshape(len(drawn.pairs), -1, out.shape[-1]) for each in (moved, other))
        for row, (where, token, _) in enumerate(drawn.pairs):
            if where == layer:
                wide[row, token] += by * (there[row, token] - wide[row, token])
        return wide.reshape(out.shape)

    with control(engine.model, drawn.routing()), _at_blocks(engine, drawn, keep):
        _log_probs(engine, drawn)
    here, both = _log_probs(engine, drawn), []
    for step in (STEP, -STEP):
        with _at_blocks(engine, drawn, lambda layer, out, step=step: move(layer, out, step)):
            both.append((_log_probs(engine, drawn) - here) / step)
    return np.where(np.abs(both[0]) < np.abs(both[1]), *both)  # no step over the edge to another choice of experts


def agreement(estimated: np.ndarray, exact: np.ndarray) -> float:
    """Spearman's correlation over the pairs that can reach the answer.

    (In the last layer, only the last prompt token can: others gain nothing by either count.)
    """
    reach = (estimated != 0) | (exact != 0)
    return spearman(estimated[reach], exact[reach]) or 0.0


@contextmanager
def _at_blocks(engine: HFEngine, drawn: Drawn, what: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """What is given for what the stacked experts beside each router give, or else the innermost module around it."""
    hooks: list[RemovableHandle] = []
    seen: set[int] = set()
    rows = len(drawn.pairs) * (TOKENS + ANSWER)

    def at(router: Router, module: nn.Module, rows: int | None) -> RemovableHandle:
        def change(module: nn.Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple | list) else output
            if router.layer in seen or not isinstance(first, Tensor):
                return None
            if rows is not None and first.numel() != rows * first.shape[-1]:
                return None  # not one row for each token
            seen.add(router.layer)
            moved = what(router.layer, first)
            return type(output)([moved, *output[1:]]) if isinstance(output, tuple | list) else moved

        return module.register_forward_hook(change)

    for router in engine.routers:
        path, _, own = router.path.rpartition(".")
        for name, module in engine.model.get_submodule(path).named_children():
            if name != own and any(p.dim() == 3 for p in module.parameters(recurse=False)):
                hooks.append(at(router, module, rows))
        while path:
            hooks.append(at(router, engine.model.get_submodule(path), None))
            path = path.rpartition(".")[0]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _log_probs(engine: HFEngine, drawn: Drawn) -> np.ndarray:
    """log p(target) of as many rows as there are pairs, in one plain forward. Shape: [pairs]."""
    ids = torch.tensor([[*drawn.prompt.ids, *drawn.target]] * len(drawn.pairs))
    with torch.no_grad():
        logits = engine.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    log_p = torch.log_softmax(logits, -1)[:, TOKENS - 1 : -1]  # shape: [pairs, ANSWER, V]
    wanted = torch.tensor(drawn.target).expand(len(ids), -1)[..., None]
    return np.asarray(log_p.gather(-1, wanted).sum((1, 2)).numpy())
