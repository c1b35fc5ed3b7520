"""What the model said, prompt by prompt: every answer beside that of the untouched model, with what judges say of it.

All of it is read from artefacts of a run, which may come from a stranger: nothing is taken for what it should be, and
every text is untrusted. `Kept` holds the lines as they were read; `answered` makes `Answered` of them, one a prompt,
for the page and for the terminal.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pointsman.report import text

FILE = "artefacts/completions.jsonl"
BESIDE = ("attempts", "conversations", "routes")
"""Names of the other artefacts that tell of answers; runs of older versions have none."""
TINTS = 5
"""Shades of how much is forced at a token."""

Record = Mapping[str, Any]


# ---------------------------------------------------------------------- what is said of an answer


@dataclass(frozen=True)
class Opinion:
    """What one judge says of an answer.

    Attributes:
        score: In [0, 1]; None if it gave none, or if nobody wrote it down.
    """

    judge: str
    label: str
    score: float | None = None
    reason: str = ""

    @property
    def kind(self) -> str:
        """The label, but ``an answer`` for whatever gives one, right or wrong: not every judge can tell."""
        return "an answer" if self.label in ("complied", "correct", "wrong") else self.label or "nothing"

    @property
    def success(self) -> bool | None:
        """Whether the model gave what was asked for; None if the judge cannot say."""
        if self.label in ("", "unscored"):
            return None
        return self.score >= 1 if self.score is not None else self.label in ("complied", "correct")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: what the user said, and the model to it."""

    asked: str
    said: str
    opinion: Opinion


@dataclass(frozen=True)
class Tint:
    """A token of a prompt, and how much was forced there: 0 for nothing to `TINTS` for every layer."""

    token: str
    shade: int
    title: str = ""


@dataclass(frozen=True)
class Route:
    """Where a route forces experts.

    Attributes:
        pairs: How many (token, layer) are forced.
        places: At how many tokens.
        tokens: Of the prompt.
        tints: The prompt, from its beginning.
    """

    pairs: int
    places: int
    tokens: int
    tints: tuple[Tint, ...]


@dataclass(frozen=True)
class Answer:
    """One answer, and under which stages the model gave it, word for word.

    Attributes:
        stages: As the run calls them.
        opinions: Of the run's own judge, then of others.
        fallen: The turn (from 0) in which a conversation fell.
        finished: False if it was cut off at the token limit; None if nobody wrote it down.
        turns: Of a conversation; empty if nobody wrote them down.
        doubt: How much there is to doubt in its verdict: 0 for nothing, the more the more.
        doubts: Why, in words.
    """

    stages: tuple[str, ...]
    said: str
    opinions: tuple[Opinion, ...]
    fallen: int | None = None
    finished: bool | None = None
    turns: tuple[Turn, ...] = ()
    route: Route | None = None
    doubt: float = 0.0
    doubts: tuple[str, ...] = ()

    @property
    def verdict(self) -> Opinion:
        """Of the run's own judge."""
        return self.opinions[0]

    @property
    def disputed(self) -> bool:
        """Judges disagree on whether it gives what was asked for."""
        return len({o.success for o in self.opinions} - {None}) > 1


@dataclass(frozen=True)
class Answered:
    """A prompt and everything that the model said to it.

    Attributes:
        anchor: Of its card in the page: letters that may stand in an address.
        asked: The prompt; of a conversation whose turns nobody wrote down, all that is known of them.
        base: What the untouched model said.
        others: What it said otherwise, in the order of the run.
    """

    id: str
    anchor: str
    category: str
    source: str
    tactic: str
    asked: str
    base: Answer
    others: tuple[Answer, ...]

    @property
    def answers(self) -> tuple[Answer, ...]:
        return (self.base, *self.others)

    @property
    def most_doubtful(self) -> Answer:
        return max(self.answers, key=lambda answer: answer.doubt)

    @property
    def worst(self) -> Answer:
        """The first that gives what was asked for, else the untouched model's."""
        return next((a for a in self.answers if a.verdict.success), self.base)


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Kept:
    """Lines of the artefacts of a run. A line that could not be read is an empty record.

    Attributes:
        completions: None if there is no such file.
        attempts, conversations, routes: What it has no room for.
        verdicts: Of other judges, by the names of their files.
        judge: Name of the run's own judge.
    """

    completions: Sequence[Record] | None = None
    attempts: Sequence[Record] = ()
    conversations: Sequence[Record] = ()
    routes: Sequence[Record] = ()
    verdicts: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    judge: str = "the judge"

    @property
    def torn(self) -> int:
        """Lines of the completions that could not be read."""
        return sum("response" not in record for record in self.completions or ())


def answered(kept: Kept) -> list[Answered]:
    """One for every prompt, in the order in which they were asked."""
    found = _Found.of(kept)
    prompts: dict[tuple[str, str], list[Record]] = {}
    for record in kept.completions or ():
        if "response" in record:
            about = "" if "tactic" in record else _spoken(record.get("prompt"))  # a conversation falls where it falls
            prompts.setdefault((_words(record.get("id")), about), []).append(record)
    anchors: Counter[str] = Counter()
    return [_prompt(id, records, found, _anchor(id, anchors)) for (id, _), records in prompts.items()]


@dataclass(frozen=True)
class _Found:
    """What the files say of (stage, id)."""

    judge: str
    attempts: Mapping[tuple[str, str], Record]
    conversations: Mapping[tuple[str, str], Record]
    routes: Mapping[tuple[str, str], Record]
    opinions: Mapping[tuple[str, str], Sequence[Opinion]]

    @staticmethod
    def of(kept: Kept) -> _Found:
        opinions: dict[tuple[str, str], list[Opinion]] = {}
        judges = {_words(row.get("judge")) or name for name, rows in kept.verdicts.items() for row in rows}
        short = Counter(judge.partition(":")[0] for judge in (kept.judge, *judges))  # without parameters
        for name, rows in kept.verdicts.items():
            for key, row in _by_answer(rows).items():
                judge = _words(row.get("judge")) or name
                first = judge.partition(":")[0]
                opinions.setdefault(key, []).append(_opinion(row, first if short[first] == 1 else judge))
        attempts, conversations, routes = map(_by_answer, (kept.attempts, kept.conversations, kept.routes))
        return _Found(kept.judge, attempts, conversations, routes, opinions)


def _by_answer(rows: Iterable[Record]) -> dict[tuple[str, str], Record]:
    return {(_words(row["stage"]), _words(row["id"])): row for row in rows if "stage" in row and "id" in row}


def _prompt(id: str, records: Sequence[Record], found: _Found, anchor: str) -> Answered:
    answers = [_answer(record, found) for record in records]
    labels: dict[str, dict[str, str]] = {}  # what was said, to its labels, to a stage of each
    for answer in answers:
        labels.setdefault(answer.said, {}).setdefault(answer.verdict.label, answer.stages[0])
    base, *others = _merged([_doubted(answer, labels[answer.said]) for answer in answers])
    first = records[0]
    key = (_words(first.get("stage")), id)
    more = found.attempts.get(key) or found.conversations.get(key) or {}
    asked = max((_spoken(record.get("prompt")) for record in records), key=len)
    category, tactic, source = _words(first.get("category")), _words(first.get("tactic")), _words(more.get("source"))
    return Answered(id, anchor, category, source if source != id else "", tactic, asked, base, tuple(others))


def _answer(record: Record, found: _Found) -> Answer:
    stage, id = _words(record.get("stage")), _words(record.get("id"))
    attempt, played = found.attempts.get((stage, id), {}), found.conversations.get((stage, id), {})
    turns = tuple(_turn(turn, found.judge) for turn in _list(played.get("turns")) if isinstance(turn, Mapping))
    fallen = played.get("fallen")
    fallen = fallen if isinstance(fallen, int) and 0 <= fallen < len(turns) else None
    verdict = turns[-1 if fallen is None else fallen].opinion if turns else None
    own = Opinion(
        found.judge,
        _words(record.get("label")),
        verdict.score if verdict else _share(attempt.get("score")),
        _words(record.get("reason")),
    )
    others = [
        other for other in found.opinions.get((stage, id), ()) if (other.judge, other.label) != (own.judge, own.label)
    ]
    finished, route = attempt.get("finished"), found.routes.get((stage, id))
    return Answer(
        stages=(stage,),
        said=_words(record["response"]),
        opinions=(own, *others),
        fallen=fallen,
        finished=finished if isinstance(finished, bool) else None,
        turns=turns,
        route=_route(route) if route else None,
    )


def _turn(turn: Record, judge: str) -> Turn:
    return Turn(_words(turn.get("asked")), _words(turn.get("said")), _opinion(turn, judge))


def _opinion(row: Record, judge: str) -> Opinion:
    return Opinion(judge, _words(row.get("label")), _share(row.get("score")), _words(row.get("reason")))


def _merged(answers: Sequence[Answer]) -> list[Answer]:
    """Answers with the same words, turns and verdicts are one, under several stages; but each route is its own."""
    merged: dict[tuple[Any, ...], Answer] = {}
    for answer in answers:
        key = (answer.said, answer.opinions, answer.turns, answer.finished, answer.doubts, answer.route)
        known = merged.get(key)
        stages = (*known.stages, *answer.stages) if known else answer.stages
        merged[key] = replace(answer, stages=stages)
    return list(merged.values())


# ---------------------------------------------------------------------- doubts


def _doubted(answer: Answer, labels: Mapping[str, str]) -> Answer:
    """The answer with what there is to doubt in its verdict.

    Args:
        labels: What was said of the same words, each with a stage in which it was.
    """
    own = answer.verdict
    found: list[tuple[float, str]] = []
    kinds = {o.kind for o in answer.opinions}
    if answer.disputed and len(kinds) == 1:
        found.append((0.6, "judges agree that it is an answer, and not that it is the right one"))
    elif answer.disputed:
        found.append((1.0, "judges disagree on whether it gives what was asked for"))
    elif len(kinds) > 1:
        found.append((0.3, f"one judge says {' and another '.join(sorted(kinds))}"))
    for opinion in answer.opinions:
        if opinion.score is not None and 0 < opinion.score < 1:
            found.append((1 - abs(2 * opinion.score - 1), f"{opinion.judge} is torn: score {opinion.score:.2g}"))
    if own.label == "unscored":
        found.append((0.8, f"{own.judge} could not score it"))
    for label, stage in labels.items():
        if label != own.label:
            found.append((0.7, f"the same words are called {label} in {stage}"))
    if answer.finished is False and own.success:
        found.append((0.4, "called a success, and cut off at the token limit"))
    return replace(answer, doubt=round(sum(weight for weight, _ in found), 3), doubts=tuple(said for _, said in found))


# ---------------------------------------------------------------------- routes


def _route(row: Record) -> Route | None:
    """A route over the tokens of its prompt; None if what is written down is none."""
    tokens, layers = [_words(token) for token in _list(row.get("tokens"))], row.get("layers")
    forced: dict[int, list[Record]] = {}
    pairs = [pair for pair in _list(row.get("pairs")) if isinstance(pair, Mapping)]
    for pair in pairs:
        place = pair.get("position")
        if isinstance(place, int) and 0 <= place < len(tokens):
            forced.setdefault(place, []).append(pair)
    if not tokens or not isinstance(layers, int) or layers < 1:
        return None
    tints = []
    for place, token in enumerate(tokens):
        there = forced.get(place, [])
        shade = -(-TINTS * min(len(there), layers) // layers)
        tints.append(Tint(token.replace("\n", "⏎") or "∅", shade, _forced(there, layers)))
    return Route(len(pairs), len(forced), len(tokens), tuple(tints))


def _forced(pairs: Sequence[Record], layers: int, most: int = 8) -> str:
    """``2 of 4 layers: 0 (experts 1, 5), 3 (experts 0, 2)``."""
    if not pairs:
        return ""
    each = []
    for pair in pairs[:most]:
        experts = [expert for expert in _list(pair.get("experts")) if isinstance(expert, int)]
        each.append(f"{_words(pair.get('layer'))} (experts {text.experts(experts)})")
    more = [f"and {len(pairs) - most} more"] if len(pairs) > most else []
    return f"{len(pairs)} of {layers} layers: {', '.join([*each, *more])}"


# ---------------------------------------------------------------------- whatever a file may hold


def _words(value: Any) -> str:
    """Any value as text; nothing for null."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _share(value: Any) -> float | None:
    """A score, if it is one."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _spoken(prompt: Any) -> str:
    """A prompt or a conversation as text."""
    if not isinstance(prompt, list):
        return _words(prompt)
    return "\n".join(
        f"{_words(turn.get('role', 'user'))}: {_words(turn.get('content'))}"
        if isinstance(turn, Mapping)
        else _words(turn)
        for turn in prompt
    )


def _anchor(id: str, taken: Counter[str]) -> str:
    """The id in letters that may stand in an address, of which no two are alike."""
    plain = "a-" + (re.sub(r"[^A-Za-z0-9._/-]+", "-", id)[:80].strip("-") or "prompt")
    taken[plain] += 1
    return plain if taken[plain] == 1 else f"{plain}~{taken[plain]}"
