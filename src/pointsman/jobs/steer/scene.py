"""`Scene`: a scenario on a model. What is asked, what was said, and what contexts and lessons follow from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pointsman.data.objective import NEEDED
from pointsman.data.scenario import Scenario
from pointsman.data.splits import by_split, cluster
from pointsman.data.types import Behaviour, Conversation, Split
from pointsman.engine.learning import Lesson
from pointsman.engine.types import Engine, Prompt, TokenRole
from pointsman.errors import DataError
from pointsman.jobs.audit.work import Bench
from pointsman.jobs.steer.candidates import Fork
from pointsman.jobs.steer.contexts import Context, conversations_section, matched_pairs, of_conversations, of_requests
from pointsman.jobs.steer.outcome import Asked, Outcome, measure
from pointsman.jobs.steer.traces import open_traces, write_traces
from pointsman.judges.types import Answer, Verdict, judged
from pointsman.methods.attempts import CHUNK, Attempt, ask_in_steps
from pointsman.methods.steps import Steps
from pointsman.routing.intervention import Intervention
from pointsman.routing.store import discard_if_damaged
from pointsman.runs.room import Room
from pointsman.stats.rates import Rate

ANSWER = 64
"""Tokens of an answer that a lesson has, at most, unless told."""


class Scene:
    """One scenario on one model, judged by one judge.

    Args:
        bench: Where units are remembered.
        engine: The model.
        scenario: What for.
        max_new_tokens: Answer length; None for the suite's.
        lesson_tokens: Tokens of an answer that a lesson has, at most.
    """

    def __init__(
        self,
        bench: Bench,
        engine: Engine,
        scenario: Scenario,
        max_new_tokens: int | None = None,
        lesson_tokens: int = ANSWER,
    ) -> None:
        self.bench, self.engine, self.scenario = bench, engine, scenario
        self.suite, self.judge, self.run = bench.suite, bench.judge, bench.run
        self.tokens = max_new_tokens or bench.suite.max_new_tokens
        self.experts = [router.experts for router in engine.routers]
        self.system = scenario.system
        self.lesson_tokens = lesson_tokens
        self.room = Room(engine, self._tokens)
        self._opened = frozenset(b.id for b in bench.suite.scenario)

    @property
    def defends(self) -> bool:
        """Whether conversations shall be withstood; else requests shall be answered."""
        return self.scenario.objective == "defend"

    def section(self) -> dict[str, Any]:
        """The scenario as in ``results.json``."""
        what = self.scenario
        return {
            "name": what.name, "objective": what.objective, "description": what.description,
            "limits": asdict(what.limits), "hold": None if what.hold is None else list(what.hold),
        }  # fmt: skip

    def asked(self, split: Split, most: int | None, held: int | None, seed: int) -> Asked:
        """What is asked of one split.

        Args:
            most: Conversations, or scenario and restricted requests (objective allow); None for all.
            held: Of each kind that should stay as it is; None for all.

        Raises:
            PromptTooLong: Nothing that is needed fits into the model's context.
        """

        def some(name: str, count: int | None) -> tuple[Any, ...]:
            there = by_split(getattr(self.suite, name), split)
            chosen = self.room.take(there, len(there) if count is None else count, seed)
            if name in NEEDED[self.scenario.objective]:
                self.room.refuse_none(f"prompt of {name} in the {split} split", there, chosen)
            return chosen

        return Asked(
            some("conversations", most) if self.defends else (),
            () if self.defends else some("scenario", most),
            some("restricted", most if not self.defends else held),
            some("benign", held),
            some("borderline", held),
            some("benign_conversations", held),
        )

    def _tokens(self, item: Behaviour | Conversation) -> int:
        """How many an item needs with one token of an answer, and with what else it is used for."""

        def of(turns: Sequence[str]) -> int:
            return len(self.engine.encode(turns, answers=[""] * (len(turns) - 1), system=self.system)) + 1

        if isinstance(item, Conversation):
            return max(of(item.turns), of([item.goal]))
        opened = not self.defends and item.target and item.id in self._opened
        return of(item.turns) + (len(self.engine.encode_target(item.target)) if opened else 0)

    def measure(
        self,
        asked: Asked,
        routing: Intervention | None,
        key: str,
        title: str,
        fallen: Sequence[Context | None] | None = None,
        stage: str | None = None,
    ) -> Outcome:
        with self.bench.stage(stage or key, title, asked.units) as steps:
            return measure(
                self.engine, asked, self.judge, objective=self.scenario.objective, routing=routing or None,
                fallen=fallen, key=key, steps=steps, max_new_tokens=self.tokens, system=self.system,
                hold=self.scenario.hold,
            )  # fmt: skip

    def goals(self, asked: Asked) -> tuple[list[Behaviour], list[Attempt]]:
        """The requests of the conversations on their own, and what the model says to them."""
        goals = {c.goal: c for c in reversed(asked.conversations)}
        behaviours = [
            Behaviour(f"goal of {c.id}", c.goal, c.target, c.category, cluster(c), c.split)
            for c in reversed(goals.values())
        ]
        with self.bench.stage("goals", "Single requests", len(behaviours)) as steps:
            attempts = ask_in_steps(
                self.engine, behaviours, self.judge, key="goals", steps=steps, max_new_tokens=self.tokens,
                system=self.system,
            )  # fmt: skip
        return behaviours, attempts

    def contexts(self, asked: Asked, base: Outcome) -> list[Context]:
        """Labelled contexts of a split: label 1 is what the mask shall change."""
        if self.defends:
            single = of_requests(asked.restricted, base.restricted, refused_is=0)
            return [*of_conversations(asked.conversations, base.played), *(c for c in single if c.kind == "refused")]
        scenario = of_requests(asked.scenario, base.scenario, refused_is=1)
        restricted = [
            c
            for c in of_requests(asked.restricted, base.restricted, refused_is=1)
            if c.label and self.scenario.holds(c.category)
        ]
        benign = [c for c in of_requests(asked.benign, base.benign, refused_is=1) if not c.label]
        return [*scenario, *restricted, *benign]

    def check_judged(self, base: Outcome) -> None:
        """Refuse a judge that knows none of these prompts."""
        groups = {
            "conversations": [p.verdicts[-1] for p in base.played],
            "scenario requests": [a.verdict for a in base.scenario],
            "restricted requests": [a.verdict for a in base.restricted],
            "benign requests": [a.verdict for a in base.benign],
            "benign conversations": [p.verdicts[-1] for p in base.harmless],
        }
        for name, verdicts in groups.items():
            if verdicts and all(v.label == "unscored" for v in verdicts):
                raise DataError(
                    f"The judge {self.judge.name} scored none of {len(verdicts)} {name} ({verdicts[0].reason})",
                    "Name a judge that knows these prompts in the scenario",
                )

    def check_contexts(self, split: Split, contexts: Sequence[Context]) -> None:
        """Refuse a split from which nothing can be learnt, or on which nothing can be measured."""
        turning = [c for c in contexts if self.turns(c)]
        name, of = self.scenario.name, f"the {split} split"
        if not turning and self.defends:
            raise DataError(
                f"{self.engine.info.name} falls in no conversation of {of}: {name} has nothing to defend",
                "Give harder conversations, or more of them",
            )
        if not turning:
            raise DataError(
                f"{self.engine.info.name} refuses no scenario request of {of}: {name} has nothing to open",
                "Give requests that it refuses",
            )
        if split != "discovery":
            return
        if all(c.label for c in contexts):
            raise DataError(
                f"{self.engine.info.name} never {'refuses' if self.defends else 'answers'} on {of}",
                "Steering contrasts both: give requests that it refuses" if self.defends else "Give benign requests",
            )
        for label in (0, 1):
            sources = {c.source for c in contexts if c.label == label}
            if len(sources) < 2:
                raise DataError(
                    f"Too few contexts to learn from: label {label} comes from {len(sources)} source question",
                    "Give more conversations of different source questions",
                )

    def turns(self, context: Context) -> bool:
        """Whether the mask shall change this one."""
        return context.label == 1 and (self.defends or not self.is_guarded(context))

    def is_guarded(self, context: Context) -> bool:
        """A restricted request outside the scenario (objective allow): it must stay refused."""
        return not self.defends and context.label == 1 and context.id in self._restricted

    @property
    def _restricted(self) -> frozenset[str]:
        return frozenset(b.id for b in self.suite.restricted)

    def contexts_section(self, base: Outcome, contexts: Sequence[Context]) -> dict[str, Any]:
        labels = Counter(c.label for c in contexts)
        if self.defends:
            section = conversations_section(base.played)
        else:
            rows = [a.verdict.refused for a in base.scenario], [a.source for a in base.scenario]
            section = {
                "played": len(base.scenario), "fallen": asdict(Rate.of(*rows)), "by_turn": [], "by_tactic": {},
            }  # fmt: skip
        return {**section, "matched_pairs": len(matched_pairs(contexts)), "label1": labels[1], "label0": labels[0]}

    def traced(self, contexts: Sequence[Context], name: str) -> Any:
        folder = self.run.path(f"artefacts/traces-{name}")
        discard_if_damaged(folder)  # they are collected again, with the same numbers
        with self.bench.stage("traces", f"Traces, {name}", len(contexts)) as steps:
            write_traces(self.engine, contexts, folder, system=self.system, advance=steps.advance)
        self.run.note_files(f"artefacts/traces-{name}")
        return open_traces(folder, contexts, self.experts)

    def forks(
        self,
        contexts: Sequence[Context],
        asked: Asked,
        refusal: str,
        split: str,
        goals: tuple[Sequence[Behaviour], Sequence[Attempt]] | None = None,
    ) -> tuple[Fork, ...]:
        """Contexts with the answer that is wanted and the one that was given."""
        if self.defends:
            own: dict[str, str] = {}
            if goals is not None:
                own = {b.goal: a.response for b, a in zip(*goals, strict=True) if a.verdict.refused}
            texts = [own.get(c.goal, refusal) for c in contexts]
            wanted = [self._answer(text) for text in texts]
        else:
            wanted = self._affirmative(contexts, {b.id: b for b in asked.scenario}, split)
        system = self.system
        prompts = [c.prompt(self.engine, system) for c in contexts]
        return tuple(
            Fork(self._lesson(prompt, answer, c.source), self._lesson(prompt, self._answer(c.response), c.source))
            for c, prompt, answer in zip(contexts, prompts, wanted, strict=True)
            if len(prompt) < self.engine.info.context
        )

    def _affirmative(
        self, contexts: Sequence[Context], behaviours: Mapping[str, Behaviour], split: str
    ) -> list[tuple[int, ...]]:
        """The model's own answers once their affirmative beginning is given; the beginning alone where that fails."""
        found: list[tuple[int, ...]] = []
        with self.bench.stage("wanted", f"Wanted answers, {split}", len(contexts)) as steps:
            for start in range(0, len(contexts), CHUNK):
                part = [behaviours[c.id] for c in contexts[start : start + CHUNK]]

                def compute(part: Sequence[Behaviour] = part) -> dict[str, Any]:
                    targets = [self.engine.encode_target(b.target) for b in part]
                    prompts = [self.engine.encode(b.turns, system=self.system) for b in part]
                    begun = [_continued(p, t) for p, t in zip(prompts, targets, strict=True)]
                    said = self.engine.generate(begun, max_new_tokens=self.tokens)
                    whole = [(*target, *s.ids) for target, s in zip(targets, said, strict=True)]
                    texts = [Answer(self.engine.decode(ids), s.finished) for ids, s in zip(whole, said, strict=True)]
                    verdicts = judged(self.judge, part, texts)
                    answers = [
                        list(self._ended(ids)) if verdict.success else list(target)
                        for ids, target, verdict in zip(whole, targets, verdicts, strict=True)
                    ]
                    return {"answers": answers}

                unit = steps.unit(f"wanted/{split}/{start}", self.engine, compute, len(part))
                found += [tuple(answer) for answer in unit["answers"]]
        return found

    def held(self, asked: Asked, base: Outcome) -> dict[str, tuple[Lesson, ...]]:
        """The unsteered model's own right answers and refusals, which should not move."""

        def single(
            behaviours: Sequence[Behaviour], attempts: Sequence[Attempt], right: Callable[[Verdict], bool]
        ) -> tuple[Lesson, ...]:
            return tuple(
                self._lesson(self.engine.encode(b.turns, system=self.system), self._answer(a.response), cluster(b))
                for b, a in zip(behaviours, attempts, strict=True)
                if a.response and right(a.verdict)
            )

        talks = tuple(
            self._lesson(
                self.engine.encode(c.turns, answers=p.responses[:-1], system=self.system),
                self._answer(p.responses[-1]),
                cluster(c),
            )
            for c, p in zip(asked.benign_conversations, base.harmless, strict=True)
            if p.responses[-1] and base.answered(p.verdicts[-1])
        )
        restricted = [
            (b, a) for b, a in zip(asked.restricted, base.restricted, strict=True) if self.scenario.holds(b.category)
        ]
        groups = {
            "benign": single(asked.benign, base.benign, base.answered),
            "borderline": single(asked.borderline, base.borderline, base.answered),
            "benign_conversations": talks,
            "restricted": single([b for b, _ in restricted], [a for _, a in restricted], lambda v: v.refused),
        }
        return {name: lessons for name, lessons in groups.items() if lessons}

    def _lesson(self, prompt: Prompt, answer: tuple[int, ...], source: str) -> Lesson:
        """With as much of the answer as the context has room for."""
        return Lesson(prompt, answer[: self.engine.info.context - len(prompt)], source)

    def _answer(self, text: str) -> tuple[int, ...]:
        return self._ended(self.engine.encode_target(text)) if text else self._ended(())

    def _ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """An answer with its end token, cut off at `lesson_tokens`."""
        end = self.engine.end_token
        return (ids if end is None else (*ids, end))[: self.lesson_tokens]

    def again(self, contexts: Sequence[Context], routing: Intervention, key: str, steps: Steps) -> list[int | None]:
        """Labels of what the model now says to these contexts; None for garbage."""
        labels: list[int | None] = []
        for start in range(0, len(contexts), CHUNK):
            part = contexts[start : start + CHUNK]

            def compute(part: Sequence[Context] = part) -> dict[str, Any]:
                prompts = [c.prompt(self.engine, self.system) for c in part]
                said = self.engine.generate(prompts, routing=routing or None, max_new_tokens=self.tokens)
                verdicts = judged(self.judge, [_as_behaviour(c) for c in part], said)
                neither = ("garbage", "unscored", "wrong")
                unsafe = [None if v.label in neither else bool(v.success) for v in verdicts]
                return {"unsafe": unsafe}

            unit = steps.unit(f"{key}/{start}", self.engine, compute, len(part))
            labels += [None if u is None else int(u == self.defends) for u in unit["unsafe"]]
        return labels


def usual_refusal(contexts: Sequence[Context]) -> str:
    """How the model mostly refuses."""
    said = Counter(c.response for c in contexts if c.kind in ("refused", "withstood"))
    if not said:
        raise DataError("The model refuses nothing on the discovery split", "Give restricted requests that it refuses")
    return said.most_common(1)[0][0]


def _continued(prompt: Prompt, target: tuple[int, ...]) -> Prompt:
    """A prompt with the beginning of its answer."""
    roles: list[TokenRole] = ["template" for _ in target]
    return Prompt(prompt.ids + target, prompt.tokens + ("",) * len(target), (*prompt.roles, *roles))


def _as_behaviour(context: Context) -> Behaviour:
    return Behaviour(context.id, context.goal, "", context.category, context.source, context.split)
