"""What a route gradient needs of memory, said before anything is computed. METHODS section 9.

Weights are frozen, so a matrix product keeps none of what it was given. What a backward pass keeps of a token in one
layer is what norms, attention and activations need, and what the experts made, by which their weights are derived.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pointsman.engine.all_experts import cover, expert_weights
from pointsman.routing.routers import Router

_NORMS = 4  # of a layer, each of which keeps what it was given, in float32
_EXPERTS_AT_WORK = 2.5  # outputs of the chosen experts that are at hand at once while they run
HEAP, LIBRARY = 2.0, 180 << 20
"""What a process holds on a CPU: its tensors so many times, since freed ones leave gaps that the next do not fit into,
and the kernels that the library makes for shapes that it has not met, in bytes. Both as measured on a model as wide as
OLMoE-1B-7B."""


def resident(tensors: int, device: torch.device) -> int:
    """Bytes that a process holds on a device where its tensors take so many."""
    return round(HEAP * tensors + LIBRARY) if device.type == "cpu" else tensors


def bytes_of_gradient(
    model: nn.Module,
    routers: Sequence[Router],
    *,
    rows: int,
    tokens: int,
    logits: int,
    sets: int,
    by_layer: bool,
    tries: int = 0,
) -> int:
    """The tensors that a route gradient, or the tries after it, hold at their peak, about, without the model.

    Args:
        tokens: Of a row.
        logits: Positions of a row at which logits are computed.
        sets: Of experts, tried side by side at most, where all experts of a layer run; each makes as many rows again.
        by_layer: Hold what the backward needs of one decoder layer at a time.
        tries: Rows that are scored side by side, without gradients.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    hidden, depth, vocabulary = int(config.hidden_size), int(config.num_hidden_layers), int(config.vocab_size)
    width = next(model.parameters()).element_size()
    met = float(sum(p.numel() for p in model.parameters()))  # weights that a token meets in all layers
    met -= sum(len(table) * hidden for table in {id(t): t for t in _tables(model)}.values())
    sets = min(sets, max(len(cover(router)) for router in routers))
    block = 0.0  # of an MoE block, at most
    for router in routers:
        around = model.get_submodule(router.path.rpartition(".")[0])
        own = expert_weights(around, model.get_submodule(router.path), router.experts)
        idle = own * (1 - router.top_k / router.experts)
        met -= idle
        block = max(block, sum(p.numel() for p in around.parameters()) - idle)
    chosen = max(router.top_k for router in routers) * hidden
    kept = width * (met / hidden + len(routers) * chosen) + 4 * _NORMS * hidden * depth  # bytes of a token
    if getattr(config, "_attn_implementation", None) == "eager":
        kept += depth * int(config.num_attention_heads) * tokens * (width + 4)
    said = logits * vocabulary * (width + 12)  # logits, their logarithms in float32, and the gradients of both
    held = 3 * width * hidden * depth  # what every block, or layer, was given, what it gave, and its gradient
    back = tokens * (held + kept / depth) + said if by_layer else tokens * kept + said
    experts = width * (block / hidden + _EXPERTS_AT_WORK * chosen)  # bytes of a token in a block that runs
    every = tokens * (held + sets * experts)
    scored = tokens * (held + experts) + logits * vocabulary * (width + 8)  # keys, values and streams are held
    return round(max(rows * back, rows * every, tries * scored))


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None if nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not on Linux
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _tables(model: nn.Module) -> list[torch.Tensor]:
    """The embeddings of tokens, and the head, which may be the same."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    return [module.weight for module in modules if module is not None]
