"""The pass through all experts: each block again on what it was given, with sets forced that cover all its experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.engine.gradient_flow import gradients_kept, no_gradient
from pointsman.engine.moe_blocks import Block, Enough
from pointsman.engine.router_output import RouterOutput
from pointsman.errors import ModelError
from pointsman.routing.controller import Controller, Reweigh
from pointsman.routing.intervention import Intervention
from pointsman.routing.plan import Forced
from pointsman.routing.routers import Router

_CURVED = 1e-2  # by which derivatives at the whole and at half the weights must differ, relative to the largest
_GAUSS = ((0.1127016653792583, 5 / 18), (0.5, 8 / 18), (0.8872983346207417, 5 / 18))
"""Points between 0 and 1, with their shares: the mean of a polynomial of degree 5 over the interval, exactly."""


class AllExperts:
    """Blocks that run again with other experts than they chose.

    Args:
        controller: Of the routers, attached.
        rows_that_fit: Rows of a number of tokens that one forward without gradients may hold.
        name: Of the model, for errors.

    Attributes:
        covers: Of every layer, sets that hold all its experts between them.
    """

    def __init__(self, controller: Controller, rows_that_fit: Callable[[int], int], name: str) -> None:
        self._controller, self._rows_that_fit, self._name = controller, rows_that_fit, name
        self.covers = [cover(router) for router in controller.routers]
        self._parts: dict[int, int] = {}  # of a layer, which part of what its router returns are the weights
        self._points: dict[int, Sequence[tuple[float, float]]] = {}  # of a layer, parts of its weights, with shares

    def scores(
        self, router: Router, block: Block, free: Sequence[Intervention]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All experts of one layer at all tokens.

        Args:
            free: The routing of each row, without its choice of experts.

        Returns:
            Derivatives with respect to the weight of each expert; its weight within its set of the cover; and the
            logits. Shapes: [B * T, E].
        """
        gradient, chosen = block.delta, block.chosen
        if gradient is None or chosen is None:
            raise no_gradient(self._name)
        scores = np.zeros((len(chosen), router.experts))
        entered, logits = np.zeros_like(scores), np.zeros_like(scores)
        covers = self.covers[router.layer]
        together = self._sets_together(block, len(free))
        for start in range(0, len(covers), together):
            sets = covers[start : start + together]
            found, weights, seen = self._slopes(router, block, free, sets, gradient)
            for n, experts in enumerate(sets):
                scores[:, experts], entered[:, experts] = found[n], weights[n]
            logits = seen[0]
        return scores, entered, logits

    def weights_chosen(self, router: Router, block: Block) -> np.ndarray:
        """The weights with which the chosen experts entered, once `scores` were taken. Shape: [B * T, k]."""
        return np.asarray(block.weights[self._parts[router.layer]].double().cpu().numpy())

    def weights_of(
        self, router: Router, block: Block, free: Sequence[Intervention], sets: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """The weights that a router gives to forced sets, ascending experts. Shape: [sets, B * T, k]."""
        found: list[np.ndarray] = []

        def read(router: Router, output: Any, chosen: Tensor, logits: Tensor) -> Any:
            returned = RouterOutput(output, router, chosen)
            (places,) = [p for p in returned.places if p.part == self._parts[router.layer]]
            found.extend(returned.of_sets(tried, places, returned.table(places)))
            raise Enough

        together = self._sets_together(block, len(free))
        for start in range(0, len(sets), together):
            tried = sets[start : start + together]
            with self._again(router, block, free, tried, read) as (args, kwargs), torch.no_grad(), suppress(Enough):
                block.output(args, kwargs)
        return np.concatenate(found)

    def _sets_together(self, block: Block, rows: int) -> int:
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
        block: Block,
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
        block: Block,
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
            returned = RouterOutput(output, router, chosen)
            seen["returned"], seen["logits"] = returned, logits
            lifted = {p.part: (part * returned.table(p)).requires_grad_(True) for p in returned.places}
            leaves.extend(lifted.values())
            return returned.with_tables(lifted)

        with self._again(router, block, free, sets, lift) as (args, kwargs), gradients_kept():
            try:
                first = block.output(args, kwargs)
                if not leaves:
                    raise _no_weights(self._name, router)
                if not first.requires_grad:
                    raise no_gradient(self._name)
                wanted = torch.cat([gradient.to(first)] * len(sets))
                found = torch.autograd.grad(first, leaves, wanted, allow_unused=True)
            except RuntimeError as error:
                raise no_gradient(self._name, error) from error
        used = [n for n, each in enumerate(found) if each is not None]
        if len(used) != 1:
            raise _no_weights(self._name, router)
        (n,) = used
        returned: RouterOutput = seen["returned"]
        places = returned.places[n]
        slopes, weights = returned.of_sets(sets, places, found[n], leaves[n])
        self._parts[router.layer] = places.part
        logits = seen["logits"].detach().double().cpu().numpy().reshape(len(sets), -1, router.experts)
        return slopes, weights / part, logits

    @contextmanager
    def _again(
        self,
        router: Router,
        block: Block,
        free: Sequence[Intervention],
        sets: Sequence[Sequence[int]],
        reweigh: Reweigh,
    ) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What a block is to be given, so that its rows run once for each of these sets, forced at every token."""
        if block.layout is None or block.module is None:
            raise no_gradient(self._name)
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


def forwards_of_all_experts(model: nn.Module, routers: Sequence[Router]) -> float:
    """How many forwards the pass through all experts costs, by the weights that a token meets in either.

    Every block runs E / k times, whatever it holds beside its experts included.
    """
    total = float(sum(p.numel() for p in model.parameters()))
    total -= model.get_input_embeddings().weight.numel()  # type: ignore[operator]
    again = 0.0
    for router in routers:
        block = model.get_submodule(router.path.rpartition(".")[0])
        experts = expert_weights(block, model.get_submodule(router.path), router.experts)
        idle = experts * (1 - router.top_k / router.experts)
        total -= idle
        again += (sum(p.numel() for p in block.parameters()) - idle) * router.experts / router.top_k
    return float(again / total)


def expert_weights(block: nn.Module, router: nn.Module, experts: int) -> int:
    """How many weights the experts of a block have together."""
    lists = [m for m in block.modules() if isinstance(m, nn.ModuleList) and len(m) == experts]
    if lists:
        return sum(p.numel() for each in lists for p in each.parameters())
    own = {id(p) for p in router.parameters()}
    return sum(p.numel() for p in block.parameters() if p.dim() > 1 and len(p) == experts and id(p) not in own)


def _no_weights(name: str, router: Router) -> ModelError:
    return ModelError(
        f"{name} cannot be searched by its gradient: it cannot be seen with which weights router {router.path} lets "
        "its experts enter",
        "Search its routes with F-SOUR (--attack fsour)",
    )
