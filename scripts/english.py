"""Train the adapters of the English testbed. One thread; resumes where it stopped. See docs/testbed.md.

    python scripts/english.py --out FOLDER

Writes FOLDER/adapters.safetensors, which belongs to src/pointsman/testbed/english; its hash belongs to build.py.
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

import torch

from pointsman.testbed.english import dense
from pointsman.testbed.english.teach import Recipe, Teaching


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    chosen = parser.parse_args()
    torch.set_num_threads(1)

    def say(text: str) -> None:
        print(f"{datetime.now():%H:%M:%S} {text}", flush=True)

    say("About 15 minutes of preparation and 75 of training, on a processor with bfloat16")
    teaching = Teaching(*dense.load(dense.find()), chosen.out, Recipe(steps=chosen.steps), say)
    teaching.prepare()
    say(f"Wrote {teaching.run()}")


if __name__ == "__main__":
    main()
