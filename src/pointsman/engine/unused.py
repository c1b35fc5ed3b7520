"""What a checkpoint holds and its configuration has no place for: transformers leaves it out and goes on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_LAYER = re.compile(r"(?P<stack>(?:.*?\.)?layers\.)(?P<number>\d+)\.(?P<rest>.+)")
_DECLARED = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "mtp_num_layers", "num_mtp_modules")
"""How configurations count layers that predict further tokens (MTP), which good checkpoints hold and nobody loads."""


def notes_on_unused(model: Any, unexpected: Iterable[str]) -> list[str]:
    """One line for layers that the configuration does not count, and one for tensors of modules that have no such.

    Args:
        model: As it was loaded.
        unexpected: The tensors of the checkpoint that were not loaded.
    """
    config = model.config.get_text_config()
    counted = int(config.num_hidden_layers)
    kept = [found for name, _ in _tensors(model) if (found := _LAYER.fullmatch(name))]
    usual = {(found["stack"], found["rest"]) for found in kept}
    stacks = {stack for stack, _ in usual}
    layers: dict[tuple[str, int], set[str]] = {}
    names = {name for name in unexpected if not name.endswith("inv_freq")}  # of rotary embeddings: computed
    for name in names:
        found = _LAYER.fullmatch(name)
        if found and int(found["number"]) >= counted and found["stack"] in stacks:
            layers.setdefault((found["stack"], int(found["number"])), set()).add(found["rest"])
    declared = counted + sum(_count(config, name) for name in _DECLARED)
    notes = []
    further = [
        f"{stack}{number}.{rest}"
        for (stack, number), rests in sorted(layers.items())
        if any((stack, rest) in usual for rest in rests)
        if number >= declared or not _predicts_further(stack, rests, usual)
        for rest in sorted(rests)
    ]
    if further:
        notes.append(_note(further, f"its configuration counts {counted} layers"))
    modules = {path for path, _ in model.named_modules()}
    others = sorted(name for name in names if name.rpartition(".")[0] in modules)
    if others:
        notes.append(_note(others, "its configuration asks for no such part of that module"))
    return notes


def persistent(model: Any) -> set[str]:
    """The names of all tensors that a checkpoint of a model must hold: parameters, and buffers that are saved."""
    return {name for name, _ in _tensors(model)}


def _tensors(model: Any) -> Iterable[tuple[str, Any]]:
    yield from model.named_parameters()
    for path, module in model.named_modules():
        for name, tensor in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, tensor


def _predicts_further(stack: str, rests: set[str], usual: set[tuple[str, str]]) -> bool:
    """Whether a layer has something, such as a projection of its own, that a decoder layer has not."""
    return any((stack, rest) not in usual and ".experts." not in f".{rest}" for rest in rests)


def _count(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    return value if type(value) is int and value > 0 else 0


def _note(names: list[str], why: str) -> str:
    several = "1 tensor of the checkpoint is" if len(names) == 1 else f"{len(names)} tensors of the checkpoint are"
    return f"{several} not used, such as {names[0]}: {why}"
