"""What a mask costs in time: the same prompts generated with and without it, in turns, per forward of the model.

On a CPU seconds are processor seconds, which other load hurts less; elsewhere they are wall seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.jobs.steer.candidates import digest_of
from pointsman.jobs.steer.question import ScenarioQuestion
from pointsman.jobs.steer.results import Latency
from pointsman.routing.intervention import Intervention
from pointsman.runs.bench import Bench
from pointsman.stats.resampling import bootstrap_median

ROWS = 64


def time_latency(
    bench: Bench[ScenarioQuestion], behaviours: Sequence[Behaviour], routing: Intervention, rounds: int
) -> Latency | None:
    """Median ratio of the times of paired rounds, with a bootstrap interval over rounds; remembered by the run.

    Returns:
        None if no rounds are asked for, or nothing to generate from.
    """
    if not rounds or not behaviours:
        return None
    engine = bench.engine

    def compute() -> dict[str, Any]:
        prompts = [engine.encode(b.turns, system=bench.question.scenario.system) for b in behaviours[:ROWS]]

        clock = time.process_time if engine.info.device == "cpu" else time.perf_counter

        def seconds(rules: Intervention | None) -> float:
            began, before = clock(), engine.cost.forwards
            engine.generate(prompts, routing=rules, max_new_tokens=bench.answer_tokens)  # ends with tokens on the host
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

    with bench.progress.stage("Latency", rounds) as stage:
        key = f"latency/{digest_of(routing)}"
        if key in bench.run:
            stage.skip(rounds)
        return Latency(**bench.run.remember(key, compute))
