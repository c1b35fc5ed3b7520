"""`prove`: show on the model at hand that control works, on the very paths that will be used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from pointsman import environment
from pointsman.errors import BadLogits, ControlFailed
from pointsman.routing.calling import without_wrappers
from pointsman.routing.controller import Controller, refuse_nested
from pointsman.routing.intervention import Intervention
from pointsman.routing.paths import Paths, prove_paths
from pointsman.routing.routers import Router, find_routers, fingerprint, weights_token
from pointsman.routing.tap import WHOLE
from pointsman.routing.trace import Recorder


@dataclass(frozen=True)
class Proof:
    """What was seen when control was tried on a model. Every field is a measurement, not a claim.

    Attributes:
        fingerprint: See `routers.fingerprint`.
        routers: How many routers fired, each once in a forward.
        identical: Doing nothing under control gave bit-identical logits.
        tokens_forced: Token-layers at which a forced set was realised exactly, read from the router's output.
        logits_moved: Largest change of an output logit under the forced sets (0 would mean a dead switch).
        paths: What padding, cached decoding and generation were held against.
    """

    fingerprint: str
    routers: int
    identical: bool
    tokens_forced: int
    logits_moved: float
    paths: Paths


@dataclass
class _Known:
    """What is remembered of a model: the proof holds for these modules, the fingerprint for these weights."""

    modules: tuple[nn.Module, ...]
    routers: tuple[Router, ...]
    weights: tuple[Any, ...]
    proof: Proof


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
_proving = threading.RLock()


def prove(model: nn.Module) -> Proof:
    """Show on this very model that control works.

    Four short forwards (two rows of six tokens, one left-padded): untouched; under control doing nothing, which must
    be bit-identical with every router firing once; with a random set forced at every router, different in the two
    rows, which must be realised exactly. In the last, every block that holds a router is run once more with the
    forced set, and must give something else, by exactly these experts wherever the block lets that be seen: a router
    that its block does not listen to is refused.

    Then the paths that will be used, under forced sets in one row and masks in the other (see `prove_paths`): a padded
    batch equals its rows alone, cached decoding equals one full forward, and so does `generate`.

    The proof is remembered for as long as the model and its router modules live. Its fingerprint is computed again
    when the weights of a router have changed.

    Raises:
        BadLogits, ControlFailed, UncontrollableRouter, NoRouters, UnsupportedEnvironment
    """
    environment.check()
    with _proving:  # threads that come to a new model together wait for one proof
        return _remembered(without_wrappers(model))


def _remembered(model: nn.Module) -> Proof:
    routers = find_routers(model)
    modules = tuple(model.get_submodule(r.path) for r in routers)
    weights = weights_token(model, routers)
    known = _known.get(model)
    same = known is not None and known.routers == routers and all(map(_is, known.modules, modules))
    if known is not None and same:
        if known.weights != weights:
            known.weights = weights
            known.proof = replace(known.proof, fingerprint=fingerprint(model, routers))
        return known.proof
    refuse_nested(model, routers)
    proof = _prove(model, routers)
    _known[model] = _Known(modules, routers, weights, proof)
    return proof


def _is(one: object, other: object) -> bool:
    return one is other


def _prove(model: nn.Module, routers: tuple[Router, ...]) -> Proof:
    print_ = fingerprint(model, routers)
    ids, mask = _probe_input(model)
    try:
        plain = _probe(model, ids, mask)
    except NotImplementedError as error:
        raise environment.cannot_compute(type(model).__name__, error) from error
    if not bool(torch.isfinite(plain).all()):
        raise BadLogits(
            f"{type(model).__name__} returns NaN or infinite logits without any intervention",
            "Check the checkpoint and the dtype (float16 overflows in some models: try bfloat16)",
        )
    rng = np.random.default_rng(0)
    forced = [{r.layer: r.draw(rng, 1)[0].tolist() for r in routers} for _ in range(len(ids))]
    forcing = [Intervention.force(sets) for sets in forced]

    controller = Controller(model, routers, print_)
    controller.recorder = Recorder(len(routers))
    with controller.attached():
        idle = _probe(model, ids, mask)
    _must_fire(controller, routers)
    if not torch.equal(plain, idle):
        raise ControlFailed(
            f"Control that does nothing changed the output of {type(model).__name__} by up to "
            f"{float((plain - idle).abs().max()):.3g}",
            "This model cannot be controlled faithfully; does it compute with random noise?",
        )

    controller = Controller(model, routers, print_)
    controller.set(forcing)
    controller.strict = False  # what is not obeyed is named below
    controller.recorder = Recorder(len(routers))
    with controller.attached():
        moved = _probe(model, ids, mask)
    realised, tokens = controller.trace(), 0
    for router in routers:
        layer = realised[router.layer]
        for row, experts in zip(layer.row, layer.experts, strict=True):
            tokens += 1
            if sorted(set(experts.tolist())) != sorted(forced[row][router.layer]):
                raise ControlFailed(
                    f"Router {router.path} was told to use experts {forced[row][router.layer]} and used "
                    f"{experts.tolist()}",
                    "This architecture selects in a way that Pointsman does not control yet; please report it",
                )
    change = float((moved - plain).abs().max())
    if change == 0.0 and any(r.top_k < r.experts for r in routers):
        raise ControlFailed(
            f"Forcing other experts did not change the output of {type(model).__name__}",
            "The routers found are not the ones that the model uses; please report this architecture",
        )
    _prove_blocks(model, routers, print_, forcing, ids, mask)
    with _evaluating(model):
        paths = prove_paths(model, routers, print_, ids, mask)
    return Proof(print_, len(routers), True, tokens, change, paths)


def _must_fire(controller: Controller, routers: tuple[Router, ...]) -> None:
    if controller.forwards == 0:
        raise ControlFailed(
            f"None of the {len(routers)} routers was seen in a forward",
            "The model does not run its hooks; give the plain transformers model, not a compiled or exported one",
        )


def _prove_blocks(
    model: nn.Module,
    routers: tuple[Router, ...],
    print_: str,
    forcing: Sequence[Intervention],
    ids: Tensor,
    mask: Tensor,
) -> None:
    """Run every block that holds a router twice on the same input, free and forced: the outputs must differ.

    The block is the innermost module around the router that is called as a module.
    """
    controller = Controller(model, routers, print_)
    controller.strict = False
    compared: set[int] = set()
    hooks = []
    for router in routers:
        path = router.path.rpartition(".")[0]
        while router.top_k < router.experts and path:
            block = model.get_submodule(path)
            hooks.append(_compare_block(block, router, controller, forcing, compared))
            path = path.rpartition(".")[0]
    try:
        with controller.attached():
            _probe(model, ids, mask)
    finally:
        for hook in hooks:
            hook.remove()
    for router in routers:
        if router.top_k < router.experts and router.layer not in compared and "." in router.path:
            raise ControlFailed(
                f"No module around router {router.path} was called, so that its use could not be checked",
                "This model runs its blocks in an unusual way; please report this architecture",
            )


def _compare_block(
    block: nn.Module, router: Router, controller: Controller, forcing: Sequence[Intervention], compared: set[int]
) -> Any:
    def compare(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if router.layer in compared:
            return
        compared.add(router.layer)
        one_set = [forcing[0]] * len(forcing)  # the same at every token, padding included
        (forced_set,) = [s.experts for s in forcing[0].rules[0].selections if s.layer == router.layer]
        with controller.instead(one_set, router), _experts_heard(block, router, set(forced_set)):
            forced = block.forward(*args, **kwargs)
        free, forced = (part[0] if isinstance(part, tuple | list) else part for part in (output, forced))
        if isinstance(free, Tensor) and torch.equal(free, forced):
            raise ControlFailed(
                f"The block of router {router.path} gives the same output whatever the router selects",
                "The block does not use what its router returns; please report this architecture",
            )

    return block.register_forward_hook(compare, with_kwargs=True)


@contextmanager
def _experts_heard(block: nn.Module, router: Router, forced: set[int]) -> Iterator[None]:
    """Check that the experts of a block run as forced, wherever that can be seen from what they are given.

    Stacked experts are given the chosen numbers, [tokens, k]; experts that are modules are called with their tokens.
    """
    called: dict[int, int] = {}  # expert -> tokens
    others: list[list[int]] = []

    def count(number: int) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            tokens = args[0].shape[:-1].numel() if args and isinstance(args[0], Tensor) else 0
            called[number] = called.get(number, 0) + tokens

        return note

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for given in (*args, *kwargs.values()):
            if isinstance(given, Tensor) and given.dtype in WHOLE and given.shape[1:] == (router.top_k,):
                rows = {tuple(row) for row in given.tolist()}
                others.extend(sorted(row) for row in rows if set(row) != forced)

    hooks = []
    for path, module in block.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == router.experts:
            hooks += [expert.register_forward_pre_hook(count(n)) for n, expert in enumerate(module)]
        elif any(p.dim() == 3 and len(p) == router.experts for p in module.parameters(recurse=False)) and path:
            hooks.append(module.register_forward_pre_hook(read, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    used = {expert for expert, tokens in called.items() if tokens}
    everywhere = len(used) == router.experts and len(set(called.values())) == 1  # run on all tokens, weighted by zero
    if others or (used and used != forced and not everywhere):
        raise ControlFailed(
            f"Router {router.path} was told to use experts {sorted(forced)}, said so, and its block runs "
            f"{others[0] if others else sorted(used)}",
            "The block does not use what its router returns; please report this architecture",
        )


def _probe_input(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Two rows of six tokens, the second with two positions of left padding. Shapes: [2, 6] each."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    vocabulary = int(embedding.weight.shape[0])
    device = embedding.weight.device
    ids = (torch.arange(12, device=device).reshape(2, 6) * 7 + 3) % vocabulary
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids, mask


def _probe(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Output logits (or hidden states, for a base model) at the real tokens of the probe. Shape: [10, ...]."""
    with _evaluating(model), torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, use_cache=False)
    result: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return result[mask.bool().to(result.device)].float().cpu()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; each module as it was afterwards: they are not always all or none in training."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
