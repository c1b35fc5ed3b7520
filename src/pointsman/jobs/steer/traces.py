"""Contexts as traces on disk: raw router logits at the last user message (METHODS section 5, step 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pointsman.engine.types import Engine, Prompt
from pointsman.errors import DataError
from pointsman.jobs.steer.contexts import Context
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.methods.steermoe import Activations
from pointsman.routing.intervention import Intervention
from pointsman.routing.store import TraceStore, TraceWriter, discard_if_damaged
from pointsman.runs.bench import Bench

TOGETHER = 64  # contexts in one trace, at most
_BYTES = 128 << 20  # of the logits of all their prompt tokens


def user_span(prompt: Prompt, name: str) -> np.ndarray:
    """Positions of the tokens of the last user message. Shape: [T].

    Raises:
        DataError: The chat template leaves none.
    """
    places = [n for n, role in enumerate(prompt.roles) if role == "content"]
    if not places:
        raise DataError(
            f"The chat template of {name} leaves no token of the last user message",
            "Give a template that writes user messages unchanged, with --chat-template FILE",
        )
    return np.array(places, dtype=np.int64)


def collect_traces(bench: Bench[SteerQuestion], contexts: Sequence[Context], name: str) -> TraceStore:
    """The traces of some contexts, an artefact of the run; what is damaged is collected again, the same."""
    folder = bench.run.path(f"artefacts/traces-{name}")
    discard_if_damaged(folder)
    with bench.stage("traces", f"Traces, {name}", len(contexts)) as steps:
        write_traces(bench.engine, contexts, folder, system=bench.question.scenario.system, advance=steps.advance)
    bench.run.note_files(f"artefacts/traces-{name}")
    return open_traces(folder, contexts, [router.experts for router in bench.engine.routers])


def write_traces(
    engine: Engine,
    contexts: Sequence[Context],
    folder: Path,
    *,
    system: str | None = None,
    routing: Intervention | None = None,
    shift: Sequence[np.ndarray] | None = None,
    advance: Callable[[int], None] = lambda units: None,
) -> None:
    """Append the traces of contexts to a store, in their order; those that it holds already are skipped.

    Args:
        routing: In force meanwhile.
        shift: Added to the logits that are stored: with `routing`, they are then those that routing saw. Shapes: [E_l].

    Raises:
        DataError: A user message cannot be located in the chat template.
    """
    with TraceWriter(folder, experts=[router.experts for router in engine.routers]) as writer:
        for part, prompts in _together(engine, contexts, system):
            missing = [context.id not in writer.ids for context in part]
            if any(missing):  # all of them: what is beside a prompt must not depend on what was done before
                spans = [user_span(prompt, engine.info.name) for prompt in prompts]
                trace = engine.trace(prompts, routing=routing)
                for row in np.flatnonzero(missing).tolist():
                    layers = [layer.select(row=row) for layer in trace.layers]
                    logits = [layer.logits[np.isin(layer.position, spans[row])] for layer in layers]
                    if shift is not None:
                        logits = [x + s.astype(np.float32) for x, s in zip(logits, shift, strict=True)]
                    writer.add(part[row].id, logits)
            advance(len(part))


def open_traces(folder: Path, contexts: Sequence[Context], experts: Sequence[int]) -> TraceStore:
    """The store of just these contexts, in this order.

    Raises:
        DataError: It holds others.
    """
    store = TraceStore.open(folder)
    if list(store.ids) != [c.id for c in contexts] or store.experts != tuple(experts):
        raise DataError(f"{folder} holds the traces of other contexts", "Delete that folder: they are collected again")
    return store


def activations(engine: Engine, contexts: Sequence[Context], *, system: str | None = None) -> Activations:
    """How often every expert is activated at the last user message (METHODS section 6)."""
    total = Activations(0, tuple(np.zeros(router.experts, dtype=np.int64) for router in engine.routers))
    for _, prompts in _together(engine, contexts, system):
        spans = [user_span(prompt, engine.info.name) for prompt in prompts]
        trace = engine.trace(prompts)
        counts, tokens = [], 0
        for router, layer in zip(engine.routers, trace.layers, strict=True):
            here = np.zeros(len(layer), dtype=bool)
            for row, span in enumerate(spans):
                here |= (layer.row == row) & np.isin(layer.position, span)
            tokens = int(here.sum())
            counts.append(np.bincount(layer.experts[here].reshape(-1), minlength=router.experts).astype(np.int64))
        total = total + Activations(tokens, tuple(counts))
    return total


def _together(
    engine: Engine, contexts: Sequence[Context], system: str | None
) -> Iterator[tuple[list[Context], list[Prompt]]]:
    """The contexts in their order with their prompts, in parts whose logits take bounded memory."""
    wide = 4 * sum(router.experts for router in engine.routers)  # bytes of one token
    part: list[Context] = []
    prompts: list[Prompt] = []
    for context in contexts:
        prompt = context.prompt(engine, system)
        tokens = len(prompt) + sum(map(len, prompts))
        if part and (len(part) == TOGETHER or tokens * wide > _BYTES):
            yield part, prompts
            part, prompts = [], []
        part.append(context)
        prompts.append(prompt)
    if part:
        yield part, prompts
