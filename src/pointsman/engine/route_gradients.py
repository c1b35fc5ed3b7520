"""How much every expert would raise log p(target), to first order: one backward pass. METHODS section 9.

Two things are needed, and both are measured on the model instead of looked up for its architecture:

- s[l, t, e], the derivative of log p(target) with respect to the weight with which expert e enters at layer l and
  token t. One forward and backward gives g, the gradient with respect to the output of every mixture: of the module
  that is handed the router's weights, or else of the block around the router. Then each block runs again on what it
  was given, with sets forced that cover all its experts; the derivative of g . output with respect to the weights that
  its router returns is s.
- w_e(c), the weight with which e enters when the set c is forced: the weights that the router returned then, and the
  rule that they follow (`Weighing`), which is held against other sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from pointsman.engine.batching import is_out_of_memory
from pointsman.engine.channels import given
from pointsman.engine.learning import weights_held
from pointsman.engine.types import Cost, EngineInfo, Prompt
from pointsman.errors import BadLogits, ControlFailed, ModelError
from pointsman.routing.controller import Controller, Reweigh
from pointsman.routing.intervention import Intervention
from pointsman.routing.layout import Layout
from pointsman.routing.plan import Forced
from pointsman.routing.replay import Replay
from pointsman.routing.routers import Router
from pointsman.routing.tap import weights_among

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Within which a rule must foretell a router's weights, relative to the largest of the set."""

_OTHER_SETS = 32  # random ones, on which a rule is tried
_FEW_SETS = 512  # of so many, a router whose weights follow no known rule is asked for each

_CURVED = 1e-2  # by which derivatives at the whole and at half the weights must differ, relative to the largest
_GAUSS = ((0.1127016653792583, 5 / 18), (0.5, 8 / 18), (0.8872983346207417, 5 / 18))
"""Points between 0 and 1, with their shares: the mean of a polynomial of degree 5 over the interval, exactly."""

Rule = Literal["fixed", "softmax", "sigmoid", "listed"]


@dataclass(frozen=True)
class Weighing:
    """With which weights the experts of a forced set enter, at some tokens of one layer.

    Attributes:
        rule: ``fixed``: w_e(c) = strength_e. ``softmax`` and ``sigmoid``: w_e(c) = scale_e strength_e / sum of the
            strengths of c, with exp or sigmoid of the logits as strengths. ``listed``: all sets were tried.
        strength: Shape: [T, E]; empty if listed.
        scale: Shape: [E]; ones if fixed, empty if listed.
        sets: All sets, if listed. Shape: [N, k].
        listed: Their weights. Shape: [T, N, k].
    """

    rule: Rule
    strength: np.ndarray
    scale: np.ndarray
    sets: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    listed: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))

    @property
    def renormalised(self) -> bool:
        """Whether the weight of an expert depends on the others of its set."""
        return self.rule != "fixed"

    def of(self, experts: Sequence[int] | np.ndarray) -> np.ndarray:
        """The weights of this set at every token. Shape: [T, k]."""
        index = np.asarray(experts, dtype=np.int64)
        if self.rule == "listed":
            (number,) = np.flatnonzero((self.sets == np.sort(index)).all(1))
            return np.asarray(self.listed[:, number][:, np.argsort(np.argsort(index))])
        strength = self.strength[:, index]
        if self.rule == "fixed":
            return strength
        return np.asarray(self.scale[index] * strength / strength.sum(-1, keepdims=True))


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


@dataclass
class _Block:
    """What the block of one router was given, and gave, in the forward.

    Attributes:
        module: The innermost module around the router that was called.
        mixture: Beside the router, the module that was handed its weights; None if there is none.
        delta: Zeros added to the output of the mixture, or else of the block, whose gradient is wanted. Shape: that of
            the output.
        chosen: Shape: [B * T, k].
        weights: With which they entered, by the part of what the router returned in which they may stand. Shapes:
            [B * T, k].
        tables: These parts.
    """

    module: nn.Module | None = None
    mixture: nn.Module | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    delta: Tensor | None = None
    chosen: Tensor | None = None
    weights: dict[int, Tensor] = field(default_factory=dict)
    tables: list[Tensor] = field(default_factory=list)
    layout: Layout | None = None


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
        self._replay = replay
        self._model, self._controller = model, controller
        self._forward, self._pad, self._rows_that_fit = forward, pad, rows_that_fit
        self._cost, self._name, self._opening = cost, info.name, info.opening
        self._layers = int(model.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr, operator]
        self.forwards = 3 + forwards_of_all_experts(model, controller.routers)
        self._covers = [cover(router) for router in controller.routers]
        self._parts: dict[int, int] = {}  # of a layer, which part of what its router returns are the weights
        self._rules: dict[int, tuple[Rule, np.ndarray]] = {}  # of a layer, with the scale of each expert
        self._points: dict[int, Sequence[tuple[float, float]]] = {}  # of a layer, parts of its weights, with shares

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
            BadLogits: The model returned NaN or infinite logits.
            ModelError: It passes no gradient to the weights of its experts, or weighs them in an unknown way.
        """
        started = time.perf_counter()
        with weights_held(self._model), self._controller.attached():
            self._controller.set(list(routing), prompt_lengths=[len(p) for p in prompts])
            replay = self._replay if by_layer else None
            blocks, totals, tokens = self._backward(prompts, targets, replay)
            free = [_without_sets(each) for each in routing]
            places = [
                slice(tokens - len(p) - len(t) + 1, tokens - len(t) + 1) for p, t in zip(prompts, targets, strict=True)
            ]
            layers = [self._layer(router, block, free, places) for router, block in blocks]
        rows = len(prompts) * tokens
        forwards = self.forwards + (1 if replay is not None else 0)
        self._cost.forwards += 1
        self._cost.tokens += rows
        self._cost.token_layers += round(forwards * rows * self._layers)
        self._cost.seconds += time.perf_counter() - started
        return [
            RouteGradient(total, tuple(layer[row] for layer in layers), forwards) for row, total in enumerate(totals)
        ]

    # -- the pass backwards ------------------------------------------------------------------------------------

    def _backward(
        self, prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], replay: Replay | None
    ) -> tuple[list[tuple[Router, _Block]], list[float], int]:
        """One forward and backward: what every block was given, and the gradient of its output as `delta`."""
        most = max(map(len, targets))
        ids, mask = self._pad([p.ids + t[:-1] for p, t in zip(prompts, targets, strict=True)])
        wanted = torch.full((len(prompts), most), -1, dtype=torch.long)
        for row, target in enumerate(targets):
            skip = given(target, self._opening)
            wanted[row, most - len(target) + skip :] = torch.tensor(target[skip:])

        def forward(keep: int = most) -> Tensor:
            return self._forward(ids, mask, keep)  # shape: [B, keep, V]

        if replay is not None:
            blocks, totals = self._layer_by_layer(forward, wanted, replay)
        else:
            with self._watched() as watched, _gradients_kept():
                totals = self._totals(forward(), wanted)
            blocks = [(router, watched[router.layer]) for router in self._controller.routers]
            self._descend(totals.sum(), blocks)
        return blocks, totals.detach().double().tolist(), ids.shape[1]

    def _totals(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """log p(target) of each row. Shapes: [B, A, V], [B, A] with -1 where nothing is wanted -> [B]."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        log_p, wanted = torch.log_softmax(wide, -1), wanted.to(logits.device)
        picked = log_p.gather(-1, wanted.clamp(min=0)[..., None])[..., 0].masked_fill(wanted < 0, 0.0)
        totals = picked.sum(-1)
        if not bool(torch.isfinite(totals.detach()).all()):
            raise BadLogits(f"{self._name} returned NaN or infinite logits", "Try another dtype, such as bfloat16")
        return totals

    def _descend(
        self,
        of: Tensor,
        blocks: Sequence[tuple[Router, _Block]],
        to: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> Tensor | None:
        """Replace the zeros that were added to the blocks by their gradient.

        Args:
            of: What is differentiated.
            to: Another tensor whose gradient is wanted.
            gradient: Of `of`, unless it is one number.

        Returns:
            That of `to`.
        """
        deltas = [block.delta for _, block in blocks if block.delta is not None]
        if not of.requires_grad or len(deltas) < len(blocks):
            raise _no_gradient(self._name)
        inputs = deltas if to is None else [*deltas, to]
        try:
            found = torch.autograd.grad(of, inputs, gradient, allow_unused=True)
        except RuntimeError as error:
            raise _no_gradient(self._name, error) from error
        each = [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]
        for (_, block), slope in zip(blocks, each, strict=False):
            block.delta = slope
        return None if to is None else each[-1]

    def _layer_by_layer(
        self, forward: Callable[[int], Tensor], wanted: Tensor, replay: Replay
    ) -> tuple[list[tuple[Router, _Block]], Tensor]:
        """The pass backwards, with what it needs of one decoder layer at a time: every layer computes once more."""
        controller, blocks, keep = self._controller, dict[int, _Block](), wanted.shape[1]

        def only(begin: int, end: int, entering: Tensor | None) -> Tensor:
            controller.first_layer, controller.last_layer = begin, end - 1
            with _gradients_kept():
                replay.between(begin, end, None if entering is None else entering.clone())  # layers may write on it
                return forward(keep if begin == end else 1)

        try:
            with replay.attached():
                replay.between(0, replay.count)
                with torch.no_grad():
                    forward(1)
                streams = [None if each is None else each.detach() for each in replay.outputs]  # after every layer
                entering = streams[-1]
                if entering is None:
                    raise _no_gradient(self._name)
                entering.requires_grad_(True)
                totals = self._totals(only(replay.count, replay.count, entering), wanted)
                gradient = self._descend(totals.sum(), [], entering)
                for layer in reversed(range(controller.routers[0].decoder_layer, replay.count)):
                    entering = streams[layer - 1] if layer else None
                    if entering is not None:
                        entering.requires_grad_(True)
                    with self._watched() as watched:
                        only(layer, layer + 1, entering)
                    here = [(r, watched[r.layer]) for r in controller.routers if r.decoder_layer == layer]
                    output, streams[layer] = replay.outputs[layer], None
                    if output is None:
                        raise _no_gradient(self._name)
                    gradient = self._descend(output, here, entering, gradient)
                    blocks |= {router.layer: block for router, block in here}
        finally:
            controller.first_layer, controller.last_layer = 0, None
        return [(router, blocks[router.layer]) for router in controller.routers], totals

    @contextmanager
    def _watched(self) -> Iterator[dict[int, _Block]]:
        """Keep what every block is given, and add zeros with a gradient to what it, or its mixture, gives."""
        blocks = {router.layer: _Block() for router in self._controller.routers}
        hooks: list[RemovableHandle] = []

        def add_zeros(block: _Block, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple | list) else output
            if not isinstance(first, Tensor):
                return None
            block.delta = torch.zeros_like(first, requires_grad=True)
            moved = first + block.delta
            return type(output)([moved, *output[1:]]) if isinstance(output, tuple | list) else moved

        def beside(block: _Block, module: nn.Module) -> RemovableHandle:
            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                if block.mixture is not None or not _handed(block.tables, (*args, *kwargs.values())):
                    return None
                if not isinstance(output, Tensor) or block.chosen is None or _rows(output) != len(block.chosen):
                    return None
                block.mixture = module
                return add_zeros(block, output)

            return module.register_forward_hook(keep, with_kwargs=True)

        def around(block: _Block, module: nn.Module) -> RemovableHandle:
            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                if block.module is not None or block.chosen is None:
                    return None  # a module further out, or one whose router did not run
                block.module, block.layout = module, self._controller.layout
                block.args, block.kwargs = tuple(map(_detached, args)), {k: _detached(v) for k, v in kwargs.items()}
                return None if block.mixture is not None else add_zeros(block, output)

            return module.register_forward_hook(keep, with_kwargs=True)

        def note(router: Router, output: Any, chosen: Tensor, logits: Tensor) -> Any:
            block = blocks[router.layer]
            block.chosen = chosen.detach()
            parts = list(output) if isinstance(output, tuple | list) else [output]
            for places in weights_among(parts, router, chosen):
                table = parts[places.part].detach()
                block.weights[places.part] = table.reshape(-1)[places.column]
                block.tables.append(table)
            return output

        for router in self._controller.routers:
            path, _, own = router.path.rpartition(".")
            siblings = dict(self._model.get_submodule(path).named_children())
            hooks += [beside(blocks[router.layer], module) for name, module in siblings.items() if name != own]
            while path:
                hooks.append(around(blocks[router.layer], self._model.get_submodule(path)))
                path = path.rpartition(".")[0]
        self._controller.reweigh = note
        try:
            yield blocks
        finally:
            self._controller.reweigh = None
            for hook in hooks:
                hook.remove()

    # -- one layer ---------------------------------------------------------------------------------------------

    def _layer(
        self, router: Router, block: _Block, free: Sequence[Intervention], places: Sequence[slice]
    ) -> list[LayerGradient]:
        """All experts of one layer at all tokens."""
        gradient, chosen = block.delta, block.chosen
        if gradient is None or chosen is None:
            raise _no_gradient(self._name)
        scores = np.zeros((len(chosen), router.experts))
        entered, logits = np.zeros_like(scores), np.zeros_like(scores)
        covers = self._covers[router.layer]
        together = self._sets_together(block, len(free))
        for start in range(0, len(covers), together):
            sets = covers[start : start + together]
            found, weights, seen = self._slopes(router, block, free, sets, gradient)
            for n, experts in enumerate(sets):
                scores[:, experts], entered[:, experts] = found[n], weights[n]
            logits = seen[0]
        weighing = self._weighing(router, block, free, entered, logits)
        weighed = block.weights[self._parts[router.layer]].double().cpu().numpy()
        rows = len(free)
        return [
            LayerGradient(
                scores.reshape(rows, -1, router.experts)[row][at],
                chosen.cpu().numpy().reshape(rows, -1, router.top_k)[row][at],
                weighed.reshape(rows, -1, router.top_k)[row][at],
                _at(weighing, rows, row, at),
            )
            for row, at in enumerate(places)
        ]

    def _sets_together(self, block: _Block, rows: int) -> int:
        """How many sets may be tried side by side: one where a block is given more than what it computes on."""
        given_ = [value for value in (*block.args, *block.kwargs.values()) if value is not None]
        tensors = [value for value in given_ if isinstance(value, Tensor)]
        others = [value for value in given_ if not isinstance(value, Tensor | bool | int | float | str)]
        if len(tensors) != 1 or others or block.layout is None:
            return 1
        return max(1, self._rows_that_fit(block.layout.position.shape[1]) // rows)

    def _slopes(
        self,
        router: Router,
        block: _Block,
        free: Sequence[Intervention],
        sets: Sequence[Sequence[int]],
        gradient: Tensor,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_derivatives`, with their mean between no weight and the whole where they depend on the weights."""
        whole = self._derivatives(router, block, free, sets, gradient)
        if router.layer not in self._points:
            half, _, _ = self._derivatives(router, block, free, sets, gradient, 0.5)
            linear = np.abs(half - whole[0]).max() <= _CURVED * np.abs(whole[0]).max()
            self._points[router.layer] = () if linear else _GAUSS
        points = self._points[router.layer]
        if not points:
            return whole
        each = [share * self._derivatives(router, block, free, sets, gradient, part)[0] for part, share in points]
        return np.asarray(sum(each)), whole[1], whole[2]

    def _derivatives(
        self,
        router: Router,
        block: _Block,
        free: Sequence[Intervention],
        sets: Sequence[Sequence[int]],
        gradient: Tensor,
        part: float = 1.0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run a block again with sets forced at every token, side by side.

        Args:
            gradient: Of what the mixture, or else the block, gave.
            part: Of its weight, with which every expert enters.

        Returns:
            Derivatives with respect to the weights of the experts of each set, ascending, the weights, and the logits
            of all experts. Shapes: [sets, B * T, k], [sets, B * T, k], [sets, B * T, E].
        """
        leaves: list[Tensor] = []
        seen: dict[str, Any] = {}

        def lift(router: Router, output: Any, chosen: Tensor, logits: Tensor) -> Any:
            parts = list(output) if isinstance(output, tuple | list) else [output]
            seen["places"], seen["chosen"], seen["logits"] = weights_among(parts, router, chosen), chosen, logits
            for places in seen["places"]:
                leaf = (part * parts[places.part].detach()).requires_grad_(True)
                leaves.append(leaf)
                parts[places.part] = leaf
            if isinstance(output, tuple):
                return tuple(parts)
            return parts if isinstance(output, list) else parts[0]

        with self._again(router, block, free, sets, lift) as (args, kwargs), _gradients_kept():
            try:
                first = _output(block, args, kwargs)
                if not leaves:
                    raise _no_weights(self._name, router)
                if not first.requires_grad:
                    raise _no_gradient(self._name)
                wanted = torch.cat([gradient.to(first)] * len(sets))
                found = torch.autograd.grad(first, leaves, wanted, allow_unused=True)
            except RuntimeError as error:
                raise _no_gradient(self._name, error) from error
        used = [n for n, each in enumerate(found) if each is not None]
        if len(used) != 1:
            raise _no_weights(self._name, router)
        (n,) = used
        places, order = seen["places"][n], _ascending(router, seen["chosen"], sets)
        self._parts[router.layer] = places.part

        def read(table: Tensor) -> np.ndarray:
            picked = table.detach().reshape(-1)[places.column].gather(1, order)
            return np.asarray(picked.double().cpu().numpy().reshape(len(sets), -1, router.top_k))

        logits = seen["logits"].detach().double().cpu().numpy().reshape(len(sets), -1, router.experts)
        return read(found[n]), read(leaves[n]) / part, logits

    @contextmanager
    def _again(
        self,
        router: Router,
        block: _Block,
        free: Sequence[Intervention],
        sets: Sequence[Sequence[int]],
        reweigh: Reweigh,
    ) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What a block is to be given, so that its rows run once for each of these sets, forced at every token."""
        if block.layout is None or block.module is None:
            raise _no_gradient(self._name)
        times, rows = len(sets), len(free)

        def repeated(value: Any) -> Any:
            return torch.cat([value] * times) if isinstance(value, Tensor) and times > 1 else value

        experts = torch.tensor(sets).repeat_interleave(rows, 0)  # shape: [sets * B, k]
        forced = Forced(router.layer, None, experts)
        self._controller.reweigh = reweigh
        try:
            with self._controller.again(block.layout.times(times), list(free) * times, forced):
                yield tuple(map(repeated, block.args)), {k: repeated(v) for k, v in block.kwargs.items()}
        finally:
            self._controller.reweigh = None

    # -- how it weighs -----------------------------------------------------------------------------------------

    def _weighing(
        self,
        router: Router,
        block: _Block,
        free: Sequence[Intervention],
        entered: np.ndarray,
        logits: np.ndarray,
    ) -> Weighing:
        """The rule by which a router weighs forced sets, found once for every layer.

        Args:
            entered: The weight of each expert within its set of the cover. Shape: [B * T, E].
            logits: Shape: [B * T, E].
        """
        if router.layer not in self._rules:
            self._rules[router.layer] = self._find_rule(router, block, free, entered, logits)
        rule, scale = self._rules[router.layer]
        if rule == "fixed":
            return Weighing(rule, entered, scale)
        if rule == "listed":
            sets = every_set(router)
            listed = self._weights_of(router, block, free, sets.tolist()).transpose(1, 0, 2)
            return Weighing(rule, np.zeros((len(logits), 0)), np.zeros(0), sets, listed)
        return Weighing(rule, _STRENGTHS[rule](logits), scale)

    def _find_rule(
        self,
        router: Router,
        block: _Block,
        free: Sequence[Intervention],
        entered: np.ndarray,
        logits: np.ndarray,
    ) -> tuple[Rule, np.ndarray]:
        draw = router.draw(np.random.default_rng(3), _OTHER_SETS)
        if block.layout is None:
            raise _no_gradient(self._name)
        real = np.flatnonzero((block.layout.position >= 0).reshape(-1).cpu().numpy())  # shape: [real tokens]
        weights = self._weights_of(router, block, free, draw.tolist())[:, real]
        tried = list(zip(draw.tolist(), weights, strict=True))
        entered, logits = entered[real], logits[real]
        tolerance = _TOLERANCE.get(block.delta.dtype if block.delta is not None else torch.float32, 4e-2)
        ones = np.ones(router.experts)

        def off(rule: Rule, strength: np.ndarray, scale: np.ndarray) -> float:
            weighing = Weighing(rule, strength, scale)
            errors = [
                float((np.abs(weighing.of(experts) - seen).max(-1) / np.maximum(np.abs(seen).max(-1), 1e-30)).max())
                for experts, seen in tried
            ]
            return max(errors)

        found: list[tuple[float, Rule, np.ndarray]] = [(off("fixed", entered, ones), "fixed", ones)]
        for rule in _SHARED_RULES:
            strength, scale = _STRENGTHS[rule](logits), np.zeros(router.experts)
            for experts in self._covers[router.layer]:
                share = strength[:, experts] / strength[:, experts].sum(-1, keepdims=True)
                scale[experts] = np.median(entered[:, experts] / np.maximum(share, 1e-30), 0)
            scale = np.array([float(f"{value:.4g}") for value in scale])  # the same whatever prompts it is found on
            found.append((off(rule, strength, scale), rule, scale))
        error, rule, scale = min(found, key=lambda each: each[0])
        if error <= tolerance:
            return rule, scale
        if router.possible_sets <= _FEW_SETS:
            return "listed", np.zeros(0)
        raise ModelError(
            f"{self._name} cannot be searched by its gradient: router {router.path} weighs experts by a rule that "
            f"Pointsman does not know (off by {100 * error:.1g} %)",
            "Search its routes with F-SOUR (--attack fsour)",
        )

    def _weights_of(
        self, router: Router, block: _Block, free: Sequence[Intervention], sets: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """The weights that a router gives to forced sets, ascending experts. Shape: [sets, B * T, k]."""
        found: list[np.ndarray] = []

        def read(router: Router, output: Any, chosen: Tensor, logits: Tensor) -> Any:
            parts = list(output) if isinstance(output, tuple | list) else [output]
            (places,) = [p for p in weights_among(parts, router, chosen) if p.part == self._parts[router.layer]]
            picked = parts[places.part].detach().reshape(-1)[places.column].gather(1, _ascending(router, chosen, tried))
            found.append(picked.double().cpu().numpy().reshape(len(tried), -1, router.top_k))
            raise _Enough

        together = self._sets_together(block, len(free))
        for start in range(0, len(sets), together):
            tried = sets[start : start + together]
            with self._again(router, block, free, tried, read) as (args, kwargs), torch.no_grad(), suppress(_Enough):
                _output(block, args, kwargs)
        return np.concatenate(found)


def _ascending(router: Router, chosen: Tensor, sets: Sequence[Sequence[int]]) -> Tensor:
    """The order of the chosen experts of every token, which must be the forced ones. Shape: [tokens, k]."""
    order = chosen.argsort(-1)
    wanted = torch.tensor(sets, device=chosen.device).repeat_interleave(len(chosen) // len(sets), 0)
    if not torch.equal(chosen.gather(1, order), wanted.sort(-1)[0]):
        raise ControlFailed(
            f"Router {router.path} did not use the experts that were forced",
            "Please report this architecture",
        )
    return order


def forwards_of_all_experts(model: nn.Module, routers: Sequence[Router]) -> float:
    """How many forwards the pass through all experts costs, by the weights that a token meets in either.

    Every block runs E / k times, whatever it holds beside its experts included.
    """
    total = float(sum(p.numel() for p in model.parameters()))
    total -= model.get_input_embeddings().weight.numel()  # type: ignore[operator]
    again = 0.0
    for router in routers:
        block = model.get_submodule(router.path.rpartition(".")[0])
        experts = _expert_weights(block, model.get_submodule(router.path), router.experts)
        idle = experts * (1 - router.top_k / router.experts)
        total -= idle
        again += (sum(p.numel() for p in block.parameters()) - idle) * router.experts / router.top_k
    return float(again / total)


def _expert_weights(block: nn.Module, router: nn.Module, experts: int) -> int:
    """How many weights the experts of a block have together."""
    lists = [m for m in block.modules() if isinstance(m, nn.ModuleList) and len(m) == experts]
    if lists:
        return sum(p.numel() for each in lists for p in each.parameters())
    own = {id(p) for p in router.parameters()}
    return sum(p.numel() for p in block.parameters() if p.dim() > 1 and len(p) == experts and id(p) not in own)


class _Overruled(TorchFunctionMode):
    """Within it, nobody switches gradients off: code that serves answers does, such as deepseek-moe-16b's own."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        return func(*args, **(kwargs or {}))


@contextmanager
def _gradients_kept() -> Iterator[None]:
    with torch.enable_grad(), _Overruled():
        yield


class _Enough(Exception):
    """A router has answered, and the rest of its block is not wanted."""


def cover(router: Router) -> list[list[int]]:
    """Sets that the architecture can select and that hold every expert between them, nearly as few as possible."""
    size, left, found = router.experts // router.groups, list(range(router.experts)), []
    while left:
        groups: list[int] = []
        chosen: list[int] = []
        for expert in (*left, *range(router.experts)):
            group = expert // size
            if expert in chosen or (group not in groups and len(groups) == router.groups_used):
                continue
            if group not in groups:
                groups.append(group)
            chosen.append(expert)
            if len(chosen) == router.top_k:
                break
        found.append(sorted(chosen))
        left = [expert for expert in left if expert not in chosen]
    return found


def every_set(router: Router) -> np.ndarray:
    """All sets that the architecture can select, in order. Shape: [N, k], int64."""
    sets = [each for each in combinations(range(router.experts), router.top_k) if router.selectable(each)]
    return np.array(sets, dtype=np.int64).reshape(-1, router.top_k)


def _exp(logits: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(logits - logits.max(-1, keepdims=True)))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


_SHARED_RULES: tuple[Rule, ...] = ("softmax", "sigmoid")
_STRENGTHS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"softmax": _exp, "sigmoid": _sigmoid}


def _at(weighing: Weighing, rows: int, row: int, at: slice) -> Weighing:
    """At the tokens of one prompt."""

    def part(table: np.ndarray) -> np.ndarray:
        return np.asarray(table.reshape(rows, -1, *table.shape[1:])[row][at])

    if weighing.rule == "listed":
        return Weighing("listed", weighing.strength, weighing.scale, weighing.sets, part(weighing.listed))
    return Weighing(weighing.rule, part(weighing.strength), weighing.scale)


def _without_sets(routing: Intervention | None) -> Intervention:
    """What is no choice of experts in a routing: where other sets are tried, it stays."""
    if routing is None:
        return Intervention()
    return Intervention(tuple(rule for rule in routing.rules if rule.kind not in ("mask", "force")))


def _output(block: _Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What its mixture, or else the block, gives."""
    if block.module is None:
        raise ValueError("A block that has not run")
    given_: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        given_.append(output)
        raise _Enough

    hook = block.mixture.register_forward_hook(keep) if block.mixture is not None else None
    try:
        output = block.module.forward(*args, **kwargs)
    except _Enough:
        if not given_:  # it is the router that has answered
            raise
        return given_[0]
    finally:
        if hook is not None:
            hook.remove()
    first: Tensor = output[0] if isinstance(output, tuple | list) else output
    return first


def _handed(tables: Sequence[Tensor], given_: Sequence[Any]) -> bool:
    """Whether one of these tables of weights is among what a module was given, in whatever shape and dtype."""
    for value in given_:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        for table in tables:
            if table.numel() == value.numel() and torch.equal(table.to(value).reshape(-1), value.reshape(-1)):
                return True
    return False


def _rows(output: Tensor) -> int:
    return output.numel() // max(output.shape[-1], 1) if output.dim() > 1 else 0


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _no_gradient(name: str, error: Exception | None = None) -> ModelError:
    """What to raise; memory that runs out is no lack of a gradient, and goes on as it is."""
    if error is not None and is_out_of_memory(error):
        raise error
    why = f" ({' '.join(str(error).split())[:160]})" if error is not None else ""
    return ModelError(
        f"{name} passes no gradient from what it says to its experts{why}",
        "Search its routes with F-SOUR (--attack fsour), or load it unquantised",
    )


def _no_weights(name: str, router: Router) -> ModelError:
    return ModelError(
        f"{name} cannot be searched by its gradient: it cannot be seen with which weights router {router.path} lets "
        "its experts enter",
        "Search its routes with F-SOUR (--attack fsour)",
    )
