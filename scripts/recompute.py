"""Count the rates of the evidence again, from the outcomes of every row that ship with it.

    python scripts/recompute.py [NAME ...]

For every evidence/<name>.json with rows in evidence/rows/<name>.csv.gz it says how many numbers were counted again, and
each that the rows do not give. Ends with 1 if there is one, or if a file has no rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import rows
from evidence_files import EVIDENCE, RECOUNT, ROWS, read
from evidence_plan import read_plan


def recount(name: str) -> tuple[int, list[str]]:
    """How many numbers of a file were counted again, and what is wrong with it."""
    evidence, file = read(EVIDENCE / f"{name}.json"), EVIDENCE / "rows" / f"{name}.csv.gz"
    if evidence is None:
        return 0, [f"{name}: there is no evidence"]
    if not file.exists():
        return 0, [f"{name}: its rows are not there"]
    found = list(RECOUNT[evidence["job"]](evidence, rows.read(file)))
    return len(found), [f"{name}: {r.where} is {r.said}, counted {r.counted}" for r in found if not r.agrees]


def main(names: Sequence[str]) -> int:
    planned = [run.name for run in read_plan(EVIDENCE / "plan.yaml") if run.kind in ROWS]
    wrong = 0
    for name in names or [name for name in planned if (EVIDENCE / f"{name}.json").exists()]:
        counted, said = recount(name)
        wrong += len(said)
        print("\n".join(said) if said else f"{name}: {counted} numbers counted again, all as said")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
