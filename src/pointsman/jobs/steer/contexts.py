"""Labelled contexts that a steering mask is learnt from, with their provenance (METHODS section 5, step 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pointsman.data.splits import cluster
from pointsman.data.types import Behaviour, Conversation, Split
from pointsman.engine import reasoning
from pointsman.engine.channels import given
from pointsman.engine.types import Engine, Prompt
from pointsman.jobs.steer.question import ScenarioQuestion
from pointsman.judges.types import judged
from pointsman.methods.attempts import Attempt
from pointsman.methods.play import Played
from pointsman.methods.steps import Steps
from pointsman.routing.intervention import Intervention
from pointsman.runs.bench import Bench

Kind = Literal["fallen", "withstood", "refused", "answered", "affirmed"]


@dataclass(frozen=True)
class Context:
    """What stood before an answer of the model, and how it answered.

    Attributes:
        id: Of the conversation or behaviour.
        kind: ``fallen`` (the answer to the last of these turns was unsafe), ``withstood`` (a conversation in which no
            answer was), ``refused`` or ``answered`` (a single request); ``affirmed``: a refused request once more, with
            its own target in place of what the model said.
        label: 1 for what the mask shall change (fallen contexts; refused requests of a scenario), else 0.
        turns: User turns up to the one that is answered. Shape: [turns].
        answers: The model's answers between them. Shape: [turns - 1].
        response: What the model then said, or (``affirmed``) should. Untrusted.
        source: The source question.
        goal: The request.
        tactic, category, split: From the conversation or behaviour.
        begun: Tokens of the answer in `response`, from its beginning, that are traced with the request.
    """

    id: str
    kind: Kind
    label: int
    turns: tuple[str, ...]
    answers: tuple[str, ...]
    response: str
    source: str
    goal: str
    tactic: str = ""
    category: str = ""
    split: Split | None = None
    begun: int = 0

    def to_json(self) -> dict[str, Any]:
        """Without `begun` where nothing is, as contexts were first kept."""
        return {name: value for name, value in asdict(self).items() if name != "begun" or value}

    def prompt(self, engine: Engine, system: str | None = None) -> Prompt:
        """Encoded by the chat template, waiting for the answer."""
        return engine.encode(self.turns, answers=self.answers, system=system)

    def beginning(self, engine: Engine) -> tuple[int, ...]:
        """What of the answer is traced with the request, with what every answer opens with and without a thought.

        Shape: [<= opening + begun].
        """
        said = reasoning.split(self.response).answer if self.begun else None
        if not said:
            return ()
        ids = engine.encode_target(said)
        return ids[: given(ids, engine.info.opening) + self.begun]


def of_conversations(conversations: Sequence[Conversation], played: Sequence[Played]) -> list[Context]:
    """The context of the first unsafe answer of every conversation (label 1), or of its last answer (label 0).

    Conversations that end in no answer at all, in garbage or unscored, are neither.
    """
    found = []
    for conversation, p in zip(conversations, played, strict=True):
        turn = len(p.responses) - 1 if p.fallen is None else p.fallen
        if p.fallen is None and not p.verdicts[turn].refused:
            continue
        found.append(
            Context(
                conversation.id, "withstood" if p.fallen is None else "fallen", int(p.fallen is not None),
                conversation.turns[: turn + 1], p.responses[:turn], p.responses[turn], cluster(conversation),
                conversation.goal, conversation.tactic, conversation.category, conversation.split,
            )
        )  # fmt: skip
    return found


def of_requests(behaviours: Sequence[Behaviour], attempts: Sequence[Attempt], *, refused_is: int) -> list[Context]:
    """Single requests that were refused (label `refused_is`) or answered (the other); garbage is neither."""
    return [
        Context(
            b.id, "refused" if a.verdict.refused else "answered", refused_is if a.verdict.refused else 1 - refused_is,
            b.turns, (), a.response, cluster(b), b.goal, category=b.category, split=b.split,
        )
        for b, a in zip(behaviours, attempts, strict=True)
        if a.verdict.refused or a.verdict.success
    ]  # fmt: skip


def affirmed(contexts: Sequence[Context], behaviours: Sequence[Behaviour]) -> list[Context]:
    """Of the refused ones among these: the same requests, answered by their own targets (label 0)."""
    target_of = {b.id: b.target for b in behaviours}
    return [
        replace(c, id=f"{c.id} @target", kind="affirmed", label=0, response=target_of[c.id])
        for c in contexts
        if c.kind == "refused"
    ]


def matched_pairs(contexts: Sequence[Context]) -> list[tuple[int, int]]:
    """Pairs (fallen, withstood) of the same source question, number of turns and tactic, opposite outcome.

    Every context is in one pair at most, in the order of the list.
    """
    waiting: dict[tuple[str, str, int, int], list[int]] = {}
    pairs = []
    for n, context in enumerate(contexts):
        if context.kind not in ("fallen", "withstood"):
            continue
        key = (context.source, context.tactic, len(context.turns))
        others = waiting.get((*key, 1 - context.label))
        if others:
            other = others.pop(0)
            pairs.append((n, other) if context.label else (other, n))
        else:
            waiting.setdefault((*key, context.label), []).append(n)
    return pairs


def labels_under(
    bench: Bench[ScenarioQuestion], contexts: Sequence[Context], routing: Intervention, key: str, steps: Steps
) -> list[int | None]:
    """Labels of what the model says to these contexts under a routing, in stored units; None for garbage."""
    return [label for label, _ in answers_under(bench, contexts, routing, key, steps)]


def answers_under(
    bench: Bench[ScenarioQuestion], contexts: Sequence[Context], routing: Intervention, key: str, steps: Steps
) -> list[tuple[int | None, str | None]]:
    """The same, each with what the model says, where the beginning of an answer is traced; None where it is not."""
    engine, scenario = bench.engine, bench.question.scenario

    def compute(some: Sequence[Context]) -> dict[str, Any]:
        prompts = [c.prompt(engine, scenario.system) for c in some]
        said = engine.generate(prompts, routing=routing or None, max_new_tokens=bench.answer_tokens)
        asked = [Behaviour(c.id, c.goal, "", c.category, c.source, c.split) for c in some]
        verdicts = judged(bench.judge, asked, said, prompts)
        neither = ("garbage", "unscored", "wrong")
        unsafe = [None if v.label in neither else bool(v.success) for v in verdicts]
        return {"unsafe": unsafe} | ({"said": [s.text for s in said]} if any(c.begun for c in some) else {})

    units, defends = steps.units(key, engine, contexts, compute), scenario.objective == "defend"
    return [
        (None if unsafe is None else int(unsafe == defends), said)
        for unit in units
        for unsafe, said in zip(unit["unsafe"], unit.get("said", [None] * len(unit["unsafe"])), strict=True)
    ]
