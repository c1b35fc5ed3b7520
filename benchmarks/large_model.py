"""One guided route on a model as large as OLMoE-1B-7B, on a CPU: seconds and memory, and what was foretold of them.

    python benchmarks/large_model.py [--layers 16] [--prompt 64] [--target 12] [--iterations 1] [--out FILE]

The weights are random, in bfloat16: 13.8 GB, or 7.1 GB with --layers 8. A random model never says its target, so the
search takes as many gradients as --iterations allows and prunes nothing; the forecast is told that, and nothing else.
Memory is what the process holds at most while a route is searched, above what it held with the model loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sizes import OLMOE_1B_7B, SHRUNK, random_prompts, untrained

from pointsman.engine.batching import give_memory_back
from pointsman.engine.pace import time_forwards
from pointsman.jobs.audit.forecast import Assumed, Lengths, guided_search_effort
from pointsman.methods.guided import Guided
from pointsman.runs.provenance import provenance

GIB = 2**30


class Watch:
    """Wall and processor seconds of a block, and by how much it raised the resident memory at its peak, in bytes."""

    def __enter__(self) -> Watch:
        self._over = threading.Event()
        self.before = self.highest = resident()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall, self.processor = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self.highest = max(self.highest, resident())


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    parser = argparse.ArgumentParser(description="One guided route on a large random model.")
    for name, default in (("layers", 16), ("prompt", 64), ("target", 12), ("iterations", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shrunk", action="store_true", help="a tiny model: shows that it runs")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    shape = SHRUNK if asked.shrunk else replace(OLMOE_1B_7B, layers=asked.layers)
    engine = untrained(shape, dtype="bfloat16")
    (behaviour,) = random_prompts(engine, asked.prompt, 1, target=asked.target)
    prompts, targets = [engine.encode(behaviour.turns)], [engine.encode_target(behaviour.target)]
    engine.score(prompts, targets)  # loads what is loaded once
    loaded = resident()

    method = Guided(iterations=asked.iterations, log_tau=0.0, prune=False)
    memory = engine.gradient_memory(prompts, targets, tries=method.tries_together)
    if memory is None:
        raise SystemExit("the memory of this model cannot be foretold")
    with Watch() as first:
        forwards = engine.route_gradients(prompts, targets)[0].forwards  # as an audit does before its forecast
    with Watch() as timing:
        engine_shape, pace = time_forwards(engine, prompts, targets)
    share = timing.processor / timing.wall  # of a processor that this process has: other work runs beside it
    course = Assumed(iterations=asked.iterations, arrives=False, halvings=0, pairs=0)
    effort = guided_search_effort(engine_shape, Lengths.of(engine, [behaviour]), method, forwards, course)
    foretold = pace.seconds(effort)
    print(
        f"{engine.info.name}, {engine.info.parameters / 1e9:.2f} billion weights, {loaded / GIB:.2f} GiB with the model"
    )
    print(f"prompt of {len(prompts[0])} tokens, target of {len(targets[0])}; load {os.getloadavg()[0]:.1f}")
    print(
        f"foretold: {foretold:.0f} s, {share * foretold:.0f} s of a processor, {memory.needed / GIB:.2f} GiB above the "
        "model",
        flush=True,
    )

    with Watch() as forward:
        engine.score(prompts, targets)
    with Watch() as gradient:
        engine.route_gradients(prompts, targets)
    give_memory_back()  # what timing left behind is no part of a route
    before = engine.cost.copy()
    with Watch() as route:
        (found,) = method.find_routes(engine, [behaviour], 0)
    spent = engine.cost - before
    watches = {"first gradient": first, "forward": forward, "gradient": gradient, "route": route}
    print(f"\n{'':<16}{'wall s':>8}{'processor s':>13}{'GiB above the model':>21}")
    for name, each in watches.items():
        print(f"{name:<16}{each.wall:>8.1f}{each.processor:>13.1f}{(each.highest - loaded) / GIB:>21.3f}")
    highest = route.highest - loaded
    print(
        f"\n{found.rows:.1f} forwards of a row counted, {spent.forwards} made; log p {found.before:.1f} to "
        f"{found.steps[-1].log_prob if found.steps else found.before:.1f} by {len(found.steps)} pairs\n"
        f"foretold : measured, wall {foretold / route.wall:.2f}, processor {share * foretold / route.processor:.2f}, "
        f"memory {memory.needed / highest:.2f}; load {os.getloadavg()[0]:.1f}"
    )
    result = {
        "shape": str(shape), "parameters": engine.info.parameters, "loaded_bytes": loaded,
        "prompt_tokens": len(prompts[0]), "target_tokens": len(targets[0]), "iterations": asked.iterations,
        "foretold": {"wall": foretold, "processor": share * foretold, "bytes": memory.needed},
        "measured": {
            name: {"wall": w.wall, "processor": w.processor, "bytes": w.highest - loaded}
            for name, w in watches.items()
        },
        "forwards_of_a_row": found.rows, "load": os.getloadavg()[0], "provenance": provenance(),
    }  # fmt: skip
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
