"""What a router returned to its block, taken apart: where the weights stand with which the chosen experts enter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import ControlFailed
from pointsman.routing.routers import Router
from pointsman.routing.tap import Weights, weights_among


class RouterOutput:
    """The parts of what a router returned.

    Args:
        output: What it returned: a tensor, or several parts.
        router: The router.
        chosen: The experts that it chose. Shape: [tokens, k].

    Attributes:
        places: Where the weights of these experts may stand.
    """

    def __init__(self, output: Any, router: Router, chosen: Tensor) -> None:
        self._output, self._router, self._chosen = output, router, chosen
        self._parts: list[Any] = list(output) if isinstance(output, tuple | list) else [output]
        self.places: list[Weights] = weights_among(self._parts, router, chosen)

    def table(self, places: Weights) -> Tensor:
        """The part in which these weights stand, without its gradient."""
        table: Tensor = self._parts[places.part].detach()
        return table

    def with_tables(self, tables: Mapping[int, Tensor]) -> Any:
        """The same with other tensors in place of these parts, as the router's block expects it."""
        parts = [tables.get(number, part) for number, part in enumerate(self._parts)]
        if isinstance(self._output, tuple):
            return tuple(parts)
        return parts if isinstance(self._output, list) else parts[0]

    def of_sets(self, sets: Sequence[Sequence[int]], places: Weights, *tables: Tensor) -> list[np.ndarray]:
        """What stands in tables at the places of the experts of forced sets, ascending.

        Args:
            sets: Forced side by side, each at the same number of tokens.
            places: Of their weights.
            tables: Of the shape of that part of the output.

        Returns:
            Of every table. Shapes: [sets, tokens / sets, k].

        Raises:
            ControlFailed: The router chose other experts.
        """
        order = self._ascending(sets)
        picked = (table.detach().reshape(-1)[places.column].gather(1, order) for table in tables)
        return [each.double().cpu().numpy().reshape(len(sets), -1, self._router.top_k) for each in picked]

    def _ascending(self, sets: Sequence[Sequence[int]]) -> Tensor:
        """The order of the chosen experts of every token, which must be the forced ones. Shape: [tokens, k]."""
        chosen = self._chosen
        order = chosen.argsort(-1)
        wanted = torch.tensor(sets, device=chosen.device).repeat_interleave(len(chosen) // len(sets), 0)
        if not torch.equal(chosen.gather(1, order), wanted.sort(-1)[0]):
            raise ControlFailed(
                f"Router {self._router.path} did not use the experts that were forced",
                "Please report this architecture",
            )
        return order
