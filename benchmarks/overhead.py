"""What control and traces cost beside the untouched model, in rounds that take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from clock import Clock, Figure, spread

from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Prompt
from pointsman.routing.control import Controller
from pointsman.routing.intervention import Intervention

Say = Callable[[str], None]


def in_turn(works: Sequence[Callable[[], Any]], rounds: int, clock: Clock) -> list[list[float]]:
    """Every work once in each round, another one first each time. Shape: [works, rounds], in seconds."""
    for work in works:
        work()  # warm
    seconds: list[list[float]] = [[0.0] * rounds for _ in works]
    for number in range(rounds):
        for place in range(len(works)):
            which = (number + place) % len(works)
            seconds[which][number] = clock.seconds(works[which])
    return seconds


def generation(
    engine: HFEngine, prompts: Sequence[Prompt], tokens: int, rounds: int, asked: float | None, clock: Clock, say: Say,
    what: str,
) -> tuple[list[Figure], dict[str, Any]]:  # fmt: skip
    """Generation under control that does nothing, and under a constant bias, against the untouched model.

    Attaching and undoing control is part of what is timed, as it is for a user. The bias is the same for all experts
    of a layer, so that it chooses no others: the answers stay, and only control is timed. (Other experts take another
    time, more or less, which is the model's own.)
    """
    say(f"generation: {what}, {rounds} rounds")
    idle = Controller(engine.model, engine.routers, engine.proof.fingerprint)
    bias = Intervention.bias({r.layer: [0.25] * r.experts for r in engine.routers})

    def untouched() -> None:
        engine.generate(prompts, max_new_tokens=tokens)

    def nothing() -> None:
        with idle.attached():
            engine.generate(prompts, max_new_tokens=tokens)

    def biased() -> None:
        engine.generate(prompts, max_new_tokens=tokens, routing=bias)

    before = engine.cost.copy()
    answers = engine.generate(prompts, max_new_tokens=tokens)
    forwards = (engine.cost - before).forwards
    same = sum(a.ids == b.ids for a, b in zip(
        answers, engine.generate(prompts, max_new_tokens=tokens, routing=bias), strict=True))  # fmt: skip
    seconds = in_turn([untouched, nothing, biased], rounds, clock)
    calls = forwards * len(engine.routers)
    figures = []
    details: dict[str, Any] = {"what": what, "forwards": forwards, "router_calls": calls, "untouched": seconds[0]}
    details["same_answers"] = f"{same} of {len(prompts)} under the bias"
    for name, took in (("control that does nothing", seconds[1]), ("a constant bias", seconds[2])):
        ratios = [100 * (other / plain - 1) for plain, other in zip(seconds[0], took, strict=True)]
        extra = [1e6 * (other - plain) / calls for plain, other in zip(seconds[0], took, strict=True)]
        figures.append(
            Figure("generation", f"{name}: {what}", unit="%", asked=asked, bound="most", n=f"{rounds} paired rounds",
                   note=f"{statistics.median(extra):.0f} [{min(extra):.0f}, {max(extra):.0f}] µs a router call",
                   **spread(ratios))
        )  # fmt: skip
        details[name] = {"seconds": took, "microseconds_a_router_call": extra}
    return figures, details


def trace(
    engine: HFEngine, prompts: Sequence[Prompt], rounds: int, asked: float | None, clock: Clock, say: Say, what: str
) -> tuple[list[Figure], dict[str, Any]]:
    """Trace collection against plain forwards of the very same batches."""
    say(f"trace: {what}, {rounds} rounds")
    batches: list[dict[str, Any]] = []

    def keep(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batches.append(kwargs)

    hook = engine.model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        engine.trace(prompts)
    finally:
        hook.remove()

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                engine.model(**batch)

    seconds = in_turn([plain, lambda: engine.trace(prompts)], rounds, clock)
    shares = [100 * forward / traced for forward, traced in zip(*seconds, strict=True)]
    tokens = sum(map(len, prompts))
    figure = Figure(
        "trace", f"trace collection, speed against a plain forward: {what}", unit="%", asked=asked,
        n=f"{rounds} paired rounds", note=f"{tokens:,} tokens in {len(batches)} batches", **spread(shares),
    )  # fmt: skip
    return [figure], {"what": what, "plain": seconds[0], "traced": seconds[1], "batches": len(batches)}


def matrix_rate(device: str, dtype: torch.dtype, size: int, clock: Clock) -> float:
    """The device's own rate in FLOP/s: the best of ten products of square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(clock.seconds(lambda: a @ b) for _ in range(10))
