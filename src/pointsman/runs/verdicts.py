"""Verdicts of judges that send answers away: each is a step of the run, so an endpoint that dies loses none of them.

A step is named by what the verdict follows from: judge, version, the parameters that decide, request and answer. A run
that goes on asks only for what it lacks, and the same answer to the same request is judged once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from pointsman.data.types import Behaviour, Conversation
from pointsman.errors import JudgeError
from pointsman.judges.endpoint import RemoteJudge, Usage
from pointsman.judges.making import parameters_of
from pointsman.judges.types import Answer, Judge, JudgeAround, Verdict
from pointsman.runs.results import JudgingCost
from pointsman.runs.run import Run

VERDICT = "verdict/"
_CHARACTERS_A_TOKEN = 4.0  # of English, about
_LENGTH_OF_ANSWER = 0.6  # of the longest allowed, as the forecast of an audit assumes


def remembering(judge: Judge, run: Run) -> Judge:
    """The judge, or one around it that remembers in the run, if it sends answers away."""
    remote = _remote(judge)
    return judge if remote is None else RememberedVerdicts(remote, run)


class RememberedVerdicts(JudgeAround):
    """A judge around one that sends answers away: what that says is a step of the run."""

    def __init__(self, inner: RemoteJudge, run: Run) -> None:
        super().__init__(inner)
        self._remote, self._run = inner, run

    def judge(self, asked: Sequence[Behaviour | Conversation], answers: Sequence[Answer]) -> list[Verdict]:
        """Verdicts in order; those that the run lacks are asked for, and written down one by one."""
        keys = [self._key(one, answer) for one, answer in zip(asked, answers, strict=True)]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        lacking = sorted(place for key, place in first.items() if key not in self._run)

        def done(place: int, verdict: Verdict, usage: Usage) -> None:
            self._run.remember(keys[lacking[place]], lambda: {"verdict": asdict(verdict), "usage": asdict(usage)})

        if lacking:
            self._remote.judge_each([asked[n] for n in lacking], [answers[n] for n in lacking], done)
        return [Verdict(**self._run.remember(key, self._refuse_missing)["verdict"]) for key in keys]

    def _refuse_missing(self) -> Any:
        raise JudgeError(
            f"The judge {self.name} gave no verdict on an answer", "It must hand over one Verdict for each answer"
        )

    def _key(self, asked: Behaviour | Conversation, answer: Answer) -> str:
        reads = self._remote.reads
        read = {
            "request": asked.goal,
            "turns": asked.turns if "conversation" in reads else None,
            "finished": answer.finished if "finished" in reads else None,
        }
        parameters = {k: v for k, v in parameters_of(self._remote).items() if k not in self._remote.manner}
        of = [self.name, self.version, parameters, read, answer.text]
        return VERDICT + sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def judging_cost(judge: Judge, run: Run) -> JudgingCost | None:
    """What the verdicts that the run remembers have taken; None for a judge that sends nothing away."""
    remote = _remote(judge)
    if remote is None:
        return None
    done = run.keys()
    steps = [run.recall(key) for key in done if key.startswith(VERDICT)]
    used = [Usage(**step["usage"]) for step in steps]
    tokens_in, tokens_out = sum(u.tokens_in for u in used), sum(u.tokens_out for u in used)
    return JudgingCost(
        answers=len(steps),
        unscored=sum(step["verdict"]["label"] == "unscored" for step in steps),
        requests=sum(u.requests for u in used),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        uncounted=sum(not u.counted for u in used),
        money=_rounded(remote.money(tokens_in, tokens_out)),
    )


def judging_foretold(judge: Judge, answers: int, answer_tokens: int) -> str | None:
    """What judging will take, in a sentence; None for a judge that sends nothing away.

    Args:
        answers: How many, about.
        answer_tokens: How long one may be.
    """
    remote = _remote(judge)
    if remote is None:
        return None
    tokens_in = answers * (remote.tokens_of_request + _LENGTH_OF_ANSWER * answer_tokens)
    tokens_out = answers * remote.tokens_of_reply
    cost = _rounded(remote.money(tokens_in, tokens_out))
    price = f", {cost:,.2f} in money" if cost is not None else "; give price_in and price_out to see what it costs"
    return (
        f"About {answers:,} answers to judge with {remote.name}: {tokens_in / 1e6:.2g} million tokens to read and "
        f"{tokens_out / 1e6:.2g} million to write{price}"
    )


def _remote(judge: Judge) -> RemoteJudge | None:
    while hasattr(judge, "inner"):
        judge = judge.inner
    return judge if getattr(judge, "remote", False) and isinstance(judge, RemoteJudge) else None


def _rounded(money: float | None) -> float | None:
    return None if money is None else round(money, 4)
