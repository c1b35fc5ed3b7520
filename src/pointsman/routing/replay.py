"""`Replay`: the decoder layers of a model, some of which can answer from memory. Besides `control.py`, the only file
that touches a module's forward.

What happens in a forward before layer l is known if nothing was changed there. So the model's own forward is run, with
its embeddings, masks, final norm and head; only the layers outside ``begin .. end`` do not compute: the one before
`begin` answers with the residual stream that is known there, the others pass on what they are given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pointsman.routing.routers import Router

_LAYER = re.compile(r"^(.+?)\.(\d+)(?:\.|$)")


class CannotReplay(Exception):
    """The layers of this model cannot answer from memory; the message says why."""


class Replay:
    """The decoder layers of one model.

    Attributes:
        count: Decoder layers (D), those without a router included.
        outputs: Residual stream after each layer that computed in the last forward, else None. Shapes: [R, n, d].
    """

    def __init__(self, model: nn.Module, routers: Sequence[Router]) -> None:
        found = [_LAYER.match(router.path) for router in routers]
        paths = {match.group(1) for match in found if match}
        if len(paths) != 1 or not all(found):
            raise CannotReplay("its routers do not lie in one list of layers")
        layers = model.get_submodule(paths.pop())
        if not isinstance(layers, nn.ModuleList):
            raise CannotReplay("its layers are not a list")
        self._modules = list(layers)
        self.count = len(self._modules)
        self.outputs: list[Tensor | None] = [None] * self.count
        self._begin, self._end = 0, self.count
        self._entering: Tensor | None = None

    def between(self, begin: int, end: int, entering: Tensor | None = None) -> None:
        """In forwards from now on, only layers ``begin .. end - 1`` compute.

        Args:
            begin: First layer that computes; 0 starts from the embeddings.
            end: First layer that does not any more; what it is given goes on to the head.
            entering: Residual stream that enters layer `begin`, needed if it is not 0. Shape: [R, n, d].
        """
        self._begin, self._end, self._entering = begin, end, entering
        self.outputs = [None] * self.count

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Patch the layers' forwards; undo it on the way out."""
        undo: list[Callable[[], None]] = []
        try:
            for index, module in enumerate(self._modules):
                undo.append(self._wrap(index, module))
            yield
        finally:
            for step in reversed(undo):
                step()
            self.between(0, self.count)

    def _wrap(self, index: int, module: nn.Module) -> Callable[[], None]:
        had_own = "forward" in module.__dict__  # accelerate sets one on offloaded modules
        original: Callable[..., Any] = module.forward
        shape: list[int] = []  # of the tuples that the layer returns; empty if it returns a tensor

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._begin <= index < self._end:
                known = self._entering if index == self._begin - 1 else None
                hidden = known if known is not None else _given(args, kwargs)
                return (hidden, *[None] * (shape[0] - 1)) if shape else hidden
            output = original(*args, **kwargs)
            shape[:] = [len(output)] if isinstance(output, tuple) else []
            self.outputs[index] = _stream(output)
            return output

        module.forward = forward

        def restore() -> None:
            if had_own:
                module.forward = original
            else:
                del module.forward

        return restore


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise CannotReplay("its layers are not called with the residual stream first")
    return hidden


def _stream(output: Any) -> Tensor:
    if isinstance(output, tuple) and output and all(part is None for part in output[1:]):
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() != 3:
        raise CannotReplay("its layers return more than the residual stream")
    return output
