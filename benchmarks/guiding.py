"""How fast Guided finds routes, beside our own fast F-SOUR on the same prompts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from clock import Clock, Figure

from pointsman.data.types import Behaviour
from pointsman.engine.hf import HFEngine
from pointsman.methods.fsour import FSour
from pointsman.methods.guided import Guided
from pointsman.methods.routes import Found

ROUNDS = 3


def guided(
    engine: HFEngine, behaviours: Sequence[Behaviour], clock: Clock, say: Callable[[str], None], rounds: int = ROUNDS
) -> tuple[list[Figure], dict[str, Any]]:
    """Guided : F-SOUR (N = 10, one search), both until log .8, in rounds that take turns: seconds and forwards."""
    blind, aimed = FSour(restarts=1), Guided()
    for method in (blind, aimed):
        method.find_routes(engine, behaviours[:2], 0)  # warm
    seconds: dict[str, list[float]] = {"fsour": [], "guided": []}
    found: dict[str, list[Found]] = {}
    for number in range(rounds):
        say(f"Guided and F-SOUR: {len(behaviours)} prompts, round {number + 1} of {rounds}")
        for name, method in (("fsour", blind), ("guided", aimed)):
            took, found[name] = clock.timed(lambda m=method: m.find_routes(engine, behaviours, 0))
            seconds[name].append(took / len(behaviours))
    ratios = [slow / fast for slow, fast in zip(seconds["fsour"], seconds["guided"], strict=True)]
    rows = {name: [f.rows for f in each] for name, each in found.items()}
    pairs = {name: [len(f.steps) for f in each] for name, each in found.items()}
    arrived = {
        name: sum(bool(f.steps) and f.steps[-1].log_prob >= aimed.log_tau for f in each) for name, each in found.items()
    }
    told = f"{len(behaviours)} prompts side by side, {rounds} rounds in turns"
    reached = f"log .8 reached at {arrived['guided']} (Guided) and {arrived['fsour']} (F-SOUR) of {len(behaviours)}"
    gradient = engine.route_gradients(*_one(engine, behaviours[0]))[0].forwards
    forwards = {name: statistics.median(of) for name, of in rows.items()}
    each = " and ".join(f"{1e3 * statistics.median(seconds[name]):.0f} ms" for name in ("guided", "fsour"))
    figures = [
        Figure("guided", "seconds a prompt, F-SOUR : Guided, N = 10, one search", statistics.median(ratios), "x", 10.0,
               n=told, low=min(ratios), high=max(ratios), note=f"{each}; {reached}"),
        Figure("guided", "forwards a prompt, F-SOUR : Guided, medians", forwards["fsour"] / forwards["guided"], "x",
               15.0, n=f"{len(behaviours)} prompts",
               note=f"{forwards['fsour']:.0f} and {forwards['guided']:.1f}; a gradient counts {gradient:.1f}"),
        Figure("guided", "forced pairs of Guided, median", statistics.median(pairs["guided"]), "", 6.0, "most",
               n=f"{len(behaviours)} prompts", low=min(pairs["guided"]), high=max(pairs["guided"]),
               note=f"F-SOUR: {statistics.median(pairs['fsour']):.0f}"),
    ]  # fmt: skip
    return figures, {"seconds_a_prompt": seconds, "rows": rows, "pairs": pairs, "arrived": arrived}


def _one(engine: HFEngine, behaviour: Behaviour) -> tuple[Any, Any]:
    return [engine.encode(behaviour.turns)], [engine.encode_target(behaviour.target)]
