"""Carry out interventions on a live transformers model. The only file that touches a module's forward.

How it works, for every architecture alike: while control is attached, each router's forward runs inside a
`TorchFunctionMode` that sees the operations of that forward. The one matrix product with E columns is the raw
logits: biases and pins are added to its result, and experts outside a mask become -inf. Where selection works on
something else than the logits (DeepSeek-V3: sigmoid, plus a correction bias, within groups), the mask is carried out
once more where selection happens: on the operand of the top-k, and on the operand of the group scores.

Which experts were really used is read from what the router returns, and checked against every mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from pointsman import environment
from pointsman.errors import BadLogits, ControlFailed, InterventionError, UncontrollableRouter
from pointsman.routing.calling import Calling
from pointsman.routing.intervention import Intervention, Rule
from pointsman.routing.layout import Layout, read_layout
from pointsman.routing.plan import Forced, Learnt, Plan
from pointsman.routing.routers import Router, find_routers, fingerprint, weights_token
from pointsman.routing.steering import Steering, plain
from pointsman.routing.tap import WHOLE, Tap, chosen_experts
from pointsman.routing.trace import Recorder, RouteTrace

__all__ = ["Controller", "Layout", "Proof", "control", "prove"]

_attached: WeakSet[nn.Module] = WeakSet()  # router modules under control now


@dataclass(frozen=True)
class Proof:
    """What was seen when control was tried on a model. Every field is a measurement, not a claim.

    Attributes:
        fingerprint: See `routers.fingerprint`.
        routers: How many routers fired, each once in a forward.
        identical: Doing nothing under control gave bit-identical logits.
        tokens_forced: Token-layers at which a forced set was realised exactly, read from the router's output.
        logits_moved: Largest change of an output logit under the forced sets (0 would mean a dead switch).
    """

    fingerprint: str
    routers: int
    identical: bool
    tokens_forced: int
    logits_moved: float


@dataclass
class _Known:
    """What is remembered of a model: the proof holds for these modules, the fingerprint for these weights."""

    modules: tuple[nn.Module, ...]
    routers: tuple[Router, ...]
    weights: tuple[Any, ...]
    proof: Proof


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


@contextmanager
def control(
    model: nn.Module,
    intervention: Intervention | Steering | Sequence[Intervention | Steering | None] | None = None,
    *,
    trace: bool = False,
    prompt_lengths: Sequence[int] | None = None,
) -> Iterator[Controller]:
    """Apply `intervention` to every forward of `model` inside the ``with`` block.

    On the first use for a model, control proves itself (see `prove`). It always unwinds, also after an exception in
    the middle of a forward.

    Args:
        model: A transformers MoE model. Call it, or its ``generate``, as usual.
        intervention: One for all rows of a batch, or a sequence with one (or None) for each row. A `Steering` will do.
        trace: Record raw logits and realised experts; read them from ``controller.trace()``.
        prompt_lengths: Real prompt tokens of each row, if a forward holds prompt and answer together (scoring).
            Without it, tokens that come with an empty cache are prefill and all later ones decode.

    Raises:
        NoRouters, UncontrollableRouter, ControlFailed, InterventionError, WrongModel
    """
    routers = find_routers(model)
    _refuse_nested(model, routers)
    proof = prove(model)
    controller = Controller(model, routers, proof.fingerprint)
    controller.set(intervention, prompt_lengths=prompt_lengths)
    if trace:
        controller.recorder = Recorder(len(controller.routers))
    with controller.attached():
        yield controller


def prove(model: nn.Module) -> Proof:
    """Show on this very model that control works.

    Four short forwards (two rows of six tokens, one left-padded): untouched; under control doing nothing, which must
    be bit-identical with every router firing once; with a random set forced at every router, different in the two
    rows, which must be realised exactly. In the last, every block that holds a router is run once more with the
    forced set, and must give something else, by exactly these experts wherever the block lets that be seen: a router
    that its block does not listen to is refused.

    The proof is remembered for as long as the model and its router modules live. Its fingerprint is computed again
    when the weights of a router have changed.

    Raises:
        BadLogits, ControlFailed, UncontrollableRouter, NoRouters, UnsupportedEnvironment
    """
    environment.check()
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
    _refuse_nested(model, routers)
    proof = _prove(model, routers)
    _known[model] = _Known(modules, routers, weights, proof)
    return proof


def _is(one: object, other: object) -> bool:
    return one is other


def _refuse_nested(model: nn.Module, routers: tuple[Router, ...]) -> None:
    if any(model.get_submodule(r.path) in _attached for r in routers):
        raise InterventionError(
            "This model is already under control",
            "Leave the outer `with control(...)` first, or add the interventions: a + b",
        )


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
    return Proof(print_, len(routers), True, tokens, change)


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


class Controller:
    """Control attached to one model: holds the current routing, and the trace if one is wanted.

    Attributes:
        routers: The routers, in depth order.
        recorder: Where router calls are recorded; None records nothing.
        forwards: Forwards of the model seen so far.
        strict: Raise at the end of a forward in which an expert outside a mask was used.
        overlay: A set forced in each row at one layer and token, on top of the routing.
        learnt: Vectors added to the raw logits, through which gradients flow, on top of the routing.
        first_layer, last_layer: Decoder layers that compute; routers in others are not expected to fire.
    """

    def __init__(self, model: nn.Module, routers: tuple[Router, ...], fingerprint: str) -> None:
        self.routers = routers
        self.recorder: Recorder | None = None
        self.forwards = 0
        self.strict = True
        self.overlay: Forced | None = None
        self.learnt: Learnt | None = None
        self.first_layer = 0
        self.last_layer: int | None = None
        self._model = model
        self._fingerprint = fingerprint
        self._plan: Plan | None = None
        self._prompt_lengths: tuple[int, ...] | None = None
        self._layout: Layout | None = None
        self._fired: list[int] = []
        self._violations: list[tuple[int, Tensor]] = []
        self._calling = Calling(model)
        self._checked: dict[int, Rule] = {}

    def set(
        self,
        routing: Intervention | Steering | Sequence[Intervention | Steering | None] | None,
        *,
        prompt_lengths: Sequence[int] | None = None,
    ) -> None:
        """Change the routing; checked against the routers at once.

        Raises:
            InterventionError, WrongModel: It does not fit these routers. The routing before stays.
        """
        rules = plain(routing)
        each = [rules] if rules is None or isinstance(rules, Intervention) else rules
        for part in each:
            if part is not None and not isinstance(part, Intervention):
                raise InterventionError(
                    f"A routing of {type(part).__name__}",
                    "Give an Intervention or a Steering, one (or None) for each row, or None",
                )
        for intervention in {id(i): i for i in each if i}.values():
            self._check(intervention)
        plan = None if rules is None or rules == Intervention() else Plan(rules, self.routers)
        self._plan = plan
        self.set_prompt_lengths(prompt_lengths)

    def set_prompt_lengths(self, lengths: Sequence[int] | None) -> None:
        """Change the prompt tokens of each row (see `control`); the routing stays."""
        self._prompt_lengths = None if lengths is None else tuple(int(n) for n in lengths)

    def _check(self, intervention: Intervention) -> None:
        """`Intervention.check`, without looking twice at rules that many interventions share."""
        if len(self._checked) > 4096:
            self._checked.clear()
        new = tuple(rule for rule in intervention.rules if id(rule) not in self._checked)
        Intervention(new, intervention.fingerprint).check(self.routers, self._fingerprint)
        self._checked |= {id(rule): rule for rule in new}

    def trace(self) -> RouteTrace:
        """What was recorded so far (needs ``trace=True``)."""
        if self.recorder is None:
            raise InterventionError("No trace was recorded", "Use control(model, ..., trace=True)")
        return self.recorder.trace()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Patch the routers' forwards and the model's hooks; undo all of it on the way out."""
        _refuse_nested(self._model, self.routers)
        with ExitStack() as undo:
            undo.callback(self._forget_layout)
            undo.enter_context(self._calling.handed_over(self._model))
            undo.callback(self._model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            undo.callback(self._model.register_forward_hook(self._end).remove)
            for router in self.routers:
                undo.callback(self._wrap(router))
            yield

    def _forget_layout(self) -> None:
        self._layout = None

    @contextmanager
    def instead(self, routing: Sequence[Intervention], router: Router) -> Iterator[None]:
        """In the middle of a forward: run one router again under another routing, seen by nobody."""
        before, layout, plan = self._fired[router.layer], self._layout, Plan(routing, self.routers)
        if layout is None:
            raise ControlFailed(f"Router {router.path} is not in a forward", "Call this from within one")
        plan.begin(layout)
        kept, self._plan, recorder, self.recorder = self._plan, plan, self.recorder, None
        try:
            yield
        finally:
            self._plan, self.recorder, self._fired[router.layer] = kept, recorder, before

    def _wrap(self, router: Router) -> Callable[[], None]:
        module = self._model.get_submodule(router.path)
        had_own = "forward" in module.__dict__  # accelerate sets one on offloaded modules
        original: Callable[..., Any] = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._route(router, original, args, kwargs)

        module.forward = forward
        _attached.add(module)

        def restore() -> None:
            _attached.discard(module)
            if had_own:
                module.forward = original
            else:
                del module.forward

        return restore

    # -- one forward of the model ------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._layout = None
        layout = read_layout(self._calling.read(module, args, kwargs), self._prompt_lengths)
        self._fired = [0] * len(self.routers)
        self._violations = []
        if self._plan is not None:
            self._plan.begin(layout)
        self._layout = layout
        self.forwards += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._layout = None
        silent = [
            router.path
            for router, fired in zip(self.routers, self._fired, strict=True)
            if fired != 1 and self._computes(router)
        ]
        if silent:
            raise ControlFailed(
                f"{len(silent)} of {len(self.routers)} routers did not fire exactly once in a forward, such as "
                f"{silent[0]}",
                "This model does not run its routers as declared; please report this architecture",
            )
        if not self._violations or not self.strict:
            return
        device = self._violations[0][1].device
        bad = torch.stack([flag.to(device) for _, flag in self._violations]).tolist()  # one wait for the device
        for (layer, _), outside in zip(self._violations, bad, strict=True):
            if outside:
                raise ControlFailed(
                    f"Router {self.routers[layer].path} used an expert outside its mask",
                    "Allow a set that the architecture can select (at least top-k experts within its groups)",
                )

    def _computes(self, router: Router) -> bool:
        last = self.last_layer
        return router.decoder_layer >= self.first_layer and (last is None or router.decoder_layer <= last)

    def _route(self, router: Router, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        layout = self._layout
        if layout is None:
            raise ControlFailed(
                f"Router {router.path} ran outside a forward of the controlled model",
                "Call the model given to control(), not a part of it (and train without gradient checkpointing)",
            )
        self._fired[router.layer] += 1
        edits = self._plan.edits(router.layer) if self._plan is not None else None
        if self.overlay is not None and self.overlay.layer == router.layer:
            edits = self.overlay.join(edits, layout, router)
        if self.learnt is not None:
            edits = self.learnt.join(edits, layout, router.layer)
        if edits is None and self.recorder is None:
            return original(*args, **kwargs)
        tokens = layout.position.numel()
        with Tap(router, edits, tokens) as tap:
            output = original(*args, **kwargs)
        if tap.raw is None:
            raise UncontrollableRouter(
                f"Router {router.path} has no matrix product with a column for each of its {router.experts} experts"
                + (f" (its products have {', '.join(map(str, tap.widths))} columns)" if tap.widths else ""),
                "Please report this architecture; Pointsman does not guess which numbers are the logits",
            )
        if self.recorder is None and (edits is None or edits.outside is None):
            return output
        realised = chosen_experts(output, router, tokens, tap.chosen)  # shape: [B * T, k]
        if edits is not None and edits.outside is not None:
            outside = edits.outside.to(realised.device)
            used = outside[realised] if outside.dim() == 1 else outside.gather(-1, realised)
            self._violations.append((router.layer, used.any()))
        if self.recorder is not None:
            self.recorder.add(router.layer, layout, tap.raw.reshape(-1, router.experts), realised)
        return output


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
    training = [module for module in model.modules() if module.training]  # not always all or none of them
    model.eval()
    try:
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for module in training:
            module.training = True
    result: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return result[mask.bool().to(result.device)].float().cpu()
