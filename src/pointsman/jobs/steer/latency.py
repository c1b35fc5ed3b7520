"""What a mask costs in time: the same prompts generated with and without it, in turns, per forward of the model.

On a CPU seconds are processor seconds, which other load hurts less; elsewhere they are wall seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.jobs.steer.candidates import mark
from pointsman.routing.intervention import Intervention
from pointsman.runs.progress import ProgressLike
from pointsman.runs.run import Run
from pointsman.stats.resampling import bootstrap_median

ROWS = 64


def latency(
    engine: Engine,
    behaviours: Sequence[Behaviour],
    routing: Intervention,
    *,
    rounds: int,
    run: Run,
    progress: ProgressLike,
    max_new_tokens: int,
    system: str | None = None,
) -> dict[str, Any] | None:
    """Median ratio of the times of paired rounds, with a bootstrap interval over rounds; remembered by the run.

    Returns:
        None if no rounds are asked for, or nothing to generate from.
    """
    if not rounds or not behaviours:
        return None

    def compute() -> dict[str, Any]:
        prompts = [engine.encode(b.turns, system=system) for b in behaviours[:ROWS]]

        clock = time.process_time if engine.info.device == "cpu" else time.perf_counter

        def seconds(rules: Intervention | None) -> float:
            began, before = clock(), engine.cost.forwards
            engine.generate(prompts, routing=rules, max_new_tokens=max_new_tokens)  # ends with tokens on the host
            return (clock() - began) / max(engine.cost.forwards - before, 1)  # answers may differ in length

        seconds(None), seconds(routing)  # warm up
        pairs = []
        for n in range(rounds):  # who comes first takes turns
            first = seconds(routing if n % 2 else None)
            second = seconds(None if n % 2 else routing)
            pairs.append((second, first) if n % 2 else (first, second))
            stage.advance()
        ratio, low, high = bootstrap_median([steered / plain for plain, steered in pairs])
        return {
            "ratio": ratio, "low": low, "high": high, "rounds": rounds,
            "rows": len(prompts), "seconds_per_forward": float(np.median([p for p, _ in pairs])),
        }  # fmt: skip

    with progress.stage("Latency", rounds) as stage:
        key = f"latency/{mark(routing)}"
        if key in run:
            stage.skip(rounds)
        found: dict[str, Any] = run.remember(key, compute)
    return found
