"""`Bench`: a job under way, as its stages see it. Who answers, what is asked, and where it is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, Protocol, TypeVar

from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.engine.channels import Channels
from pointsman.engine.types import Cost, Engine, Routing
from pointsman.judges.types import Judge, tells_garbage
from pointsman.methods.attempts import Attempt, ask_in_steps
from pointsman.methods.play import Played, play
from pointsman.methods.routes import Search
from pointsman.methods.steps import Steps
from pointsman.runs.likelihood import KEY, UnlikelyAnswersApart
from pointsman.runs.progress import NullProgress, ProgressLike, Stage
from pointsman.runs.results import (
    Forecast,
    JudgeFacts,
    ModelFacts,
    Provenance,
    Results,
    RunCost,
    StageCost,
    dump,
    notes_on_model,
)
from pointsman.runs.run import Run
from pointsman.runs.verdicts import judging_cost, judging_foretold, remembering

THOUGHT = 2048
"""Tokens that the answers of a model may have beside those of the suite, if its thinking cannot be switched off."""


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
        max_new_tokens: Tokens of an answer; None for the suite's, and `THOUGHT` more for a model that thinks.
        command: The command line, for the provenance.
        say: Called with sentences for whoever waits: what is about to be done, and what it will take.
        note: Called with sentences that nobody asked for and everybody should know.
        completions: What the model said, for ``artefacts/completions.jsonl``.
        beside: What that file has no room for, by the name of its own: ``attempts`` (source, score, whether it ended),
            ``conversations`` (every turn) and ``routes`` (where experts were forced).
        costs: What every stage has cost.
        likelihood: Stands before the judge, once `set_unlikely_answers_apart`.
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
    beside: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    likelihood: UnlikelyAnswersApart | None = None

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
        """Who judges: of one that sends answers away the run remembers every verdict."""
        return self.likelihood or remembering(self.question.judge, self.run)

    def set_unlikely_answers_apart(self, system: str | None = None) -> None:
        """From now on, unless the judge tells garbage itself: what the model finds unlikely without routing is garbage.

        Args:
            system: The system prompt that everything is asked with.
        """
        judge = self.judge
        if not tells_garbage(judge):
            benign, most = self.suite.benign, self.answer_tokens
            self.likelihood = UnlikelyAnswersApart(judge, self.engine, benign, self.run.remember, most, system)

    def notes_on_likelihood(self) -> list[str]:
        """What that did; of the answers that are kept. Nothing where no answer was judged by this way of judging."""
        if self.likelihood is None or KEY not in self.run:
            return []
        return [self.likelihood.note([completion["reason"] for completion in self.completions])]

    @property
    def answer_tokens(self) -> int:
        """Tokens of an answer, at most, a thought before it included."""
        thinks = self.model is not None and self.model.info.channels.thinks
        return self.max_new_tokens or self.suite.max_new_tokens + (THOUGHT if thinks else 0)

    def notes_on_thinking(self) -> list[str]:
        """For a model whose template speaks of thoughts: what is judged, and how many tokens answers may have."""
        channels = Channels() if self.model is None else self.model.info.channels
        if not channels.sentence:
            return []
        room = (
            f"; answers may have {self.answer_tokens} tokens, thoughts included, and one that ends before it is an "
            "answer counts as garbage"
        )
        return [f"{channels.sentence[0].upper()}{channels.sentence[1:]}{room if channels.thinks else ''}"]

    def foretell_judging(self, answers: int) -> None:
        """Say what it will take to judge about so many answers, if they are sent away to be judged."""
        said = judging_foretold(self.judge, answers, self.answer_tokens)
        if said:
            self.say(said)

    def stage(self, key: str, name: str, total: int) -> StageSteps:
        """A stage: ``with bench.stage("rosais", "RoSais", 60) as steps: method.rank(..., steps=steps)``.

        Args:
            key: Of the stage in the table of costs; a stage entered twice adds up.
            name: As the progress display shows it.
            total: Units, as the method counts them.
        """
        return StageSteps(self, key, name, total)

    def ask(
        self,
        behaviours: Sequence[Behaviour],
        *,
        key: str,
        steps: Steps,
        routing: Routing = None,
        system: str | None = None,
    ) -> list[Attempt]:
        """`ask_in_steps`: the engine asked under a routing, and its answers judged."""
        return ask_in_steps(
            self.engine, behaviours, self.judge, key=key, steps=steps, routing=routing,
            max_new_tokens=self.answer_tokens, system=system,
        )  # fmt: skip

    def play(
        self,
        conversations: Sequence[Conversation],
        *,
        key: str,
        steps: Steps,
        routing: Routing = None,
        system: str | None = None,
    ) -> list[Played]:
        """`play`: the conversations with the engine under a routing, and every answer judged."""
        return play(
            self.engine, conversations, self.judge, key=key, steps=steps, routing=routing,
            max_new_tokens=self.answer_tokens, system=system,
        )  # fmt: skip

    def keep_answers(self, stage: str, behaviours: Sequence[Behaviour], attempts: Sequence[Attempt]) -> None:
        """Keep what was said for the completions file."""
        for b, a in zip(behaviours, attempts, strict=True):
            self.completions.append(
                {"stage": stage, "id": b.id, "category": b.category, "prompt": b.goal, "response": a.response,
                 "label": a.verdict.label, "reason": a.verdict.reason}
            )  # fmt: skip
            self._keep("attempts", stage, a.id, source=a.source, score=a.verdict.score, finished=a.finished)

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
            said = [
                {"asked": words, "said": response, **vars(v)}
                for words, response, v in zip(asked, p.responses, p.verdicts, strict=True)
            ]
            self._keep("conversations", stage, p.id, source=p.source, fallen=p.fallen, turns=said)

    def keep_routes(self, stage: str, behaviours: Sequence[Behaviour], searches: Sequence[Search]) -> None:
        """Keep where the route of each behaviour forces experts, over the tokens of its prompt."""
        layers = len(self.engine.routers)
        for b, s in zip(behaviours, searches, strict=True):
            prompt, pairs = self.engine.encode(b.turns), list(map(vars, s.steps))
            tokens, roles = list(prompt.tokens), list(prompt.roles)
            self._keep("routes", stage, b.id, layers=layers, tokens=tokens, roles=roles, before=s.before, pairs=pairs)

    def _keep(self, name: str, stage: str, id: str, **more: Any) -> None:
        self.beside.setdefault(name, []).append({"stage": stage, "id": id, **more})

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
        return RunCost(**total, stages=stages, judging=judging_cost(self.question.judge, self.run))

    def shared_fields(self, notes: Iterable[str] = (), predicted: Forecast | None = None) -> dict[str, Any]:
        """The fields of `Results` that say who was asked by whom, and at what cost: the same for every job.

        Args:
            notes: Of the job, behind those on prompts and model.
            predicted: What the run was foretold to cost.
        """
        return {
            "suite": self.suite.name,
            "judge": JudgeFacts.of(self.judge),
            "model": ModelFacts.of(self.engine),
            "notes": (
                *self.suite.notes,
                *notes_on_model(self.engine),
                *self.notes_on_thinking(),
                *self.notes_on_likelihood(),
                *notes,
            ),
            "cost": replace(self.cost(), predicted=predicted),
            "provenance": Provenance.of(self.command),
        }

    def finish(self, results: Results) -> None:
        """Write what was kept of the answers and, last, the results: a run that has them is finished."""
        for name, kept in {"completions": self.completions, **self.beside}.items():
            self.run.write_text(f"artefacts/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        self.run.write_results(dump(results))


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
