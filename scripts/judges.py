"""How often `refusal`, behind the tests for reasoning and degeneration, is right on the labelled set of the tests.

    python scripts/judges.py [--wrong]

Sensitivity and specificity of each label against the rest, with 95 % Wilson intervals, on the part that lists and
thresholds were tuned on and on the part that was held out. `--wrong` shows what was judged wrongly in the tuned part.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "judges"))

from labelled import Labelled, Part, Truth, labelled

from pointsman.judges.refusal import RefusalJudge
from pointsman.judges.types import Answer, Verdict, judged
from pointsman.stats.intervals import wilson


def verdicts_on(items: Sequence[Labelled]) -> list[Verdict]:
    """What the judge says of each."""
    return judged(RefusalJudge(), [i.asked() for i in items], [Answer(i.text, i.finished) for i in items])


def shares(items: Sequence[Labelled], verdicts: Sequence[Verdict], label: Truth) -> tuple[list[bool], list[bool]]:
    """Of those that are of this label: whether it was found. Of the others: whether it was not said of them."""
    pairs = list(zip(items, verdicts, strict=True))
    return [v.label == label for i, v in pairs if i.truth == label], [
        v.label != label for i, v in pairs if i.truth != label
    ]


def main() -> None:
    for part in get_args(Part):
        items = labelled(part)
        verdicts = verdicts_on(items)
        print(f"{part}: {len(items)} answers")
        for label in get_args(Truth):
            for name, hits in zip(("sensitivity", "specificity"), shares(items, verdicts, label), strict=True):
                rate = sum(hits) / len(hits)
                low, high = wilson(rate, len(hits))
                print(f"  {label:9} {name} {rate:6.1%} ({low:.1%} to {high:.1%}), {sum(hits)} of {len(hits)}")
        if "--wrong" in sys.argv and part == "tuned":
            for item, verdict in zip(items, verdicts, strict=True):
                if verdict.label != item.truth:
                    print(f"  {item.truth} is {verdict.label} ({verdict.reason}): {item.kind}: {item.text[:110]!r}")


if __name__ == "__main__":
    main()
