"""Measure what the README claims: one audit per shipped testbed checkpoint, two at a time. Resumable at any moment.

    python scripts/evidence.py [CHECKPOINT ...]

Runs live in evidence/work (not committed); what the tables need is written to evidence/<checkpoint>.json.
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

# Checkpoint -> options of `pointsman audit`. The shipped seed of each family is measured in full, with three method
# seeds; the two other training seeds show the spread over training, with fewer draws and route searches.
FULL = ["--limit", "200", "--rank-prompts", "60", "--method-seeds", "3"]
SPREAD = ["--limit", "200", "--rank-prompts", "60", "--routers", "2", "--random-draws", "3", "--searches", "100"]
PLAN = {
    "olmoe": FULL,
    "qwen2_moe": FULL,
    "olmoe-seed1": SPREAD,
    "olmoe-seed2": SPREAD,
    "qwen2_moe-seed1": SPREAD,
    "qwen2_moe-seed2": SPREAD,
}


def measure(checkpoint: str, options: list[str]) -> None:
    """Run (or finish) the audit of one checkpoint, and keep what the tables need."""
    run = WORK / checkpoint
    command = [sys.executable, "-m", "pointsman.cli"]
    if (run / "manifest.json").exists():
        command += ["resume", str(run)]
    else:
        command += ["audit", f"testbed:{checkpoint}", *options, "--out", str(run)]
    subprocess.run(command, check=True, cwd=ROOT)
    results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    kept = {
        "checkpoint": checkpoint,
        "made_by": f"pointsman audit testbed:{checkpoint} {' '.join(options)}",
        **{name: value for name, value in results.items() if name != "provenance"},
        "provenance": {k: v for k, v in results["provenance"].items() if k != "command"},
    }
    kept["fsour"] = {k: v for k, v in results["fsour"].items() if k not in ("behaviours", "example")}
    target = ROOT / "evidence" / f"{checkpoint}.json"
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    unknown = set(names) - set(PLAN)
    if unknown:
        sys.exit(f"Unknown checkpoint {sorted(unknown)[0]}. Known: {', '.join(PLAN)}.")
    wanted = {checkpoint: options for checkpoint, options in PLAN.items() if not names or checkpoint in names}
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:  # each audit is a process of one thread
        for _ in pool.map(measure, wanted, wanted.values()):
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
