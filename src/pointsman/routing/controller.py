"""`Controller`: an intervention at work in a live transformers model. The only file that touches routers' forwards.

How it works, for every architecture alike: while control is attached, each router's forward runs inside a
`TorchFunctionMode` that sees the operations of that forward. The one matrix product with E columns is the raw
logits: biases and pins are added to its result, and experts outside a mask become -inf. Where selection works on
something else than the logits (DeepSeek-V3: sigmoid, plus a correction bias, within groups), the mask is carried out
once more where selection happens: on the operand of the top-k, and on the operand of the group scores.

Which experts were really used is read from what the router returns, and checked against every mask.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from pointsman.errors import BadLogits, ControlFailed, InterventionError, UncontrollableRouter
from pointsman.routing.calling import Calling
from pointsman.routing.given import HasIntervention, plain
from pointsman.routing.intervention import Intervention, Rule
from pointsman.routing.layout import Generation, Layout, read_layout
from pointsman.routing.plan import Forced, Plan, Trainable
from pointsman.routing.routers import Router
from pointsman.routing.tap import Tap, chosen_experts
from pointsman.routing.trace import Recorder, RouteTrace

Reweigh = Callable[[Router, Any, Tensor, Tensor], Any]
"""Of a router, what it returned, the experts chosen [tokens, k] and the logits before any mask [tokens, E]."""

_attached: WeakSet[nn.Module] = WeakSet()  # router modules under control now
_attaching = threading.Lock()


def refuse_nested(model: nn.Module, routers: Sequence[Router]) -> None:
    """Refuse to attach control twice.

    Raises:
        InterventionError: The model is under control already.
    """
    if any(model.get_submodule(r.path) in _attached for r in routers):
        raise InterventionError(
            "This model is already under control",
            "Leave the outer `with control(...)` first, or add the interventions: a + b",
        )


class Controller:
    """Control attached to one model: holds the current routing, and the trace if one is wanted.

    Attributes:
        routers: The routers, in depth order.
        recorder: Where router calls are recorded; None records nothing.
        forwards: Forwards of the model seen so far.
        strict: Raise at the end of a forward in which an expert outside a mask was used.
        overlay: A set forced in each row at one layer and token, on top of the routing.
        trainable: Added to the raw logits, with gradients, on top of the routing.
        reweigh: Is shown what each router returns, and gives what is used in its place.
        first_layer, last_layer: Decoder layers that compute; routers in others are not expected to fire.
    """

    def __init__(self, model: nn.Module, routers: tuple[Router, ...], fingerprint: str) -> None:
        self.routers = routers
        self.recorder: Recorder | None = None
        self.forwards = 0
        self.strict = True
        self.overlay: Forced | None = None
        self.trainable: Trainable | None = None
        self.reweigh: Reweigh | None = None
        self.first_layer = 0
        self.last_layer: int | None = None
        self._model = model
        self._fingerprint = fingerprint
        self._plan: Plan | None = None
        self._prompt_lengths: tuple[int, ...] | None = None
        self._layout: Layout | None = None
        self._generation: Generation | None = None
        self._generations = 0
        self._thread: int | None = None
        self._fired: list[int] = []
        self._violations: list[tuple[int, Tensor]] = []
        self._calling = Calling(model)
        self._checked: dict[int, Rule] = {}

    def set(
        self,
        routing: Intervention | HasIntervention | Sequence[Intervention | HasIntervention | None] | None,
        *,
        prompt_lengths: Sequence[int] | None = None,
    ) -> None:
        """Change the routing; checked against the routers at once.

        Raises:
            InterventionError, WrongModel: It does not fit these routers. The routing before stays.
        """
        rules = self.check(routing)
        plan = None if rules is None or rules == Intervention() else Plan(rules, self.routers)
        self._plan = plan
        self.set_prompt_lengths(prompt_lengths)

    def check(
        self, routing: Intervention | HasIntervention | Sequence[Intervention | HasIntervention | None] | None
    ) -> Intervention | list[Intervention | None] | None:
        """What `set` would carry out, checked against the routers; nothing is changed.

        Raises:
            InterventionError, WrongModel: It does not fit these routers.
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
        return rules

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
        with ExitStack() as undo:
            undo.callback(self._forget)
            with _attaching:
                refuse_nested(self._model, self.routers)
                self._thread = threading.get_ident()
                for router in self.routers:
                    undo.callback(self._wrap(router))
            undo.enter_context(self._calling.handed_over(self._model))
            undo.callback(self._model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            undo.callback(self._model.register_forward_hook(self._end).remove)
            undo.callback(self._watch_generate())
            yield

    def _forget(self) -> None:
        self._layout, self._generation = None, None

    def _watch_generate(self) -> Callable[[], None]:
        """Remember what `generate` is given: its forwards alone do not say where the prompt ends."""
        model = self._model
        original = getattr(model, "generate", None)
        if not callable(original):
            return lambda: None
        own = model.__dict__.get("generate")

        @wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            self._refuse_other_threads()
            if self._generation is not None:  # one that calls itself: the outermost knows the prompt
                return original(*args, **kwargs)
            self._generation = Generation.of(original, args, kwargs)
            self._generations += 1
            try:
                return original(*args, **kwargs)
            finally:
                self._generation = None

        model.__dict__["generate"] = generate

        def restore() -> None:
            if own is not None:
                model.__dict__["generate"] = own
            else:
                del model.__dict__["generate"]

        return restore

    def _refuse_other_threads(self) -> None:
        """A routing is for the thread that asked for it; nobody else is steered, and nobody in silence."""
        if threading.get_ident() != self._thread:
            raise ControlFailed(
                "The model was called from another thread than the one that controls it",
                "Put `with control(...)` into the thread that calls it, as for streaming; an engine may be shared",
            )

    @property
    def layout(self) -> Layout | None:
        """Which token is which in the forward that is going on; None between forwards."""
        return self._layout

    @contextmanager
    def again(self, layout: Layout, routing: Sequence[Intervention], overlay: Forced) -> Iterator[None]:
        """Between forwards: a block may be run once more on what it was given, as in a forward of this layout.

        Args:
            routing: Of each row.
            overlay: On top of it.
        """
        if self._layout is not None:
            raise ControlFailed("A forward is going on", "Run blocks again when it has ended")
        plan = Plan(routing, self.routers) if any(routing) else None
        if plan is not None:
            plan.begin(layout)
        kept = self._plan
        self._layout, self._fired, self._plan, self.overlay = layout, [0] * len(self.routers), plan, overlay
        try:
            yield
        finally:
            self._layout, self._plan, self.overlay = None, kept, None

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
        self._refuse_other_threads()
        layout = read_layout(self._calling.read(module, args, kwargs), self._prompt_lengths, self._generation)
        phases_count = self.recorder is not None or (self._plan is not None and self._plan.phased)
        if phases_count and self._generation is None and self._prompt_lengths is None and _within_generate():
            layout = replace(layout, phases_known=False)
        if self.recorder is not None:
            self.recorder.generation = 0 if self._generation is None else self._generations
            if self._generation is not None and self._generation.beams:
                raise InterventionError(
                    "A trace under beam search, whose rows change the sequence that they belong to",
                    "Trace a greedy or sampled generation, or trace the answer afterwards",
                )
        self._fired = [0] * len(self.routers)
        self._violations = []
        if self._plan is not None:
            self._plan.begin(layout)
        self._layout = layout
        self.forwards += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        layout, self._layout = self._layout, None
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
        if not self.strict:
            return
        if self._violations:
            device = self._violations[0][1].device
            bad = torch.stack([flag.to(device) for _, flag in self._violations]).tolist()  # one wait for the device
            for (layer, _), outside in zip(self._violations, bad, strict=True):
                if outside:
                    raise ControlFailed(
                        f"Router {self.routers[layer].path} used an expert outside its mask",
                        "Allow a set that the architecture can select (at least top-k experts within its groups)",
                    )
        if self._plan is not None and layout is not None:
            _refuse_bad_logits(module, output, layout)

    def _computes(self, router: Router) -> bool:
        last = self.last_layer
        return router.decoder_layer >= self.first_layer and (last is None or router.decoder_layer <= last)

    def _route(self, router: Router, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._refuse_other_threads()
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
        if self.trainable is not None:
            edits = self.trainable.join(edits, layout, router.layer)
        if edits is None and self.recorder is None and self.reweigh is None:
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
        if self.recorder is None and self.reweigh is None and (edits is None or edits.outside is None):
            return output
        realised = chosen_experts(output, router, tokens, tap.chosen)  # shape: [B * T, k]
        if edits is not None and edits.outside is not None:
            outside = edits.outside.to(realised.device)
            used = outside[realised] if outside.dim() == 1 else outside.gather(-1, realised)
            self._violations.append((router.layer, used.any()))
        if self.recorder is not None:
            self.recorder.add(router.layer, layout, tap.raw.reshape(-1, router.experts), realised)
        if self.reweigh is not None:
            raw = tap.raw.reshape(-1, router.experts)
            free = raw if edits is None else replace(edits, outside=None).apply(raw, tap.x)
            return self.reweigh(router, output, realised, free)
        return output


def _within_generate() -> bool:
    """Whether this forward belongs to a `generate` that was taken from the model before control began."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "generate" and str(frame.f_globals.get("__name__")).startswith("transformers."):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _refuse_bad_logits(model: nn.Module, output: Any, layout: Layout) -> None:
    """Refuse NaN and +inf at real tokens, of all or of the last one; what stands at padding is nobody's."""
    logits = output.logits if hasattr(output, "logits") else None
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[1] not in (1, layout.position.shape[1]):
        return
    real = (layout.position >= 0)[:, -logits.shape[1] :].to(logits.device)  # shape: [B, 1] or [B, T]
    if bool((~torch.isfinite(logits.detach().amax(-1)) & real).any()):
        raise BadLogits(
            f"{type(model).__name__} returned NaN or infinite logits under this routing",
            "Use a weaker one (a smaller alpha), or another dtype, such as bfloat16",
        )
