"""What the testbed's models know of what they refuse: correct content after a forced beginning, routing as it is.

    python scripts/known_content.py CHECKPOINT...

A yardstick for attacks that end a refusal, and no bound: the target stands as the beginning of the answer, and the
model goes on. Asked of the test requests of evidence/guided-CHECKPOINT.json.
"""

from __future__ import annotations

import sys

import rows
from evidence_files import EVIDENCE

import pointsman
from pointsman.judges.types import Answer
from pointsman.testbed.plugin import TestbedJudge, load_suite


def known(checkpoint: str) -> tuple[int, int]:
    """How many requests are met correctly, and of how many."""
    engine = pointsman.load(f"testbed:{checkpoint}")
    shipped = rows.read(EVIDENCE / "rows" / f"guided-{checkpoint}.csv.gz")
    asked = {row.id for row in shipped if (row.list, row.split) == ("restricted", "test")}
    behaviours = [behaviour for behaviour in load_suite().restricted if behaviour.id in asked]
    begun = [engine.encode(b.turns).continued(tuple(engine.encode_target(b.target))) for b in behaviours]
    answers = engine.generate(begun, max_new_tokens=48)
    texts = [Answer(f"{b.target} {answer.text}") for b, answer in zip(behaviours, answers, strict=True)]
    return sum(verdict.success for verdict in TestbedJudge().judge(behaviours, texts)), len(behaviours)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, "{} of {}".format(*known(name)))
