"""An audit under way on a tiny engine, for tests of single stages; and ways to stop it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines import small_engine
from judging import OneByOne
from pointsman.data.types import Behaviour, Conversation, Split, Suite
from pointsman.engine.hf import HFEngine
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import AuditPrompts
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.parameters import plain
from pointsman.judges.types import Answer, Verdict
from pointsman.runs.bench import Bench
from pointsman.runs.run import Run
from pointsman.testbed.language import Kind, requests

TINY = Audit(
    limit=4, samples=3, routers=2, random_draws=2, max_new_tokens=3, utility_prompts=2, noise=(0.5, 2.0),
    phases=("prefill", "both"),
)  # fmt: skip


def stop(run: Run, units: int) -> None:
    """Let a run end, as if by Ctrl-C, after so many units that it does not know yet."""
    remember, left = run.remember, [units]

    def until(key: str, compute: Any) -> Any:
        if key not in run:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return remember(key, compute)

    run.remember = until  # type: ignore[method-assign]


class ManyJudge(OneByOne):
    """A verdict that is a pure function of the answer, of every kind."""

    name, version, grades_content = "many", "1", True

    def one(self, asked: Behaviour | Conversation, answer: Answer) -> Verdict:
        labels = ("refused", "correct", "wrong", "garbage")
        label = labels[hashlib.sha256(answer.text.encode()).digest()[0] % len(labels)]
        return Verdict(label, 1.0 if label == "correct" else 0.0)  # type: ignore[arg-type]


class OneJudge(ManyJudge):
    """Says one thing."""

    def __init__(self, label: str) -> None:
        self.label = label

    def one(self, asked: Behaviour | Conversation, answer: Answer) -> Verdict:
        return Verdict(self.label, 1.0 if self.label == "correct" else 0.0)  # type: ignore[arg-type]


def asked(count: int = 4, *, benign: int = 3) -> AuditPrompts:
    """A few requests of every kind; each split has its own."""

    def some(kind: Kind, split: Split, number: int) -> tuple[Behaviour, ...]:
        return tuple(
            Behaviour(r.id, r.text, r.target, r.category, r.source, split)
            for r in requests(kind, split, limit=number)
        )  # fmt: skip

    return AuditPrompts(
        discovery=some("restricted", "discovery", count),
        test=some("restricted", "test", count),
        benign=some("benign", "test", benign),
        benign_discovery=some("benign", "discovery", benign),
    )


@contextmanager
def audit_bench(
    folder: Path,
    plan: Audit = TINY,
    *,
    judge: Any = None,
    engine: HFEngine | None = None,
    stop_after: int | None = None,
) -> Iterator[Bench[AuditQuestion]]:
    """An audit under way in `folder`, resumed if there is one; stopped as if by Ctrl-C after so many units."""
    with Run.create(folder, "audit", plain(plan)) as run:
        if stop_after is not None:
            stop(run, stop_after)
        question = AuditQuestion(Suite("tiny", (), max_new_tokens=3), judge or ManyJudge())
        yield Bench(engine or small_engine(), question, run, max_new_tokens=plan.max_new_tokens)


def costs(bench: Bench[Any]) -> dict[str, dict[str, float]]:
    """What every stage has cost, without the clock."""
    return {stage: {k: v for k, v in cost.items() if k != "seconds"} for stage, cost in bench.costs.items()}
