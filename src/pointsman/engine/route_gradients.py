"""How much every expert would raise log p(target), to first order: one backward pass. METHODS section 9.

Two things are needed, and both are measured on the model instead of looked up for its architecture:

- s[l, t, e], the derivative of log p(target) with respect to the weight with which expert e enters at layer l and
  token t. One forward and backward gives g, the gradient with respect to the output of every mixture: of the module
  that is handed the router's weights, or else of the block around the router. Then each block runs again on what it
  was given, with sets forced that cover all its experts; the derivative of g . output with respect to the weights that
  its router returns is s.
- w_e(c), the weight with which e enters when the set c is forced: the weights that the router returned then, and the
  rule that they follow (`Weighing`), which is held against other sets.

`BackwardPass` and `AllExperts` take the one, over the blocks of `moe_blocks.py`; `weighing.py` holds the rules of the
other; `Guide` has the course of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.engine.all_experts import AllExperts, forwards_of_all_experts
from pointsman.engine.backward_pass import BackwardPass
from pointsman.engine.batching import give_memory_back
from pointsman.engine.gradient_flow import no_gradient
from pointsman.engine.learning import weights_held
from pointsman.engine.moe_blocks import Block
from pointsman.engine.types import Cost, EngineInfo, Prompt
from pointsman.engine.weighing import Rule, Weighing, by_rule, closest_rule, error_of, every_set
from pointsman.errors import BadLogits, ModelError
from pointsman.routing.controller import Controller
from pointsman.routing.intervention import Intervention
from pointsman.routing.replay import Replay
from pointsman.routing.routers import Router

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Within which a rule must foretell a router's weights, relative to the largest of the set."""

_NEVER = -1e200  # nats: the score of an expert whose output is too large for the dtype, however small its weight

_LARGE = 1 << 30  # bytes of a model whose passes leave much memory behind

_OTHER_SETS = 32  # random ones, on which a rule is tried when it is found
_CHECKED_SETS = 8  # the first of them, on which it is tried at all other prompts, unless the cover says enough
_FEW_SETS = 512  # of so many, all are tried; a router whose weights follow no known rule is asked for each


@dataclass(frozen=True)
class LayerGradient:
    """One MoE layer at the tokens of one prompt.

    Attributes:
        scores: Derivative of log p(target) with respect to the weight of each expert, in nats; the mean of it between
            no weight and the whole, where the output is not linear in the weights (Llama 4). Shape: [T, E].
        chosen: Experts that entered. Shape: [T, k].
        weights: With which weights. Shape: [T, k].
        weighing: With which weights those of other sets would.
    """

    scores: np.ndarray
    chosen: np.ndarray
    weights: np.ndarray
    weighing: Weighing

    @property
    def level(self) -> np.ndarray:
        """What the chosen experts contribute to log p(target), to first order: what a set must beat. Shape: [T]."""
        return np.asarray((self.weights * np.take_along_axis(self.scores, self.chosen, 1)).sum(-1))

    def gain(self, experts: Sequence[int] | np.ndarray) -> np.ndarray:
        """By how much forcing this set at a token would raise log p(target), to first order, in nats. Shape: [T]."""
        index = np.asarray(experts, dtype=np.int64)
        return np.asarray((self.weighing.of(index) * self.scores[:, index]).sum(-1) - self.level)


@dataclass(frozen=True)
class RouteGradient:
    """What one backward pass says about the routes of one prompt.

    Attributes:
        log_prob: log p(target) under the routing at which it was taken, in nats.
        layers: Of every MoE layer.
        forwards: What it cost, in forwards of its row: one, a backward that counts two, and the pass through all
            experts by its arithmetic.
    """

    log_prob: float
    layers: tuple[LayerGradient, ...]
    forwards: float


class Guide:
    """Route gradients of one model. Attach its controller around every use.

    Args:
        model: Of the controller.
        controller: Of its routers.
        forward: Logits at the last positions of padded rows. Shape: [B, keep, V].
        pad: Ids and mask of rows, padded on the left. Shapes: [B, T].
        rows_that_fit: Rows of a number of tokens that one forward without gradients may hold.
        cost: Where forwards are counted.
        info: Of the engine.
        replay: Its decoder layers, if forwards can be resumed from them.

    Attributes:
        forwards: What the route gradient of a row costs, in forwards of it.
    """

    def __init__(
        self,
        model: nn.Module,
        controller: Controller,
        forward: Callable[[Tensor, Tensor, int], Tensor],
        pad: Callable[[Sequence[tuple[int, ...]]], tuple[Tensor, Tensor]],
        *,
        rows_that_fit: Callable[[int], int],
        cost: Cost,
        info: EngineInfo,
        replay: Replay | None = None,
    ) -> None:
        self._model, self._controller, self._replay = model, controller, replay
        self._cost, self._name = cost, info.name
        self._backward = BackwardPass(model, controller, forward, pad, info)
        self._experts = AllExperts(controller, rows_that_fit, info.name)
        self._layers = int(model.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr, operator]
        self.forwards = 3 + forwards_of_all_experts(model, controller.routers)
        self._large = sum(p.numel() * p.element_size() for p in model.parameters() if p.device.type == "cpu") > _LARGE
        self._rules: dict[int, tuple[Rule, np.ndarray]] = {}  # of a layer, with the scale of each expert

    def gradients(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        routing: Sequence[Intervention | None],
        *,
        by_layer: bool = False,
    ) -> list[RouteGradient]:
        """Of rows that one forward with its backward may hold.

        Args:
            by_layer: Hold what the backward needs of one decoder layer at a time, and compute it again for that: one
                forward more. Without effect where forwards cannot be resumed.

        Raises:
            BadLogits: The model returned NaN or infinite logits, or such gradients.
            ModelError: It passes no gradient to the weights of its experts, or weighs them in an unknown way.
        """
        started = time.perf_counter()
        self._tidy()
        with weights_held(self._model), self._controller.attached():
            self._controller.set(list(routing), prompt_lengths=[len(p) for p in prompts])
            replay = self._replay if by_layer else None
            blocks, totals, tokens = self._backward.run(prompts, targets, replay)
            self._tidy()
            free = [_without_sets(each) for each in routing]
            places = [
                slice(tokens - len(p) - len(t) + 1, tokens - len(t) + 1) for p, t in zip(prompts, targets, strict=True)
            ]
            layers = [self._layer(router, block, free, places) for router, block in blocks]
        self._tidy()
        rows = len(prompts) * tokens
        forwards = self.forwards + (1 if replay is not None else 0)
        self._cost.forwards += 1
        self._cost.tokens += rows
        self._cost.token_layers += round(forwards * rows * self._layers)
        self._cost.seconds += time.perf_counter() - started
        return [
            RouteGradient(total, tuple(layer[row] for layer in layers), forwards) for row, total in enumerate(totals)
        ]

    def _tidy(self) -> None:
        """Where they are large, what freed tensors took goes back to the system."""
        if self._large:
            give_memory_back()

    def _layer(
        self, router: Router, block: Block, free: Sequence[Intervention], places: Sequence[slice]
    ) -> list[LayerGradient]:
        """All experts of one layer at the tokens of every prompt."""
        scores, entered, logits = self._experts.scores(router, block, free)
        self._leave_out_overflows(scores, block)
        weighing = self._weighing(router, block, free, entered, logits)
        weights = self._experts.weights_chosen(router, block)
        if block.chosen is None:
            raise no_gradient(self._name)
        chosen, rows = block.chosen.cpu().numpy(), len(free)
        return [
            LayerGradient(
                scores.reshape(rows, -1, router.experts)[row][at],
                chosen.reshape(rows, -1, router.top_k)[row][at],
                weights.reshape(rows, -1, router.top_k)[row][at],
                weighing.at(rows, row, at),
            )
            for row, at in enumerate(places)
        ]

    def _leave_out_overflows(self, scores: np.ndarray, block: Block) -> None:
        """An expert that would overflow where it was not chosen is never worth forcing; those chosen must not.

        Args:
            scores: Changed in place. Shape: [B * T, E].
        """
        odd = ~np.isfinite(scores)
        if not odd.any() or block.chosen is None:
            return
        if np.take_along_axis(odd, block.chosen.cpu().numpy(), 1)[self._real_tokens(block)].any():
            raise BadLogits(f"{self._name} returned NaN or infinite gradients", "Try another dtype, such as bfloat16")
        scores[odd] = _NEVER

    def _weighing(
        self,
        router: Router,
        block: Block,
        free: Sequence[Intervention],
        entered: np.ndarray,
        logits: np.ndarray,
    ) -> Weighing:
        """The rule by which a router weighs forced sets: found once for every layer, and again where it does not hold.

        A few tokens may not tell rules apart: PhiMoE weighs two experts as if each were alone, unless they nearly tie.

        Args:
            entered: The weight of each expert within its set of the cover. Shape: [B * T, E].
            logits: Shape: [B * T, E].
        """
        known = self._rules.get(router.layer)
        if known is None or not self._holds(known, router, block, free, entered, logits):
            self._rules[router.layer] = self._find_rule(router, block, free, entered, logits)
        rule, scale = self._rules[router.layer]
        if rule == "listed":
            sets = every_set(router)
            listed = self._experts.weights_of(router, block, free, sets.tolist()).transpose(1, 0, 2)
            return Weighing(rule, np.zeros((len(logits), 0)), np.zeros(0), sets, listed)
        return by_rule(rule, scale, entered, logits)

    def _holds(
        self,
        known: tuple[Rule, np.ndarray],
        router: Router,
        block: Block,
        free: Sequence[Intervention],
        entered: np.ndarray,
        logits: np.ndarray,
    ) -> bool:
        """Whether a rule that was found on other prompts foretells the weights on these."""
        rule, scale = known
        if rule == "listed" or router.top_k == 1:  # all sets are asked for
            return True
        real = self._real_tokens(block)
        if rule == "fixed":  # takes the weights from the cover: only other sets can contradict
            tried = self._tried(router, block, free, _CHECKED_SETS)
        else:
            tried = [(each, entered[real][:, each]) for each in self._experts.covers[router.layer]]
        return error_of(by_rule(rule, scale, entered[real], logits[real]), tried) <= _tolerance(block)

    def _real_tokens(self, block: Block) -> np.ndarray:
        """Numbers of those that are not padding."""
        if block.layout is None:
            raise no_gradient(self._name)
        return np.flatnonzero((block.layout.position >= 0).reshape(-1).cpu().numpy())

    def _tried(
        self, router: Router, block: Block, free: Sequence[Intervention], random: int
    ) -> list[tuple[list[int], np.ndarray]]:
        """All sets where they are few, else so many random ones, with the weights that the router gives them."""
        if router.possible_sets <= _FEW_SETS:
            sets = every_set(router).tolist()
        else:
            sets = router.draw(np.random.default_rng(3), _OTHER_SETS)[:random].tolist()
        weights = self._experts.weights_of(router, block, free, sets)[:, self._real_tokens(block)]
        return list(zip(sets, weights, strict=True))

    def _find_rule(
        self,
        router: Router,
        block: Block,
        free: Sequence[Intervention],
        entered: np.ndarray,
        logits: np.ndarray,
    ) -> tuple[Rule, np.ndarray]:
        """Held against other sets at every token that is not padding: all where they are few, else random ones."""
        real = self._real_tokens(block)
        tried = self._tried(router, block, free, _OTHER_SETS)
        error, rule, scale = closest_rule(entered[real], logits[real], self._experts.covers[router.layer], tried)
        if error <= _tolerance(block):
            return rule, scale
        if router.possible_sets <= _FEW_SETS:
            return "listed", np.zeros(0)
        raise ModelError(
            f"{self._name} cannot be searched by its gradient: router {router.path} weighs experts by a rule that "
            f"Pointsman does not know (off by {100 * error:.1g} %)",
            "Search its routes with F-SOUR (--attack fsour)",
        )


def _tolerance(block: Block) -> float:
    return _TOLERANCE.get(block.delta.dtype if block.delta is not None else torch.float32, 4e-2)


def _without_sets(routing: Intervention | None) -> Intervention:
    """What is no choice of experts in a routing: where other sets are tried, it stays."""
    if routing is None:
        return Intervention()
    return Intervention(tuple(rule for rule in routing.rules if rule.kind not in ("mask", "force")))
