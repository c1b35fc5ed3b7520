"""Labelled contexts that a steering mask is learnt from, with their provenance (METHODS section 5, step 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pointsman.data.splits import cluster
from pointsman.data.types import Behaviour, Conversation, Split
from pointsman.engine.types import Engine, Prompt
from pointsman.methods.attempts import Attempt
from pointsman.methods.play import Played
from pointsman.stats.rates import Rate

Kind = Literal["fallen", "withstood", "refused", "answered"]


@dataclass(frozen=True)
class Context:
    """What stood before an answer of the model, and how it answered.

    Attributes:
        id: Of the conversation or behaviour.
        kind: ``fallen`` (the answer to the last of these turns was unsafe), ``withstood`` (a conversation in which no
            answer was), ``refused`` or ``answered`` (a single request).
        label: 1 for what the mask shall change (fallen contexts; refused requests of a scenario), else 0.
        turns: User turns up to the one that is answered. Shape: [turns].
        answers: The model's answers between them. Shape: [turns - 1].
        response: What the model then said. Untrusted.
        source: The source question.
        goal: The request.
        tactic, category, split: From the conversation or behaviour.
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def prompt(self, engine: Engine, system: str | None = None) -> Prompt:
        """Encoded by the chat template, waiting for the answer."""
        return engine.encode(self.turns, answers=self.answers, system=system)


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
                conversation.id,
                "withstood" if p.fallen is None else "fallen",
                int(p.fallen is not None),
                conversation.turns[: turn + 1],
                p.responses[:turn],
                p.responses[turn],
                cluster(conversation),
                conversation.goal,
                conversation.tactic,
                conversation.category,
                conversation.split,
            )
        )
    return found


def of_requests(behaviours: Sequence[Behaviour], attempts: Sequence[Attempt], *, refused_is: int) -> list[Context]:
    """Single requests that were refused (label `refused_is`) or answered (the other); garbage is neither."""
    found = []
    for b, a in zip(behaviours, attempts, strict=True):
        if not (a.verdict.refused or a.verdict.success):
            continue
        found.append(
            Context(
                b.id,
                "refused" if a.verdict.refused else "answered",
                refused_is if a.verdict.refused else 1 - refused_is,
                b.turns,
                (),
                a.response,
                cluster(b),
                b.goal,
                category=b.category,
                split=b.split,
            )
        )
    return found


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


def where_it_falls(played: Sequence[Played]) -> list[dict[str, int]]:
    """For every turn (from 1): conversations that reach it without having fallen, and how many of them fall there."""
    last = max((len(p.responses) for p in played), default=0)
    rows = []
    for turn in range(last):
        reached = [p for p in played if len(p.responses) > turn and (p.fallen is None or p.fallen >= turn)]
        rows.append({"turn": turn + 1, "reached": len(reached), "fallen": sum(p.fallen == turn for p in reached)})
    return rows


def conversations_section(played: Sequence[Played]) -> dict[str, Any]:
    """How many conversations fall, by turn and tactic."""
    tactics: dict[str, list[Played]] = {}
    for p in played:
        tactics.setdefault(p.tactic, []).append(p)
    return {
        "played": len(played),
        "fallen": _fallen(played),
        "by_turn": where_it_falls(played),
        "by_tactic": {name: _fallen(group) for name, group in sorted(tactics.items())},
    }


def _fallen(played: Sequence[Played]) -> dict[str, Any]:
    return asdict(Rate.of([p.fallen is not None for p in played], [p.source for p in played]))
