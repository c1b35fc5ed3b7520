"""Train the testbed: three families, three training seeds each. Resumable at any moment; ten minutes a checkpoint.

    python scripts/testbed.py [NAME ...]     # train and measure what is missing, freeze hashes, write the table
    python scripts/testbed.py --table        # only the table in docs/testbed.md

The first seed of every family ships in the package; the others are kept with the evidence.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

import pointsman
from pointsman.testbed.models import CHECKPOINTS, FAMILIES, KEPT, locate, record_hashes
from pointsman.testbed.properties import Property, broken, measure, read, write
from pointsman.testbed.train import Progress, train

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "evidence" / "work" / "testbed"
PAGE = ROOT / "docs" / "testbed.md"
BEGIN, END = "<!-- properties:begin (python scripts/testbed.py --table) -->", "<!-- properties:end -->"
SEEDS = (0, 1, 2)
NAMES = {(family, seed): family if seed == 0 else f"{family}-seed{seed}" for family in FAMILIES for seed in SEEDS}


def home(seed: int) -> Path:
    """Where a checkpoint is kept."""
    return CHECKPOINTS if seed == 0 else KEPT


def make(family: str, seed: int) -> None:
    """Train and measure one checkpoint, or finish it, and put it where it is kept."""
    name = NAMES[family, seed]
    work, kept = WORK / name, home(seed) / name
    if kept.is_dir():
        return
    if not (work / "testbed.json").exists():
        train(family, work, seed=seed, on_progress=lambda at: _say(name, at))
    properties = measure(pointsman.load(str(work)))
    write(properties, work)
    for outside in broken(properties):
        print(f"{name}: {outside.name} {outside.value}, not {outside.bounds}", flush=True)
    unfinished = WORK / f"{name}.new"  # so that a copy that was cut off is not taken for the checkpoint
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(work, unfinished)
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(kept)


def _say(name: str, at: Progress) -> None:
    left = f"{at.eta / 60:.0f} min left"
    if at.step % 50 == 0:
        print(
            f"{name}: {at.phase}, step {at.step} of {at.steps}, loss {at.loss:.3f}, {left}",
            flush=True,
        )


def table() -> str:
    """Every property of every checkpoint that is here."""
    columns = {
        name: read(locate(f"testbed:{name}")) for (_, seed), name in NAMES.items() if (home(seed) / name).is_dir()
    }
    if not columns:
        return ""
    first: tuple[Property, ...] = next(iter(columns.values()))
    rows = ["| share of | bounds | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for n, row in enumerate(first):
        values = [f"**{p[n].value}**" if not p[n].holds else p[n].value for p in columns.values()]
        rows.append(f"| {row.name.strip()} | {row.bounds} | " + " | ".join(values) + " |")
    return "\n".join(rows)


def write_table() -> None:
    """Put the table into its page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    if arguments != ["--table"]:
        unknown = set(arguments) - set(NAMES.values())
        if unknown:
            sys.exit(f"Unknown checkpoint {sorted(unknown)[0]}. Known: {', '.join(NAMES.values())}.")
        for (family, seed), name in NAMES.items():
            if not arguments or name in arguments:
                make(family, seed)
        record_hashes()
    write_table()


if __name__ == "__main__":
    main(sys.argv[1:])
