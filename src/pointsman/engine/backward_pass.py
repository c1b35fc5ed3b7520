"""The pass backwards from log p(target): what every block was given, and the gradient of what it gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pointsman.engine.channels import given
from pointsman.engine.gradient_flow import gradients_kept, no_gradient
from pointsman.engine.moe_blocks import Block, watched
from pointsman.engine.types import EngineInfo, Prompt
from pointsman.errors import BadLogits
from pointsman.routing.controller import Controller
from pointsman.routing.replay import Replay
from pointsman.routing.routers import Router


class BackwardPass:
    """Forwards with their backwards, of rows that one may hold.

    Args:
        model: Of the controller.
        controller: Attached, with the routing of the rows.
        forward: Logits at the last positions of padded rows. Shape: [B, keep, V].
        pad: Ids and mask of rows, padded on the left. Shapes: [B, T].
        info: Of the engine.
    """

    def __init__(
        self,
        model: nn.Module,
        controller: Controller,
        forward: Callable[[Tensor, Tensor, int], Tensor],
        pad: Callable[[Sequence[tuple[int, ...]]], tuple[Tensor, Tensor]],
        info: EngineInfo,
    ) -> None:
        self._model, self._controller = model, controller
        self._forward, self._pad = forward, pad
        self._name, self._opening = info.name, info.opening

    def run(
        self, prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], replay: Replay | None
    ) -> tuple[list[tuple[Router, Block]], list[float], int]:
        """One forward and backward of rows.

        Args:
            replay: Hold what the backward needs of one of these decoder layers at a time.

        Returns:
            What every block was given, with the gradient of its output as `delta`; log p(target) of every row; and
            how many tokens each has, padding included.
        """
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
            with watched(self._model, self._controller) as seen, gradients_kept():
                totals = self._totals(forward(), wanted)
            blocks = [(router, seen[router.layer]) for router in self._controller.routers]
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
        blocks: Sequence[tuple[Router, Block]],
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
            raise no_gradient(self._name)
        inputs = deltas if to is None else [*deltas, to]
        try:
            found = torch.autograd.grad(of, inputs, gradient, allow_unused=True)
        except RuntimeError as error:
            raise no_gradient(self._name, error) from error
        each = [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]
        for (_, block), slope in zip(blocks, each, strict=False):
            block.delta = slope
        return None if to is None else each[-1]

    def _layer_by_layer(
        self, forward: Callable[[int], Tensor], wanted: Tensor, replay: Replay
    ) -> tuple[list[tuple[Router, Block]], Tensor]:
        """The pass backwards, with what it needs of one decoder layer at a time: every layer computes once more."""
        controller, blocks, keep = self._controller, dict[int, Block](), wanted.shape[1]

        def only(begin: int, end: int, entering: Tensor | None) -> Tensor:
            controller.first_layer, controller.last_layer = begin, end - 1
            with gradients_kept():
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
                    raise no_gradient(self._name)
                entering.requires_grad_(True)
                totals = self._totals(only(replay.count, replay.count, entering), wanted)
                gradient = self._descend(totals.sum(), [], entering)
                for layer in reversed(range(controller.routers[0].decoder_layer, replay.count)):
                    entering = streams[layer - 1] if layer else None
                    if entering is not None:
                        entering.requires_grad_(True)
                    with watched(self._model, self._controller) as seen:
                        only(layer, layer + 1, entering)
                    here = [(r, seen[r.layer]) for r in controller.routers if r.decoder_layer == layer]
                    output, streams[layer] = replay.outputs[layer], None
                    if output is None:
                        raise no_gradient(self._name)
                    gradient = self._descend(output, here, entering, gradient)
                    blocks |= {router.layer: block for router, block in here}
        finally:
            controller.first_layer, controller.last_layer = 0, None
        return [(router, blocks[router.layer]) for router in controller.routers], totals
