"""How much every expert would raise log p(target), to first order: one backward pass. METHODS section 9.

Two things are needed, and both are measured on the model instead of looked up for its architecture:

- s[l, t, e], the derivative of log p(target) with respect to the weight with which expert e enters at layer l and
  token t. One forward and backward gives g, the gradient with respect to the output of every MoE block. Then each
  block runs again on what it was given, with sets forced that cover all its experts; the derivative of g . output with
  respect to the weights that its router returns is s.
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
from torch.utils.hooks import RemovableHandle

from pointsman.engine.channels import given
from pointsman.engine.learning import weights_held
from pointsman.engine.types import Cost, Prompt
from pointsman.errors import BadLogits, ModelError
from pointsman.routing.controller import Controller
from pointsman.routing.intervention import Intervention
from pointsman.routing.layout import Layout
from pointsman.routing.routers import Router
from pointsman.routing.tap import weights_among

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Within which a rule must foretell a router's weights, relative to the largest of the set."""

_OTHER_SETS = 4  # random ones, on which a rule is tried
_FEW_SETS = 512  # of so many, a router whose weights follow no known rule is asked for each

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
        scores: Derivative of log p(target) with respect to the weight of each expert, in nats. Shape: [T, E].
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
    """

    log_prob: float
    layers: tuple[LayerGradient, ...]


@dataclass
class _Block:
    """What the block of one router was given, and gave, in the forward.

    Attributes:
        delta: Zeros added to its output, whose gradient is wanted. Shape: that of the output.
        chosen: Shape: [B * T, k].
        weights: With which they entered, by the part of what the router returned in which they may stand. Shapes:
            [B * T, k].
    """

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    delta: Tensor | None = None
    chosen: Tensor | None = None
    weights: dict[int, Tensor] = field(default_factory=dict)
    layout: Layout | None = None


class Guide:
    """Route gradients of one model. Attach its controller around every use.

    Args:
        model: With weights that hold no gradients (`weights_held`).
        controller: Of its routers.
        forward: Logits at the last positions of padded rows. Shape: [B, keep, V].
        pad: Ids and mask of rows, padded on the left. Shapes: [B, T].
        cost: Where forwards are counted.
        layers: Decoder layers.
        name: Of the model, for errors.
        opening: Of answers: not scored.
    """

    def __init__(
        self,
        model: nn.Module,
        controller: Controller,
        forward: Callable[[Tensor, Tensor, int], Tensor],
        pad: Callable[[Sequence[tuple[int, ...]]], tuple[Tensor, Tensor]],
        *,
        cost: Cost,
        layers: int,
        name: str,
        opening: Sequence[int] = (),
    ) -> None:
        self._model, self._controller = model, controller
        self._forward, self._pad = forward, pad
        self._cost, self._layers, self._name, self._opening = cost, layers, name, opening
        self._covers = [cover(router) for router in controller.routers]
        self._parts: dict[int, int] = {}  # of a layer, which part of what its router returns are the weights
        self._rules: dict[int, tuple[Rule, np.ndarray]] = {}  # of a layer, with the scale of each expert

    def gradients(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        routing: Sequence[Intervention | None],
    ) -> list[RouteGradient]:
        """Of rows that one forward with its backward may hold.

        Raises:
            BadLogits: The model returned NaN or infinite logits.
            ModelError: It passes no gradient to the weights of its experts, or weighs them in an unknown way.
        """
        started = time.perf_counter()
        with weights_held(self._model), self._controller.attached():
            self._controller.set(list(routing), prompt_lengths=[len(p) for p in prompts])
            blocks, totals, tokens = self._backward(prompts, targets)
            free = [_without_sets(each) for each in routing]
            places = [
                slice(tokens - len(p) - len(t) + 1, tokens - len(t) + 1) for p, t in zip(prompts, targets, strict=True)
            ]
            layers = [self._layer(router, block, free, len(prompts), places) for router, block in blocks]
        rows = len(prompts) * tokens
        passes = gradient_forwards(self._controller.routers)
        self._cost.forwards += 1
        self._cost.tokens += rows
        self._cost.token_layers += round(passes * rows * self._layers)
        self._cost.seconds += time.perf_counter() - started
        return [RouteGradient(total, tuple(layer[row] for layer in layers)) for row, total in enumerate(totals)]

    # -- the pass backwards ------------------------------------------------------------------------------------

    def _backward(
        self, prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]]
    ) -> tuple[list[tuple[Router, _Block]], list[float], int]:
        """One forward and backward: what every block was given, and the gradient of its output, as `delta.grad`."""
        most = max(map(len, targets))
        ids, mask = self._pad([p.ids + t[:-1] for p, t in zip(prompts, targets, strict=True)])
        wanted = torch.full((len(prompts), most), -1, dtype=torch.long)
        for row, target in enumerate(targets):
            skip = given(target, self._opening)
            wanted[row, most - len(target) + skip :] = torch.tensor(target[skip:])
        with self._watched() as blocks, torch.enable_grad():
            logits = self._forward(ids, mask, most)  # shape: [B, most, V]
            wide = logits if logits.dtype == torch.float64 else logits.float()
            log_p = torch.log_softmax(wide, -1)
            wanted = wanted.to(log_p.device)
            picked = log_p.gather(-1, wanted.clamp(min=0)[..., None])[..., 0].masked_fill(wanted < 0, 0.0)
            totals = picked.sum(-1)  # shape: [B]
        if not bool(torch.isfinite(totals.detach()).all()):
            raise BadLogits(f"{self._name} returned NaN or infinite logits", "Try another dtype, such as bfloat16")
        reached = [(r, blocks[r.layer]) for r in self._controller.routers]
        deltas = [block.delta for _, block in reached if block.delta is not None]
        if not totals.requires_grad or len(deltas) < len(reached):
            raise _no_gradient(self._name)
        try:
            found = torch.autograd.grad(totals.sum(), deltas, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            raise _no_gradient(self._name, error) from error
        for (_, block), delta, gradient in zip(reached, deltas, found, strict=True):
            block.delta = torch.zeros_like(delta) if gradient is None else gradient
        return reached, totals.detach().double().tolist(), ids.shape[1]

    @contextmanager
    def _watched(self) -> Iterator[dict[int, _Block]]:
        """Keep what the innermost module around every router is given, and add zeros with a gradient to its output."""
        blocks: dict[int, _Block] = {}
        hooks: list[RemovableHandle] = []

        def watch(router: Router, module: nn.Module) -> RemovableHandle:
            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                block = blocks.setdefault(router.layer, _Block(module))
                if block.delta is not None:
                    return None  # a module further out
                block.module, block.layout = module, self._controller.layout
                block.args, block.kwargs = tuple(map(_detached, args)), {k: _detached(v) for k, v in kwargs.items()}
                first = output[0] if isinstance(output, tuple | list) else output
                if not isinstance(first, Tensor):
                    return None
                block.delta = torch.zeros_like(first, requires_grad=True)
                moved = first + block.delta
                return type(output)([moved, *output[1:]]) if isinstance(output, tuple | list) else moved

            return module.register_forward_hook(keep, with_kwargs=True)

        def note(router: Router, output: Any, chosen: Tensor, logits: Tensor) -> Any:
            block = blocks.setdefault(router.layer, _Block(nn.Module()))
            block.chosen = chosen.detach()
            parts = list(output) if isinstance(output, tuple | list) else [output]
            for places in weights_among(parts, router, chosen):
                block.weights[places.part] = parts[places.part].detach().reshape(-1)[places.column]
            return output

        for router in self._controller.routers:
            path = router.path.rpartition(".")[0]
            while path:
                hooks.append(watch(router, self._model.get_submodule(path)))
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
        self, router: Router, block: _Block, free: Sequence[Intervention], rows: int, places: Sequence[slice]
    ) -> list[LayerGradient]:
        """All experts of one layer at all tokens."""
        gradient, layout, chosen = block.delta, block.layout, block.chosen
        if gradient is None or layout is None or chosen is None:
            raise _no_gradient(self._name)
        scores = torch.zeros(len(chosen), router.experts, dtype=torch.float64)
        entered = torch.zeros_like(scores)
        logits = torch.zeros_like(scores)
        with self._controller.again(layout):
            for experts in self._covers[router.layer]:
                found, weights, logits = self._derivatives(router, block, free, experts, gradient)
                scores[:, experts], entered[:, experts] = found, weights
            weighing = self._weighing(router, block, free, entered.numpy(), logits.numpy())
        shape = (rows, -1)
        each = scores.numpy().reshape(*shape, router.experts)
        taken = chosen.cpu().numpy().reshape(*shape, router.top_k)
        weighed = self._entered(block, router).reshape(*shape, router.top_k)
        return [
            LayerGradient(each[row][at], taken[row][at], weighed[row][at], _at(weighing, rows, row, at))
            for row, at in enumerate(places)
        ]

    def _entered(self, block: _Block, router: Router) -> np.ndarray:
        """The weights with which the chosen experts entered. Shape: [B * T, k]."""
        return np.asarray(block.weights[self._parts[router.layer]].double().cpu().numpy())

    def _derivatives(
        self, router: Router, block: _Block, free: Sequence[Intervention], experts: list[int], gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a block again with one set forced at every token.

        Returns:
            Derivatives with respect to the weights of these experts, the weights, and the logits of all experts.
            Shapes: [B * T, k], [B * T, k], [B * T, E]; float64 on the host.
        """
        leaves: list[Tensor] = []
        seen: dict[str, Any] = {}

        def lift(router: Router, output: Any, chosen: Tensor, logits: Tensor) -> Any:
            parts = list(output) if isinstance(output, tuple | list) else [output]
            seen["places"] = weights_among(parts, router, chosen)
            seen["chosen"], seen["logits"] = chosen, logits.detach().double().cpu()
            for places in seen["places"]:
                leaf = parts[places.part].detach().clone().requires_grad_(True)
                leaves.append(leaf)
                parts[places.part] = leaf
            if isinstance(output, tuple):
                return tuple(parts)
            return parts if isinstance(output, list) else parts[0]

        self._controller.reweigh = lift
        try:
            with self._forcing(router, free, experts), torch.enable_grad():
                output = block.module.forward(*block.args, **block.kwargs)
            first = output[0] if isinstance(output, tuple | list) else output
            if not leaves or not first.requires_grad:
                raise _no_weights(self._name, router)
            found = torch.autograd.grad(first, leaves, gradient.to(first), allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            raise _no_gradient(self._name, error) from error
        finally:
            self._controller.reweigh = None
        used = [n for n, each in enumerate(found) if each is not None]
        if len(used) != 1:
            raise _no_weights(self._name, router)
        (n,) = used
        places, derivative = seen["places"][n], found[n]
        self._parts[router.layer] = places.part
        order = seen["chosen"].argsort(-1)  # ascending experts, as in `experts`

        def read(table: Tensor) -> Tensor:
            picked = table.detach().reshape(-1)[places.column.to(table.device)]
            return picked.gather(1, order.to(picked.device)).double().cpu()

        return read(derivative), read(leaves[n]), seen["logits"]

    @contextmanager
    def _forcing(self, router: Router, free: Sequence[Intervention], experts: Sequence[int]) -> Iterator[None]:
        """This set at every token of one router, over what is not a set of each row's routing."""
        forced = Intervention.force({router.layer: list(experts)})
        routing = [each + forced for each in free] if any(free) else forced
        with self._controller.instead(routing, router):
            yield

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
            listed = np.stack([self._weights_of(router, block, free, each.tolist()) for each in sets], 1)
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
        tried = {tuple(each.tolist()): self._weights_of(router, block, free, each.tolist())[real] for each in draw}
        entered, logits = entered[real], logits[real]
        tolerance = _TOLERANCE.get(block.delta.dtype if block.delta is not None else torch.float32, 4e-2)
        ones = np.ones(router.experts)

        def off(rule: Rule, strength: np.ndarray, scale: np.ndarray) -> float:
            weighing = Weighing(rule, strength, scale)
            errors = [
                float((np.abs(weighing.of(experts) - seen).max(-1) / np.maximum(np.abs(seen).max(-1), 1e-30)).max())
                for experts, seen in tried.items()
            ]
            return max(errors)

        found: list[tuple[float, Rule, np.ndarray]] = [(off("fixed", entered, ones), "fixed", ones)]
        for rule in _SHARED_RULES:
            strength, scale = _STRENGTHS[rule](logits), np.zeros(router.experts)
            for experts in self._covers[router.layer]:
                share = strength[:, experts] / strength[:, experts].sum(-1, keepdims=True)
                scale[experts] = np.median(entered[:, experts] / np.maximum(share, 1e-30), 0)
            found.append((off(rule, strength, scale), rule, scale))
        error, rule, scale = min(found, key=lambda each: each[0])
        if error <= tolerance:
            return rule, scale
        if router.possible_sets <= _FEW_SETS:
            return "listed", np.zeros(0)
        raise ModelError(
            f"{self._name} cannot be searched by its gradient: router {router.path} weighs experts by a rule that "
            f"Pointsman does not know (off by {100 * error:.1g} %)",
            "Search its routes with F-SOUR (--attacks fsour)",
        )

    def _weights_of(
        self, router: Router, block: _Block, free: Sequence[Intervention], experts: Sequence[int]
    ) -> np.ndarray:
        """The weights that a router gives to a forced set, in the order of the experts. Shape: [B * T, k]."""
        seen: list[Tensor] = []

        def read(router: Router, output: Any, chosen: Tensor, logits: Tensor) -> Any:
            parts = list(output) if isinstance(output, tuple | list) else [output]
            for places in weights_among(parts, router, chosen):
                if places.part == self._parts[router.layer]:
                    picked = parts[places.part].detach().reshape(-1)[places.column]
                    seen.append(picked.gather(1, chosen.argsort(-1)))
            raise _Enough

        self._controller.reweigh = read
        try:
            with self._forcing(router, free, sorted(experts)), torch.no_grad(), suppress(_Enough):
                block.module.forward(*block.args, **block.kwargs)
        finally:
            self._controller.reweigh = None
        return np.asarray(seen[-1].double().cpu().numpy())


def gradient_forwards(routers: Sequence[Router]) -> float:
    """What a route gradient costs, in forwards: one, its backward (two), and all experts of every layer once."""
    return 3 + sum(router.experts / router.top_k for router in routers) / len(routers)


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


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _no_gradient(name: str, error: Exception | None = None) -> ModelError:
    why = f" ({' '.join(str(error).split())[:160]})" if error is not None else ""
    return ModelError(
        f"{name} passes no gradient from what it says to its experts{why}",
        "Search its routes with F-SOUR (--attacks fsour), or load it unquantised",
    )


def _no_weights(name: str, router: Router) -> ModelError:
    return ModelError(
        f"{name} cannot be searched by its gradient: it cannot be seen with which weights router {router.path} lets "
        "its experts enter",
        "Search its routes with F-SOUR (--attacks fsour)",
    )
