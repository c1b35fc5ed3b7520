"""Which experts a model really uses, found without reading any router: change one expert, see which tokens change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.routing.routers import Router


def weights_of_experts(model: nn.Module, router: Router) -> list[list[Tensor]]:
    """The parameters of every expert beside this router, from their shapes alone.

    Returns:
        One list for each expert: slices of stacked parameters, or the parameters of a module. Experts that compute
        nothing, which come last (LongCat's), have an empty list.

    Raises:
        LookupError: There are none to be told apart.
    """
    block = model.get_submodule(router.path.rpartition(".")[0])
    own = {id(p) for p in model.get_submodule(router.path).parameters()}
    stacks = []
    for module in block.modules():
        if isinstance(module, nn.ModuleList) and len(module) == router.experts:
            return [[p.data for p in expert.parameters()] for expert in module]
        here = [p.data for p in module.parameters(recurse=False) if id(p) not in own and p.dim() == 3]
        if any(len(p) == router.experts for p in here):
            stacks += [p for p in here if len(p) <= router.experts]
    if not stacks:
        raise LookupError(f"no weights of {router.experts} experts beside {router.path}")
    count = min(len(p) for p in stacks)
    return [[p[e] for p in stacks] for e in range(count)] + [[] for _ in range(router.experts - count)]


def experts_that_count(model: Any, routers: tuple[Router, ...], run: Callable[[], object]) -> list[Tensor]:
    """Of every router: whether an expert has any part in what its block gives for a token.

    `run` is called once for every expert of every router, with other weights in that one expert.

    Returns:
        One tensor for each router. Shape: [B * T, E], bool.
    """
    generator = torch.Generator().manual_seed(0)
    result = []
    for router in routers:
        before = block_output(model, router, run)  # shape: [B * T, d]
        columns = []
        for parts in weights_of_experts(model, router):
            kept = [part.clone() for part in parts]
            for part in parts:
                part.copy_(torch.randn(part.shape, generator=generator).to(part.dtype))
            columns.append((block_output(model, router, run) != before).any(-1))
            for part, value in zip(parts, kept, strict=True):
                part.copy_(value)
        assert torch.equal(block_output(model, router, run), before)
        result.append(torch.stack(columns, -1))
    return result


def block_output(model: Any, router: Router, run: Callable[[], object]) -> Tensor:
    """What the innermost module called around this router gives in the first forward of `run`. Shape: [B * T, d]."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        if seen or not isinstance(first, Tensor):
            return
        seen.append(first.detach().clone().reshape(-1, first.shape[-1]))

    hooks, path = [], router.path.rpartition(".")[0]
    while path:
        hooks.append(model.get_submodule(path).register_forward_hook(note))
        path = path.rpartition(".")[0]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0]
