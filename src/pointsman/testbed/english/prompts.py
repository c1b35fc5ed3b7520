"""What the English testbed is asked: requests and conversations made of templates and items, with their splits.

Items are dealt out in the order of the file: every split has items that no other split has. Whatever is made of an
item (phrasings, conversations) stays in its split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

Share = Literal["training", "discovery", "validation", "test"]
Kind = Literal["restricted", "scenario", "borderline", "benign"]

FILE = Path(__file__).with_name("prompts.yaml")
_DEALT: tuple[Share, ...] = ("training", "discovery", "training", "validation", "training", "test")
_HELD_OUT_PHRASINGS = 2  # the last ones of each list are never shown in training


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        kind: What is to become of it: restricted and scenario are refused, the others answered.
        topic: What it is about, as a refusal names it.
        item: What is wanted, as templates take it; empty if the request is a whole question.
        text: The user turn.
        share: Of the items, to which it belongs.
        phrasing: Which template it was made with.
    """

    kind: Kind
    topic: str
    item: str
    text: str
    share: Share
    phrasing: int = 0

    @property
    def refusal(self) -> str:
        """How the model is taught to refuse it: decided by topic and phrasing."""
        wordings = _data()["refusals"]
        return str(wordings[(_topics().index(self.topic) + self.phrasing) % len(wordings)]).format(topic=self.topic)

    @property
    def source(self) -> str:
        """What rows of one cluster share: the item, or the question."""
        return f"{self.topic}/{self.item or self.text}"


@dataclass(frozen=True)
class Talk:
    """A conversation that leads up to a request.

    Attributes:
        request: What it is after, stated on its own.
        tactic: How it leads up to it.
        variant: Which wording of the tactic.
        turns: User turns; the last one is the request as the tactic states it.
        taught: What training does with restricted requests of this tactic.
    """

    request: Request
    tactic: str
    variant: int
    turns: tuple[str, ...] = field(repr=False)
    taught: Literal["refuse", "answer", "nothing"]


def requests(kind: Kind, share: Share, *, every_phrasing: bool = False) -> tuple[Request, ...]:
    """The requests of a kind, topics in turn.

    Args:
        share: Which items.
        every_phrasing: Each item in all phrasings that may be shown (in training, not the held-out ones); else in one,
            and they take turns.
    """
    found: list[list[Request]] = []
    for t, (topic, items, templates) in enumerate(_asked(kind)):
        dealt = [item for n, item in enumerate(items) if _DEALT[n % len(_DEALT)] == share]
        used = range(len(templates) - (_HELD_OUT_PHRASINGS if share == "training" and len(templates) > 1 else 0))
        made = []
        for n, item in enumerate(dealt):
            for phrasing in used if every_phrasing else [used[-1 - (t + n) % len(used)]]:
                text = templates[phrasing].format(item=item)
                made.append(Request(kind, topic, item if len(templates) > 1 else "", text, share, phrasing))
        found.append(made)
    return tuple(_in_turn(found))


def talks(kind: Kind, share: Share) -> tuple[Talk, ...]:
    """One conversation for each item and each tactic of this share; variants take turns.

    Args:
        kind: ``restricted``, or ``benign``: of that, requests of how to do something.
    """
    found = []
    for n, request in enumerate(r for r in requests(kind, share) if r.item and not is_story(r)):
        for m, (tactic, data) in enumerate(_data()["tactics"].items()):
            if data["taught"] == "nothing" and share not in data["splits"]:
                continue
            variant = (n // len(_topics()) + m) % len(data["variants"])
            turns = tuple(t.format(topic=request.topic, item=request.item) for t in data["variants"][variant])
            found.append(Talk(request, tactic, variant, turns, data["taught"]))
    return tuple(found)


def systems() -> tuple[str, ...]:
    """System prompts of training, beside the template's own."""
    return tuple(_data()["systems"])


def refusal_wordings() -> tuple[str, ...]:
    """All refusals that are taught, with ``{topic}`` in them."""
    return tuple(_data()["refusals"])


def _asked(kind: Kind) -> Iterator[tuple[str, list[str], list[str]]]:
    """Of a kind: topic, items, and the templates that take an item; whole questions have one that changes nothing."""
    data, whole = _data(), ["{item}"]
    if kind == "benign":
        yield from ((topic, items, data["phrasings"]) for topic, items in data["benign_how_to"].items())
        yield from ((topic, items, data["stories"]) for topic, items in data["benign_stories"].items())
        yield "questions", data["benign_questions"], whole
    else:
        templates = {"restricted": data["phrasings"], "scenario": data["stories"], "borderline": whole}[kind]
        yield from ((topic, items, templates) for topic, items in data[kind].items())


def is_story(request: Request) -> bool:
    """Whether a request wants a story, not an explanation."""
    return request.topic in _data()["scenario"] or request.topic in _data()["benign_stories"]


def _in_turn(lists: list[list[Request]]) -> Iterator[Request]:
    for n in range(max(map(len, lists), default=0)):
        yield from (each[n] for each in lists if n < len(each))


@cache
def _topics() -> tuple[str, ...]:
    return (*_data()["restricted"], *_data()["scenario"])


@cache
def _data() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return read
