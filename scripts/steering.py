"""Measure what the README claims of steering: `pointsman steer` on the shipped testbed checkpoints, two at a time.

    python scripts/steering.py [NAME ...]

Runs live in evidence/work (not committed); what the tables need is written to evidence/steering-<name>.json.
Resumable at any moment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "evidence" / "work"

# Name -> checkpoint, scenario, options of `pointsman steer`. The headline learns with three method seeds and is scored
# on all test prompts. The second family and the other training seeds show the spread.
HEADLINE = [
    *("--limit", "0", "--learn", "0", "--validate", "150", "--method-seeds", "3", "--latency-rounds", "9"),
    *("--random-draws", "5"),
]
SECOND = ["--limit", "120", "--validate", "150", "--surrogate-seeds", "1", "--random-draws", "3"]
MATURE = [
    *("--limit", "150", "--learn", "0", "--validate", "150", "--surrogate-seeds", "1", "--random-draws", "2"),
    *("--lesson-tokens", "12", "--latency-rounds", "0", "--through-hold", "2"),
]
PLAN: dict[str, tuple[str, str, list[str]]] = {
    "defence-olmoe": ("testbed:olmoe", "multi_turn_defence", HEADLINE),
    "defence-qwen2_moe": ("testbed:qwen2_moe", "multi_turn_defence", SECOND),
    "mature-olmoe": (
        "testbed:olmoe",
        "mature_content",
        [*MATURE, "--through-hold", "4", "--through-steps", "600", "--upper-bound"],
    ),
    "mature-qwen2_moe": (
        "testbed:qwen2_moe",
        "mature_content",
        [*MATURE, "--through-hold", "3", "--through-steps", "450"],
    ),
    "defence-olmoe-seed1": ("testbed:olmoe-seed1", "multi_turn_defence", SECOND),
    "defence-olmoe-seed2": ("testbed:olmoe-seed2", "multi_turn_defence", SECOND),
}


def measure(name: str, checkpoint: str, scenario: str, options: list[str]) -> None:
    """Steer (or finish steering) one checkpoint, and keep what the tables need."""
    run = WORK / f"steering-{name}"
    command = [sys.executable, "-m", "pointsman.cli"]
    if (run / "manifest.json").exists():
        command += ["resume", str(run)]
    else:
        command += ["steer", checkpoint, "--scenario", scenario, *options, "--out", str(run)]
    subprocess.run(command, check=True, cwd=ROOT)
    results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    kept = {
        "name": name,
        "checkpoint": checkpoint.removeprefix("testbed:"),
        "made_by": f"pointsman steer {checkpoint} --scenario {scenario} {' '.join(options)}",
        **{key: value for key, value in results.items() if key != "provenance"},
        "provenance": {k: v for k, v in results["provenance"].items() if k != "command"},
    }
    kept["candidates"] = [c for c in results["candidates"] if c["stage"] == "fine"]
    target = ROOT / "evidence" / f"steering-{name}.json"
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    unknown = set(names) - set(PLAN)
    if unknown:
        sys.exit(f"Unknown name {sorted(unknown)[0]}. Known: {', '.join(PLAN)}.")
    wanted = [(name, *plan) for name, plan in PLAN.items() if not names or name in names]
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:  # each is a process of one thread
        for _ in pool.map(lambda entry: measure(*entry), wanted):
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
