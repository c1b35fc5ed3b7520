"""Contexts as traces on disk: raw router logits at the last user message (METHODS section 5, step 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointsman.engine.learning import Lesson
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
        for part in together(engine, _readings(engine, contexts, system)):
            missing = [reading.id not in writer.ids for reading in part]
            if any(missing):  # all of them: what is beside a prompt must not depend on what was done before
                trace = engine.trace([reading.prompt for reading in part], routing=routing)
                for row in np.flatnonzero(missing).tolist():
                    layers = [layer.select(row=row) for layer in trace.layers]
                    logits = [layer.logits[np.isin(layer.position, part[row].span)] for layer in layers]
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
    """How often every expert is activated where contexts are traced (METHODS section 6)."""
    return _counted(engine, _readings(engine, contexts, system))


def response_activations(engine: Engine, lessons: Sequence[Lesson]) -> Activations:
    """How often every expert is activated at the tokens of answers, each read behind its own prompt.

    So SteerMoE counts, on the same requests answered in two ways. The end token is no part of an answer.
    """
    return _counted(engine, (_answer_of(engine, lesson) for lesson in lessons))


# ---------------------------------------------------------------------- what is read, and where


@dataclass(frozen=True)
class Reading:
    """A prompt, and the positions in it that are wanted. Shape: [T]."""

    id: str
    prompt: Prompt
    span: np.ndarray


def _readings(engine: Engine, contexts: Iterable[Context], system: str | None) -> Iterator[Reading]:
    """Contexts with the tokens of their last user messages, and of what of their answers is read along."""
    for context in contexts:
        prompt = context.prompt(engine, system)
        begun = context.beginning(engine)[: engine.info.context - len(prompt)]
        answer = np.arange(len(prompt), len(prompt) + len(begun))
        span = np.concatenate([user_span(prompt, engine.info.name), answer])
        yield Reading(context.id, prompt.continued(begun), span)


def _answer_of(engine: Engine, lesson: Lesson) -> Reading:
    answer = lesson.answer[:-1] if lesson.answer[-1:] == (engine.end_token,) else lesson.answer
    first = len(lesson.prompt)
    return Reading("", lesson.prompt.continued(answer), np.arange(first, first + len(answer)))


def _counted(engine: Engine, readings: Iterable[Reading]) -> Activations:
    total = Activations(0, tuple(np.zeros(router.experts, dtype=np.int64) for router in engine.routers))
    for part in together(engine, readings):
        trace = engine.trace([reading.prompt for reading in part])
        counts, tokens = [], 0
        for router, layer in zip(engine.routers, trace.layers, strict=True):
            here = np.zeros(len(layer), dtype=bool)
            for row, reading in enumerate(part):
                here |= (layer.row == row) & np.isin(layer.position, reading.span)
            tokens = int(here.sum())
            counts.append(np.bincount(layer.experts[here].reshape(-1), minlength=router.experts).astype(np.int64))
        total = total + Activations(tokens, tuple(counts))
    return total


def together(engine: Engine, readings: Iterable[Reading]) -> Iterator[list[Reading]]:
    """These in their order, in parts whose logits take bounded memory."""
    wide = 4 * sum(router.experts for router in engine.routers)  # bytes of one token
    part: list[Reading] = []
    for reading in readings:
        tokens = len(reading.prompt) + sum(len(r.prompt) for r in part)
        if part and (len(part) == TOGETHER or tokens * wide > _BYTES):
            yield part
            part = []
        part.append(reading)
    if part:
        yield part
