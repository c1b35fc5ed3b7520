"""The block around each router: what it was given and gave in a forward, and what it gives when it runs again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pointsman.engine.router_output import RouterOutput
from pointsman.routing.controller import Controller
from pointsman.routing.layout import Layout
from pointsman.routing.routers import Router


class Enough(Exception):
    """A router has answered, and the rest of its block is not wanted."""


@dataclass
class Block:
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

    def output(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What its mixture, or else the block, gives when it runs again on this.

        Raises:
            Enough: A hook of its router wants no more of it.
        """
        if self.module is None:
            raise ValueError("A block that has not run")
        given_: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            given_.append(output)
            raise Enough

        hook = self.mixture.register_forward_hook(keep) if self.mixture is not None else None
        try:
            output = self.module.forward(*args, **kwargs)
        except Enough:
            if not given_:  # it is the router that has answered
                raise
            return given_[0]
        finally:
            if hook is not None:
                hook.remove()
        first: Tensor = _first(output)
        return first


@contextmanager
def watched(model: nn.Module, controller: Controller) -> Iterator[dict[int, Block]]:
    """Keep what every block is given, and add zeros with a gradient to what it, or its mixture, gives."""
    blocks = {router.layer: Block() for router in controller.routers}
    hooks: list[RemovableHandle] = []

    def add_zeros(block: Block, output: Any) -> Any:
        first = _first(output)
        if not isinstance(first, Tensor):
            return None
        block.delta = torch.zeros_like(first, requires_grad=True)
        moved = first + block.delta
        return type(output)([moved, *output[1:]]) if isinstance(output, tuple | list) else moved

    def beside(block: Block, module: nn.Module) -> RemovableHandle:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if block.mixture is not None or not _handed(block.tables, (*args, *kwargs.values())):
                return None
            if not isinstance(output, Tensor) or block.chosen is None or _rows(output) != len(block.chosen):
                return None
            block.mixture = module
            return add_zeros(block, output)

        return module.register_forward_hook(keep, with_kwargs=True)

    def around(block: Block, module: nn.Module) -> RemovableHandle:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if block.module is not None or block.chosen is None:
                return None  # a module further out, or one whose router did not run
            block.module, block.layout = module, controller.layout
            block.args, block.kwargs = tuple(map(_detached, args)), {k: _detached(v) for k, v in kwargs.items()}
            return None if block.mixture is not None else add_zeros(block, output)

        return module.register_forward_hook(keep, with_kwargs=True)

    def note(router: Router, output: Any, chosen: Tensor, logits: Tensor) -> Any:
        block = blocks[router.layer]
        block.chosen = chosen.detach()
        returned = RouterOutput(output, router, chosen)
        for places in returned.places:
            table = returned.table(places)
            block.weights[places.part] = table.reshape(-1)[places.column]
            block.tables.append(table)
        return output

    for router in controller.routers:
        path, _, own = router.path.rpartition(".")
        siblings = dict(model.get_submodule(path).named_children())
        hooks += [beside(blocks[router.layer], module) for name, module in siblings.items() if name != own]
        while path:
            hooks.append(around(blocks[router.layer], model.get_submodule(path)))
            path = path.rpartition(".")[0]
    controller.reweigh = note
    try:
        yield blocks
    finally:
        controller.reweigh = None
        for hook in hooks:
            hook.remove()


def _first(output: Any) -> Any:
    """What a module computes on its stream: of several things that it gives, the first."""
    return output[0] if isinstance(output, tuple | list) else output


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
