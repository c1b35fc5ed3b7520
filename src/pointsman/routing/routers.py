"""`Router`, and `find_routers`: every router of any MoE model that transformers loads, without a table of model names.

transformers models say themselves where their routers are: a class attribute ``_can_record_outputs`` names the
module class whose output carries ``router_logits``. Pointsman reads that declaration and finds the instances. Code
that comes with a checkpoint declares nothing: there, a router is the one module beside a block's experts that holds
a single matrix with a row for each of them. Either way `control.prove` has the last word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np
import torch
from torch import nn

from pointsman.errors import NoRouters, UncontrollableRouter

_EXPERT_COUNT_NAMES = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_TOP_K_NAMES = (
    *("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "moe_topk"),
    "top_k_experts",
)
_COUNTS_EXPERTS = re.compile(r"(?:^|_)(?:num|n)_(?!shared_)(?:\w+_)?experts$")


@dataclass(frozen=True)
class Router:
    """One router: a layer of the model that picks `top_k` of `experts` for every token.

    Attributes:
        layer: Number of the MoE layer, from 0 in depth order. All of Pointsman counts in these.
        decoder_layer: Number of the decoder layer it sits in (differs where the first layers are dense).
        path: Module path inside the model, for example ``"model.layers.0.mlp.gate"``.
        experts: How many experts it chooses from (E).
        top_k: How many it activates for a token (k).
        groups: Number of expert groups that selection is limited by; 1 if it is not.
        groups_used: How many of the groups may be used for one token.
        width: Of what it reads (d), told by its one matrix with E rows; None where it has not one.
    """

    layer: int
    decoder_layer: int
    path: str
    experts: int
    top_k: int
    groups: int = 1
    groups_used: int = 1
    width: int | None = field(default=None, compare=False)

    def selectable(self, experts: Iterable[int]) -> bool:
        """Whether the architecture can select exactly this set (distinct, in range, within its group limit)."""
        chosen = set(experts)
        if len(chosen) != self.top_k or not all(0 <= e < self.experts for e in chosen):
            return False
        size = self.experts // self.groups
        return len({e // size for e in chosen}) <= self.groups_used

    def can_fill(self, allowed: Iterable[int]) -> bool:
        """Whether `top_k` experts can be selected from within `allowed`, also under the group limit."""
        size = self.experts // self.groups
        members = [0] * self.groups
        for expert in set(allowed):
            members[expert // size] += 1
        return sum(sorted(members, reverse=True)[: self.groups_used]) >= self.top_k

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw `count` sets of `top_k` experts, uniformly among the selectable ones, without replacement in a set.

        Returns:
            Expert numbers, ascending in each row. Shape: [count, top_k], int64.
        """
        if self.groups == 1 or self.groups_used >= self.groups:
            keys = rng.random((count, self.experts))  # shape: [count, E]
            return np.sort(np.argsort(keys, axis=1, kind="stable")[:, : self.top_k], axis=1)
        rows: list[np.ndarray] = []
        while len(rows) < count:
            row = np.sort(rng.permutation(self.experts)[: self.top_k])
            if self.selectable(row.tolist()):
                rows.append(row)
        return np.stack(rows)

    @property
    def possible_sets(self) -> int:
        """How many different sets of `top_k` experts there are, the group limit aside."""
        return comb(self.experts, self.top_k)


def find_routers(model: nn.Module) -> tuple[Router, ...]:
    """Find every router of `model`, in depth order.

    Args:
        model: A transformers model (any class of it: causal LM, base model, multimodal wrapper).

    Raises:
        NoRouters: The model is dense.
        UncontrollableRouter: It has experts, but a router that cannot be found or read. Nothing is skipped.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UncontrollableRouter(
            f"{type(model).__name__} is an encoder-decoder model",
            "Pointsman controls decoder-only models; token positions mean something else in this one",
        )
    declared = _declared_routers(model)
    found: dict[str, nn.Module] = {
        path: module
        for path, module in model.named_modules()
        if any(isinstance(module, kind) and within in f".{path}." for kind, within in declared)
    }
    holders = {path for path in found if any(other.startswith(f"{path}.") for other in found)}
    found = {path: module for path, module in found.items() if path not in holders}
    for path, module in found.items():
        if type(module) is nn.Linear:
            raise UncontrollableRouter(
                f"Router {path} is a plain Linear: the experts are chosen outside of it, where nothing can be checked",
                "Update transformers, if a newer version makes it a router of its own; else report this architecture",
            )
    if found:
        _refuse_blocks_without_router(model, found, config)
    elif _looks_like_moe(model, config):
        found = _undeclared_routers(model, config)
    else:
        raise NoRouters(
            f"{type(model).__name__} is a dense model: it has no routers",
            "Give a Mixture-of-Experts model, such as allenai/OLMoE-1B-7B-0125-Instruct, or `testbed`",
        )
    routers = [_describe(path, module, config) for path, module in found.items()]
    order = sorted(range(len(routers)), key=lambda i: (routers[i][0], i))
    return tuple(
        Router(layer=n, decoder_layer=routers[i][0], path=routers[i][1], **routers[i][2]) for n, i in enumerate(order)
    )


def fingerprint(model: nn.Module, routers: tuple[Router, ...]) -> str:
    """Identify a model by its architecture, its router shapes and its router weights.

    The weights enter rounded to bfloat16, so that the same checkpoint loaded in float32 or bfloat16 has one
    fingerprint (a float16 copy has it too, unless weights lie below what float16 can hold). Experts and attention
    are not read: this takes milliseconds for most models.

    Returns:
        ``"<architecture>-<16 hex digits>"``.
    """
    digest = hashlib.sha256()
    name = type(model).__name__
    shapes = [(r.layer, r.experts, r.top_k, r.groups, r.groups_used) for r in routers]
    digest.update(json.dumps([name, shapes]).encode())
    for router in routers:
        module = model.get_submodule(router.path)
        for key, tensor in sorted(module.state_dict().items()):
            if tensor.is_meta:
                raise UncontrollableRouter(
                    f"The weights of router {router.path} are not in memory ({key} is on the meta device)",
                    "Load the model with a device map that keeps its routers on a device",
                )
            rounded = tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor.detach()
            raw = rounded.reshape(-1).contiguous().view(torch.uint8).cpu().numpy()  # shape: [bytes]
            digest.update(key.encode())
            digest.update(raw.data)
    return f"{name}-{digest.hexdigest()[:16]}"


def weights_token(model: nn.Module, routers: tuple[Router, ...]) -> tuple[Any, ...]:
    """Something that changes when the weights of a router do, in place or not; cheaper than `fingerprint`.

    Version counters see ordinary changes; a sum that knows the order of the experts sees those through ``.data``.
    """
    token: list[Any] = []
    for router in routers:
        for name, tensor in model.get_submodule(router.path).state_dict(keep_vars=True).items():
            if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
                token.append((name, tensor.data_ptr() if not tensor.is_meta else 0))
                continue
            value = tensor.detach()
            each = value.reshape(len(value), -1).sum(-1, dtype=torch.float32) if value.dim() else value.reshape(1)
            order = torch.arange(1, len(each) + 1, device=each.device, dtype=torch.float32)
            token.append((name, tensor.data_ptr(), tensor._version, (each * order).sum()))
    sums = [part[3] for part in token if len(part) > 3]
    return tuple(part[:3] for part in token), tuple(float(s) for s in sums)


def _declared_routers(model: nn.Module) -> tuple[tuple[type[nn.Module], str], ...]:
    """What the model, or a model inside it, declares in ``_can_record_outputs``.

    Returns:
        Classes of routers, with what their path must hold between dots: of a class that is not a model's own, such as
        Linear, only modules of the name that is declared with it are routers.
    """
    routers: list[tuple[type[nn.Module], str]] = []
    for module in model.modules():
        declared = getattr(module, "_can_record_outputs", None)
        if not isinstance(declared, dict) or "router_logits" not in declared:
            continue
        specs = declared["router_logits"]
        for spec in specs if isinstance(specs, list | tuple) else [specs]:
            target = getattr(spec, "target_class", spec)
            if not isinstance(target, type) or not issubclass(target, nn.Module):
                continue
            name = getattr(spec, "layer_name", None) if target.__module__.startswith("torch.") else None
            router = (target, f".{name.strip('.')}." if name else "")
            if router not in routers:
                routers.append(router)
    return tuple(routers)


def _refuse_blocks_without_router(model: nn.Module, found: dict[str, nn.Module], config: object) -> None:
    """Stacked experts of a class that sits beside a router elsewhere must have a router beside them everywhere."""
    blocks = {path.rpartition(".")[0]: _experts_of(module, config) for path, module in found.items()}
    kinds = {
        type(child)
        for block, experts in blocks.items()
        for child in model.get_submodule(block).children()
        if any(p.dim() == 3 and len(p) == experts for p in child.parameters(recurse=False))
    }
    for path, module in model.named_modules():
        block = path.rpartition(".")[0]
        if type(module) in kinds and block not in blocks:
            beside = [type(child).__name__ for child in model.get_submodule(block).children()]
            raise UncontrollableRouter(
                f"{block} has experts but not a router that transformers declares (it holds {', '.join(beside)})",
                "Its experts are chosen in another way, such as a fixed table: Pointsman does not leave layers out",
            )


def _undeclared_routers(model: nn.Module, config: object) -> dict[str, nn.Module]:
    """The routers of a model that declares none: in every block of experts, the one module that can be nothing else.

    Raises:
        UncontrollableRouter: There is a block with none, or more than one, or there are no such blocks.
    """
    experts = _first_int(_text_config(config), _EXPERT_COUNT_NAMES) or 0
    modules = dict(model.named_modules())
    groups = {
        path: module
        for path, module in modules.items()
        if path and experts > 1
        if (isinstance(module, nn.ModuleList) and len(module) == experts and path.rpartition(".")[2] != "layers")
        or any(p.dim() == 3 and p.shape[0] == experts for p in module.parameters(recurse=False))
    }
    found: dict[str, nn.Module] = {}
    for path in groups:
        block = path.rpartition(".")[0]
        near = {
            other: module
            for other, module in modules.items()
            if other.startswith(f"{block}.") and not any(f"{other}.".startswith(f"{group}.") for group in groups)
            if _rows_of_onlyrouter_matrix(module) == experts and all(p.dim() < 3 for p in module.parameters())
        }
        outermost = [other for other in near if other.rpartition(".")[0] not in near]
        if len(outermost) != 1:
            raise UncontrollableRouter(
                f"{type(model).__name__} declares no router to transformers, and {block} holds {len(outermost)} "
                f"modules with one matrix of {experts} rows instead of one",
                "Use a transformers version (or a native model class) that declares `router_logits` for it",
            )
        found[outermost[0]] = modules[outermost[0]]
    if not found:
        raise UncontrollableRouter(
            f"{type(model).__name__} has experts but declares no router to transformers",
            "Use a transformers version (or a native model class) that declares `router_logits` for it",
        )
    return found


def _looks_like_moe(model: nn.Module, config: object) -> bool:
    """Whether the configuration counts more than one expert, or a module is called experts."""
    counts = [value for name, value in vars(_text_config(config)).items() if _COUNTS_EXPERTS.search(name)]
    most = [max(value, default=0) if isinstance(value, list | tuple) else value for value in counts]
    if any(isinstance(value, int) and value > 1 for value in most):
        return True
    return any(path.rpartition(".")[2] == "experts" for path, _ in model.named_modules())


def _text_config(config: object) -> object:
    get = getattr(config, "get_text_config", None)
    return get() if callable(get) else config


def _describe(path: str, module: nn.Module, config: object) -> tuple[int, str, dict[str, Any]]:
    """Decoder layer, path and shape of one router."""
    layer = re.search(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)(?:\.|$)", path) or re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    text = _text_config(config)
    experts = _experts_of(module, config)
    top_k = _first_int(module, _TOP_K_NAMES) or _first_int(text, _TOP_K_NAMES)
    if experts and top_k and top_k > experts:
        raise UncontrollableRouter(
            f"The configuration asks for {top_k} experts per token, and router {path} has {experts}",
            "Correct config.json, or give the checkpoint's own",
        )
    if layer is None or not experts or not top_k:
        raise UncontrollableRouter(
            f"Cannot read the shape of router {path} ({type(module).__name__}: experts {experts}, top-k {top_k})",
            "Please report this architecture; Pointsman does not guess",
        )
    groups, used = 1, 1
    if getattr(module, "topk_method", None) not in ("greedy",):
        groups = _first_int(module, ("num_group", "n_group")) or 1
        used = _first_int(module, ("topk_group",)) or groups
    return int(layer.group(1)), path, {
        "experts": experts, "top_k": top_k, "groups": groups, "groups_used": min(used, groups),
        "width": _width(module, experts),
    }  # fmt: skip


def _experts_of(module: nn.Module, config: object) -> int | None:
    """How many experts a router chooses from, those without weights (LongCat's) included."""
    rows = _rows_of_onlyrouter_matrix(module)
    if rows and rows in [getattr(module, name, None) for name in _EXPERT_COUNT_NAMES]:
        return rows
    return _first_int(module, _EXPERT_COUNT_NAMES) or rows or _first_int(_text_config(config), _EXPERT_COUNT_NAMES)


def _first_int(owner: object, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(owner, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _rows_of_onlyrouter_matrix(module: nn.Module) -> int | None:
    matrices = [p for p in module.parameters() if p.dim() == 2]
    return int(matrices[0].shape[0]) if len(matrices) == 1 else None


def router_norm(model: nn.Module, router: Router) -> float:
    """Mean norm of a row of the weight of a router; 1 where there is not one matrix with a row for each expert."""
    matrix = router_matrix(model.get_submodule(router.path), router.experts)
    return 1.0 if matrix is None else float(matrix.detach().float().norm(dim=1).mean())


def _width(module: nn.Module, experts: int) -> int | None:
    """Of what a router reads."""
    matrix = router_matrix(module, experts)
    return None if matrix is None else int(matrix.shape[1])


def router_matrix(module: nn.Module, experts: int) -> nn.Parameter | None:
    """The one matrix of a router with a row for every expert, if there is just one. Shape: [E, d]."""
    matrices = [p for p in module.parameters() if p.dim() == 2 and len(p) == experts]
    return matrices[0] if len(matrices) == 1 else None
