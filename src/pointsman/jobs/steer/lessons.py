"""Answers that are taught or kept: what the model should say, and what it said (METHODS section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.data.splits import cluster
from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.channels import given
from pointsman.engine.learning import Lesson
from pointsman.engine.reasoning import split
from pointsman.engine.types import Completion, Prompt
from pointsman.jobs.steer.contexts import Context
from pointsman.jobs.steer.played import PlayedSplit, Refusals
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.judges.types import Verdict, judged
from pointsman.methods.attempts import Attempt
from pointsman.methods.play import Played
from pointsman.runs.bench import Bench


@dataclass(frozen=True)
class Fork:
    """A context with the two ways to begin its answer."""

    wanted: Lesson
    unwanted: Lesson


@dataclass(frozen=True)
class Lessons:
    """Makes lessons of contexts and answers.

    Attributes:
        bench: The run.
        tokens: Of an answer, from its beginning, that count.
    """

    bench: Bench[SteerQuestion]
    tokens: int

    def forks(self, contexts: Sequence[Context], played: PlayedSplit, refusals: Refusals) -> tuple[Fork, ...]:
        """Contexts of a split with the answer that is wanted and the one that was given."""
        if self.bench.question.scenario.objective == "defend":
            own = refusals.by_request if played.split == "discovery" else {}
            wanted = [self._answer(own.get(c.goal, refusals.usual)) for c in contexts]
        else:
            wanted = self._affirmative(contexts, played)
        engine, system = self.bench.engine, self.bench.question.scenario.system
        prompts = [c.prompt(engine, system) for c in contexts]
        return tuple(
            Fork(self._lesson(prompt, answer, c.source), self._lesson(prompt, self._answer(c.response), c.source))
            for c, prompt, answer in zip(contexts, prompts, wanted, strict=True)
            if len(prompt) < engine.info.context
        )

    def _affirmative(self, contexts: Sequence[Context], played: PlayedSplit) -> list[tuple[int, ...]]:
        """The model's own answers once their affirmative beginning is given; the beginning alone where that fails."""
        engine, system = self.bench.engine, self.bench.question.scenario.system
        requests = {b.id: b for b in played.prompts.scenario}

        def compute(some: Sequence[Behaviour]) -> dict[str, Any]:
            targets = [engine.encode_target(b.target) for b in some]
            prompts = [engine.encode(b.turns, system=system) for b in some]
            begun = [p.continued(t) for p, t in zip(prompts, targets, strict=True)]
            said = engine.generate(begun, max_new_tokens=self.bench.answer_tokens)
            whole = [(*target, *s.ids) for target, s in zip(targets, said, strict=True)]
            texts = [Completion(engine.decode(i), i, s.finished) for i, s in zip(whole, said, strict=True)]
            verdicts = judged(self.bench.judge, some, texts, prompts)
            answers = [
                list(self._ended(ids)) if verdict.success else list(target)
                for ids, target, verdict in zip(whole, targets, verdicts, strict=True)
            ]
            return {"answers": answers}

        with self.bench.stage("wanted", f"Wanted answers, {played.split}", len(contexts)) as steps:
            units = steps.units(f"wanted/{played.split}", engine, [requests[c.id] for c in contexts], compute)
        return [tuple(answer) for unit in units for answer in unit["answers"]]

    def held(self, played: PlayedSplit) -> dict[str, tuple[Lesson, ...]]:
        """The unsteered model's own right answers and refusals, which should not move."""
        prompts, outcome = played.prompts, played.outcome
        holds = self.bench.question.scenario.holds
        restricted = [(b, a) for b, a in zip(prompts.restricted, outcome.restricted, strict=True) if holds(b.category)]
        groups: dict[str, list[Lesson]] = {
            "benign": self._own(zip(prompts.benign, outcome.benign, strict=True), outcome.answered),
            "borderline": self._own(zip(prompts.borderline, outcome.borderline, strict=True), outcome.answered),
            "benign_conversations": self._own(
                zip(prompts.benign_conversations, outcome.harmless, strict=True), outcome.answered
            ),
            "restricted": self._own(restricted, lambda verdict: verdict.refused),
        }
        return {name: tuple(lessons) for name, lessons in groups.items() if lessons}

    def _own(
        self, pairs: Iterable[tuple[Behaviour | Conversation, Attempt | Played]], right: Callable[[Verdict], bool]
    ) -> list[Lesson]:
        """Of what was asked and said: what is right."""
        engine, system, lessons = self.bench.engine, self.bench.question.scenario.system, []
        for asked, said in pairs:
            if said.response and right(said.verdict):
                before = said.responses[:-1] if isinstance(said, Played) else ()
                prompt = engine.encode(asked.turns, answers=before, system=system)
                lessons.append(self._lesson(prompt, self._answer(said.response), cluster(asked)))
        return lessons

    def _lesson(self, prompt: Prompt, answer: tuple[int, ...], source: str) -> Lesson:
        """With as much of the answer as the context has room for."""
        return Lesson(prompt, answer[: self.bench.engine.info.context - len(prompt)], source)

    def _answer(self, text: str) -> tuple[int, ...]:
        """What was said to the user, as tokens; a thought before it is not learnt."""
        said = split(text).answer
        return self._ended(self.bench.engine.encode_target(said)) if said else self._ended(())

    def _ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """An answer with its end token, cut off at `tokens` behind what every answer opens with."""
        engine = self.bench.engine
        end = engine.end_token
        return (ids if end is None else (*ids, end))[: given(ids, engine.info.opening) + self.tokens]
