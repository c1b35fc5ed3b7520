"""Judges of tests: most say one thing of one answer, whatever else is judged beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pointsman.data.types import Behaviour, Conversation
from pointsman.judges.types import Answer, Reading, Verdict


class OneByOne:
    """A judge by its verdict `one` on a single answer."""

    name: str
    version: str
    grades_content: bool
    reads: frozenset[Reading] = frozenset({"request", "finished"})
    tells_garbage = True  # exact, so that nothing stands between it and an answer

    def judge(self, asked: Sequence[Behaviour | Conversation], answers: Sequence[Answer]) -> list[Verdict]:
        return [self.one(request, answer) for request, answer in zip(asked, answers, strict=True)]

    def one(self, asked: Any, answer: Answer) -> Verdict:
        raise NotImplementedError
