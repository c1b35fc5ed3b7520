"""`control`: apply an intervention to a transformers model within a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from pointsman.routing.calling import without_wrappers
from pointsman.routing.controller import Controller, refuse_nested
from pointsman.routing.given import HasIntervention, warn_of_other_weights
from pointsman.routing.intervention import Intervention
from pointsman.routing.layout import Layout
from pointsman.routing.proof import Proof, prove
from pointsman.routing.routers import find_routers
from pointsman.routing.trace import Recorder

__all__ = ["Controller", "Layout", "Proof", "control", "prove"]


@contextmanager
def control(
    model: nn.Module,
    intervention: Intervention | HasIntervention | Sequence[Intervention | HasIntervention | None] | None = None,
    *,
    trace: bool = False,
    prompt_lengths: Sequence[int] | None = None,
) -> Iterator[Controller]:
    """Apply `intervention` to every forward of `model` inside the ``with`` block.

    On the first use for a model, control proves itself (see `prove`). It always unwinds, also after an exception in
    the middle of a forward.

    Args:
        model: A transformers MoE model, or a wrapper of one (PEFT). Call it, or its ``generate``, as usual.
        intervention: One for all rows of a batch, or a sequence with one (or None) for each row. A `Steering` will do.
        trace: Record raw logits and realised experts; read them from ``controller.trace()``.
        prompt_lengths: Real prompt tokens of each row, if a forward holds prompt and answer together (scoring), or if
            you read a prompt in parts. Without it, ``generate`` says which tokens are prompt and which answer; in a
            forward by hand all tokens are prefill if nothing is cached, one token after a cache is decode, and
            several are refused where a rule or a trace needs to know.

    Raises:
        NoRouters, UncontrollableRouter, ControlFailed, InterventionError, WrongModel
    """
    model = without_wrappers(model)
    routers = find_routers(model)
    refuse_nested(model, routers)
    proof = prove(model)
    controller = Controller(model, routers, proof.fingerprint)
    controller.set(intervention, prompt_lengths=prompt_lengths)
    warn_of_other_weights(intervention, model)
    if trace:
        controller.recorder = Recorder(len(controller.routers))
    with controller.attached():
        yield controller
