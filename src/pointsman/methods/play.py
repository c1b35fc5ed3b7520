"""Play conversations against a model, turn by turn; the model's own answers are the context. METHODS section 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pointsman.data.types import Conversation
from pointsman.engine.types import Engine, Routing
from pointsman.judges.types import Judge, Verdict, judged
from pointsman.methods.attempts import refuse_other_answers
from pointsman.methods.steps import Steps


@dataclass(frozen=True)
class Played:
    """One conversation as it went.

    Attributes:
        id, tactic, category: From the conversation.
        source: Its `row_cluster`, as of an `Attempt`.
        responses: The model's answers, one per turn; untrusted text.
        verdicts: The judge of each.
        fallen: First turn (from 0) whose answer gave the restricted content, or None.
    """

    id: str
    tactic: str
    category: str
    source: str
    responses: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def response(self) -> str:
        """The last answer: to the request itself."""
        return self.responses[-1]

    @property
    def verdict(self) -> Verdict:
        """Of the last answer."""
        return self.verdicts[-1]

    @property
    def fallen(self) -> int | None:
        return next((n for n, verdict in enumerate(self.verdicts) if verdict.success), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Played:
        verdicts = tuple(Verdict(**v) for v in data["verdicts"])
        return Played(**{**data, "responses": tuple(data["responses"]), "verdicts": verdicts})


def play(
    engine: Engine,
    conversations: Sequence[Conversation],
    judge: Judge,
    *,
    key: str = "play",
    steps: Steps | None = None,
    routing: Routing = None,
    max_new_tokens: int = 512,
    system: str | None = None,
) -> list[Played]:
    """Play every conversation to its end, in stored units.

    Conversations of different lengths go side by side: turn n of all that have one is one batch.
    """
    steps = steps or Steps()

    def compute(some: Sequence[Conversation]) -> dict[str, Any]:
        return {"played": [p.to_json() for p in _play(engine, some, judge, routing, max_new_tokens, system)]}

    units = steps.units(key, engine, conversations, compute)
    played = [Played.from_json(p) for unit in units for p in unit["played"]]
    refuse_other_answers(key, [p.id for p in played], [c.id for c in conversations])
    return played


def _play(
    engine: Engine,
    conversations: Sequence[Conversation],
    judge: Judge,
    routing: Routing,
    max_new_tokens: int,
    system: str | None,
) -> list[Played]:
    answers: list[list[str]] = [[] for _ in conversations]
    verdicts: list[list[Verdict]] = [[] for _ in conversations]
    for turn in range(max(len(c.turns) for c in conversations)):
        going = [n for n, c in enumerate(conversations) if turn < len(c.turns)]
        prompts = [engine.encode(conversations[n].turns[: turn + 1], answers=answers[n], system=system) for n in going]
        room = [engine.info.context > len(prompt) for prompt in prompts]
        asked = [prompt for prompt, fits in zip(prompts, room, strict=True) if fits]
        completions = engine.generate(asked, routing=routing, max_new_tokens=max_new_tokens) if asked else []
        playing = [conversations[n] for n, fits in zip(going, room, strict=True) if fits]
        found = judged(judge, playing, completions, asked)
        said = zip(completions, found, strict=True)
        for n, fits in zip(going, room, strict=True):
            if not fits:
                answers[n].append("")
                verdicts[n].append(Verdict("garbage", 0.0, "the conversation fills the model's context"))
                continue
            done, verdict = next(said)
            if turn < len(conversations[n].turns) - 1 and "request" not in judge.reads:
                verdict = replace(verdict, score=None, reason=f"not the request itself; {verdict.reason}")
            answers[n].append(done.text)
            verdicts[n].append(verdict)
    return [
        Played(c.id, c.tactic, c.category, c.row_cluster, tuple(answers[n]), tuple(verdicts[n]))
        for n, c in enumerate(conversations)
    ]
