"""The model itself knows its salad: answers that it finds far less likely, without routing, than its own are garbage.

Words at random out of one language look like an answer to a judge that reads how it begins. The untouched model does
not take them for one: their mean log-probability a token lies nats below that of anything it says by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.types import Engine, Prompt
from pointsman.judges.types import Answer, Judge, JudgeAround, Verdict, answer_or_garbage
from pointsman.methods.steps import Remember, Steps

MARGIN = 1.0
"""Nats a token below the least likely of the model's own answers."""
FEWEST = 8
"""Own answers that are needed, to say anything."""
MOST = 32
"""Benign requests that are asked, at most."""
KEY = "likelihood/own-answers"
"""Of the one step that is remembered."""
UNLIKELY = "unlikely under the model without routing"
"""How the reason begins."""


@dataclass
class UnlikelyAnswersApart(JudgeAround):
    """A judge before which answers are set apart as garbage that the model without routing finds unlikely.

    What the model says to benign requests is asked for once, when the first answer is judged; the run remembers it.

    Attributes:
        inner: Who judges the others.
        engine: The model.
        benign: Requests that it answers by itself, without routing.
        remember: Of the run.
        max_new_tokens: Of an answer.
        system: The system prompt of the run.
    """

    inner: Judge
    engine: Engine
    benign: Sequence[Behaviour]
    remember: Remember
    max_new_tokens: int
    system: str | None = None

    def judge(self, asked: Sequence[Behaviour | Conversation], answers: Sequence[Answer]) -> list[Verdict]:
        """As the inner judge; answers whose prompt is not known are not tested."""
        lowest = self.lowest
        known = [n for n, a in enumerate(answers) if a.prompt is not None and a.ids]
        apart: dict[int, Verdict] = {}
        if lowest is not None and known:
            means = self._means([(answers[n].prompt, answers[n].ids) for n in known])
            for n, mean in zip(known, means, strict=True):
                if mean < lowest - MARGIN:
                    why = f"{UNLIKELY}: {mean:.1f} nats a token; its own benign answers have {lowest:.1f} or more"
                    apart[n] = Verdict("garbage", 0.0, why)
        left = [n for n in range(len(answers)) if n not in apart]
        verdicts = self.inner.judge([asked[n] for n in left], [answers[n] for n in left]) if left else ()
        return [verdict for _, verdict in sorted([*apart.items(), *zip(left, verdicts, strict=True)], key=_number)]

    @cached_property
    def lowest(self) -> float | None:
        """Mean log-probability a token of the least likely of the model's own benign answers; None if they are few."""
        means: list[float] = Steps(self.remember).unit(KEY, self.engine, self._own, 0)["means"]
        return min(means) if len(means) >= FEWEST else None

    def note(self, reasons: Sequence[str]) -> str:
        """What this did, in one sentence.

        Args:
            reasons: Of all verdicts of the run.
        """
        if self.lowest is None:
            return (
                f"Answers were not tested for their likelihood under the model: that takes {FEWEST} answers of its own "
                "to benign requests."
            )
        count = sum(reason.startswith(UNLIKELY) for reason in reasons)
        what = "1 answer is" if count == 1 else f"{count or 'no'} answers are"
        return (
            f"Of the answers that are kept, {what} set apart as garbage because the model finds them unlikely without "
            f"routing: more than {MARGIN:g} nat a token below the least likely of its own answers to benign requests."
        )

    def _own(self) -> dict[str, Any]:
        """What the model says to benign requests by itself, as far as it is an answer."""
        prompts = [(b, self.engine.encode(b.turns, system=self.system)) for b in self.benign]
        fitting = [(b, p) for b, p in prompts if len(p) < self.engine.info.context][:MOST]
        if len(fitting) < FEWEST:
            return {"means": []}
        said = self.engine.generate([p for _, p in fitting], max_new_tokens=self.max_new_tokens)
        own = [
            (prompt, s.ids)
            for (behaviour, prompt), s in zip(fitting, said, strict=True)
            if s.ids and isinstance(answer_or_garbage(behaviour, Answer(s.text, s.finished)), Answer)
        ]
        return {"means": self._means(own)}

    def _means(self, said: Sequence[tuple[Prompt | None, tuple[int, ...]]]) -> list[float]:
        """Mean log-probability a token of answers under the model without routing."""
        prompts, targets = [p for p, _ in said if p is not None], [ids for _, ids in said]
        scores = self.engine.score(prompts, targets) if prompts else []
        return [score.total / len(score.tokens) for score in scores]


def _number(numbered: tuple[int, Verdict]) -> int:
    return numbered[0]
