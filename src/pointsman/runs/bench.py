"""`Bench`: a job under way, as its stages see it. Who answers, what is asked, and where it is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Protocol, TypeVar

from pointsman.data.types import Behaviour, Suite
from pointsman.engine.types import Cost, Engine
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt
from pointsman.methods.play import Played
from pointsman.methods.steps import Steps
from pointsman.runs.progress import NullProgress, ProgressLike, Stage
from pointsman.runs.results import RunCost, StageCost
from pointsman.runs.run import Run


class Question(Protocol):
    """What a job asks: data, read from the user's files. Some jobs ask more than these two."""

    @property
    def suite(self) -> Suite: ...

    @property
    def judge(self) -> Judge: ...


Q = TypeVar("Q", bound=Question, covariant=True)


def _ignore(text: str) -> None:
    """A listener that does not listen."""


@dataclass
class Bench(Generic[Q]):
    """A job under way.

    Attributes:
        model: Who answers; None for a job that needs no model.
        question: What is asked, and who judges.
        run: Where all is remembered.
        progress: Where stages are shown.
        max_new_tokens: Tokens of an answer; None for the suite's.
        command: The command line, for the provenance.
        say: Called with sentences for whoever waits: what is about to be done, and what it will take.
        note: Called with sentences that nobody asked for and everybody should know.
        completions: What the model said, for ``artefacts/completions.jsonl``.
        costs: What every stage has cost.
    """

    model: Engine | None
    question: Q
    run: Run
    progress: ProgressLike = field(default_factory=NullProgress)
    max_new_tokens: int | None = None
    command: str = ""
    say: Callable[[str], None] = _ignore
    note: Callable[[str], None] = _ignore
    completions: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def engine(self) -> Engine:
        """Who answers, for jobs that need a model."""
        if self.model is None:
            raise ValueError("this job says that it needs no model (`needs_model`), and asks one")
        return self.model

    @property
    def suite(self) -> Suite:
        return self.question.suite

    @property
    def judge(self) -> Judge:
        return self.question.judge

    @property
    def answer_tokens(self) -> int:
        """Tokens of an answer, at most."""
        return self.max_new_tokens or self.suite.max_new_tokens

    def stage(self, key: str, name: str, total: int) -> StageSteps:
        """A stage: ``with bench.stage("rosais", "RoSais", 60) as steps: method.rank(..., steps=steps)``.

        Args:
            key: Of the stage in the table of costs; a stage entered twice adds up.
            name: As the progress display shows it.
            total: Units, as the method counts them.
        """
        return StageSteps(self, key, name, total)

    def keep_answers(self, stage: str, behaviours: Sequence[Behaviour], attempts: Sequence[Attempt]) -> None:
        """Keep what was said for the completions file."""
        for b, a in zip(behaviours, attempts, strict=True):
            self.completions.append(
                {"stage": stage, "id": b.id, "category": b.category, "prompt": b.goal, "response": a.response,
                 "label": a.verdict.label, "reason": a.verdict.reason}
            )  # fmt: skip

    def keep_conversations(self, stage: str, turns: Sequence[Sequence[str]], played: Sequence[Played]) -> None:
        """Keep the answer in which each conversation fell, or its last.

        Args:
            turns: What the user said in each.
        """
        for asked, p in zip(turns, played, strict=True):
            turn = len(p.responses) - 1 if p.fallen is None else p.fallen
            verdict = p.verdicts[turn]
            self.completions.append(
                {"stage": stage, "id": p.id, "category": p.category, "tactic": p.tactic,
                 "prompt": " / ".join(asked[: turn + 1]), "response": p.responses[turn],
                 "label": verdict.label, "reason": verdict.reason}
            )  # fmt: skip

    def write_completions(self) -> None:
        """Write what was kept; before the results, since a run that has its results is finished."""
        lines = (json.dumps(completion) + "\n" for completion in self.completions)
        self.run.write_text("artefacts/completions.jsonl", "".join(lines))

    def note_cost(self, key: str, cost: dict[str, float]) -> None:
        """Add to what a stage has cost."""
        known = self.costs.setdefault(key, dict.fromkeys(cost, 0))
        for name, value in cost.items():
            known[name] = round(known[name] + value, 1)

    def cost(self) -> RunCost:
        """Of all stages, and in all."""
        total: dict[str, Any] = {f.name: sum(c[f.name] for c in self.costs.values()) for f in fields(Cost)}
        total["seconds"] = round(total["seconds"], 1)
        stages = tuple(StageCost(stage=key, **cost) for key, cost in self.costs.items())  # type: ignore[arg-type]
        return RunCost(**total, stages=stages)


class StageSteps:
    """A stage of the progress display as the `Steps` of a method; what the run remembers counts as skipped."""

    def __init__(self, bench: Bench[Any], key: str, name: str, total: int) -> None:
        self._bench = bench
        self._key = key
        self._context = bench.progress.stage(name, total)
        self._fresh = False

    def __enter__(self) -> Steps:
        stage: Stage = self._context.__enter__()

        def remember(key: str, compute: Any) -> Any:
            self._fresh = self._fresh or key not in self._bench.run
            return self._bench.run.remember(key, compute)

        def advance(units: int) -> None:
            if units:
                (stage.advance if self._fresh else stage.skip)(units)
                self._fresh = False

        self._steps = Steps(remember, advance)
        return self._steps

    def __exit__(self, kind: Any, *error: Any) -> None:
        self._context.__exit__(kind, *error)
        if kind is None:
            self._bench.note_cost(self._key, self._steps.cost())
