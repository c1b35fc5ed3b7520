"""`Attempt`: one generated answer and its verdict. Every attack and every plain question ends in some of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine, Routing
from pointsman.errors import RunError
from pointsman.judges.types import Judge, Verdict, judged
from pointsman.methods.steps import Steps
from pointsman.routing.given import plain
from pointsman.routing.intervention import Intervention


@dataclass(frozen=True)
class Attempt:
    """What the model said to one behaviour, and the judge of it.

    Attributes:
        id, category: From the behaviour.
        source: What intervals cluster by: its `row_cluster`, which is its source question unless it says otherwise.
        response: Untrusted text.
        finished: False if the answer hit the token limit.
        verdict: The judge's.
    """

    id: str
    category: str
    source: str
    response: str
    finished: bool
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Attempt:
        return Attempt(**{**data, "verdict": Verdict(**data["verdict"])})


def ask(
    engine: Engine,
    behaviours: Sequence[Behaviour],
    judge: Judge,
    *,
    routing: Routing = None,
    max_new_tokens: int = 512,
    system: str | None = None,
) -> list[Attempt]:
    """Generate an answer to every behaviour under its routing, and judge it."""
    prompts = [engine.encode(b.turns, system=system) for b in behaviours]
    completions = engine.generate(prompts, routing=routing, max_new_tokens=max_new_tokens)
    verdicts = judged(judge, behaviours, completions, prompts)
    return [
        Attempt(b.id, b.category, b.row_cluster, c.text, c.finished, verdict)
        for b, c, verdict in zip(behaviours, completions, verdicts, strict=True)
    ]


def ask_in_steps(
    engine: Engine,
    behaviours: Sequence[Behaviour],
    judge: Judge,
    *,
    key: str,
    steps: Steps,
    routing: Routing = None,
    max_new_tokens: int = 512,
    system: str | None = None,
) -> list[Attempt]:
    """`ask`, in stored units."""
    given = plain(routing)

    def compute(rows: Sequence[int]) -> dict[str, Any]:
        rules = given if given is None or isinstance(given, Intervention) else [given[n] for n in rows]
        asked = [behaviours[n] for n in rows]
        attempts = ask(engine, asked, judge, routing=rules, max_new_tokens=max_new_tokens, system=system)
        return {"attempts": [a.to_json() for a in attempts]}

    units = steps.units(key, engine, range(len(behaviours)), compute)
    attempts = [Attempt.from_json(a) for unit in units for a in unit["attempts"]]
    refuse_other_answers(key, [a.id for a in attempts], [b.id for b in behaviours])
    return attempts


def refuse_other_answers(key: str, answered: Sequence[str], asked: Sequence[str]) -> None:
    """Raise if what a run remembers answers other requests: its journal and its manifest are not of one run."""
    if list(answered) != list(asked):
        raise RunError(
            f"The journal holds {len(answered)} answers in {key}, and not to the {len(asked)} requests that are asked",
            "Start a new run in another folder: journal and manifest of this one do not belong together",
        )
