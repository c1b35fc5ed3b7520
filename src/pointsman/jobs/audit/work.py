"""The bench of the old steering; gone with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pointsman.data.types import Behaviour, Suite
from pointsman.engine.types import Cost, Engine
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt
from pointsman.methods.steps import Steps
from pointsman.runs.progress import ProgressLike, Stage
from pointsman.runs.run import Run


@dataclass
class Bench:
    """An experiment under way: who answers, who judges, where it is remembered.

    Attributes:
        completions: What the model said, for ``artefacts/completions.jsonl``.
        costs: What every stage has cost.
    """

    engine: Engine
    suite: Suite
    judge: Judge
    run: Run
    progress: ProgressLike
    completions: list[dict[str, Any]] = field(default_factory=list)
    costs: list[dict[str, Any]] = field(default_factory=list)

    def stage(self, key: str, name: str, total: int) -> StageSteps:
        """A stage: ``with work.stage("rosais", "RoSais", 60) as steps: method.rank(..., steps=steps)``.

        Args:
            key: Of the stage in the table of costs; a stage entered twice adds up.
            name: As the progress display shows it.
            total: Units, as the method counts them.
        """
        return StageSteps(self, key, name, total)

    def note(self, stage: str, behaviours: Sequence[Behaviour], attempts: Sequence[Attempt]) -> None:
        """Keep what was said for the completions file."""
        for b, a in zip(behaviours, attempts, strict=True):
            self.completions.append(
                {"stage": stage, "id": b.id, "category": b.category, "prompt": b.goal, "response": a.response,
                 "label": a.verdict.label, "reason": a.verdict.reason}
            )  # fmt: skip

    def note_cost(self, key: str, cost: dict[str, float]) -> None:
        """Add to what a stage has cost."""
        known = next((c for c in self.costs if c["stage"] == key), None)
        if known is None:
            known = {"stage": key, **dict.fromkeys(cost, 0)}
            self.costs.append(known)
        for name, value in cost.items():
            known[name] = round(known[name] + value, 1)

    def cost(self) -> dict[str, Any]:
        """Of all stages, and in all."""
        total = {f.name: sum(c[f.name] for c in self.costs) for f in fields(Cost)}
        total["seconds"] = round(total["seconds"], 1)
        return {**total, "stages": self.costs}


class StageSteps:
    """A stage of the progress display as the `Steps` of a method; what the run remembers counts as skipped."""

    def __init__(self, work: Bench, key: str, name: str, total: int) -> None:
        self._work = work
        self._key = key
        self._context = work.progress.stage(name, total)
        self._fresh = False

    def __enter__(self) -> Steps:
        stage: Stage = self._context.__enter__()

        def remember(key: str, compute: Any) -> Any:
            self._fresh = self._fresh or key not in self._work.run
            return self._work.run.remember(key, compute)

        def advance(units: int) -> None:
            if units:
                (stage.advance if self._fresh else stage.skip)(units)
                self._fresh = False

        self._steps = Steps(remember, advance)
        return self._steps

    def __exit__(self, kind: Any, *error: Any) -> None:
        self._context.__exit__(kind, *error)
        if kind is None:
            self._work.note_cost(self._key, self._steps.cost())
