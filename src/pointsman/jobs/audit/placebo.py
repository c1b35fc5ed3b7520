"""The placebo of the ranking: do the same routers raise the model's own refusal on benign prompts?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pointsman.data.types import Behaviour
from pointsman.jobs.audit.prompts import with_targets
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.results import PlaceboSettings
from pointsman.judges.types import judged
from pointsman.methods.rosais import RoSais, RoSaisResult
from pointsman.methods.steps import Steps
from pointsman.runs.bench import Bench

_COVERED = 0.9  # share of the refusals that the refusal tokens begin


@dataclass(frozen=True)
class RefusalTokens:
    """How the model's own refusals begin.

    Attributes:
        ids: Token ids that begin at least 90 % of the refusals, the most frequent first.
        tokens: As text.
        refused: How many of the prompts were refused.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    refused: int


def rank_by_refusal(
    bench: Bench[AuditQuestion], method: RoSais, restricted: Sequence[Behaviour], benign: Sequence[Behaviour]
) -> tuple[RoSaisResult | None, PlaceboSettings]:
    """Rank the routers by the rise of the refusal on benign prompts; None, with the reason, where it cannot be done."""
    if not benign:
        return None, without_placebo("there are no benign prompts of the discovery split")
    harmless = with_targets(benign)
    with bench.stage("placebo", "Placebo", len(restricted) + len(harmless)) as steps:
        steps = steps.under("placebo")
        refusals = refusal_tokens(bench, restricted, steps)
        if not refusals.ids:
            why = f"the model refused none of the {len(restricted)} discovery prompts"
            return None, without_placebo(why, refused=refusals.refused)
        ranked = replace(method, affirmative=refusals.ids).rank(bench.engine, harmless, steps=steps)
    base = float(ranked.base.mean())
    return ranked, PlaceboSettings(len(harmless), refusals.tokens, refusals.refused, base, None)


def without_placebo(why: str, refused: int | None = None) -> PlaceboSettings:
    """What is said where there is no placebo."""
    return PlaceboSettings(0, (), refused, None, why)


def refusal_tokens(bench: Bench[AuditQuestion], behaviours: Sequence[Behaviour], steps: Steps) -> RefusalTokens:
    """How the model begins when it refuses these prompts: the fewest first tokens that cover 90 % of its refusals."""
    engine = bench.engine
    first: Counter[int] = Counter()
    example: dict[int, Behaviour] = {}

    def compute(some: Sequence[Behaviour]) -> dict[str, Any]:
        prompts = [engine.encode(b.turns) for b in some]
        answers = engine.generate(prompts, max_new_tokens=bench.answer_tokens)
        verdicts = judged(bench.judge, some, answers, prompts)
        return {"first": [a.ids[0] if v.refused and a.ids else None for a, v in zip(answers, verdicts, strict=True)]}

    units = steps.units("refusals", engine, behaviours, compute)
    for behaviour, token in zip(behaviours, (token for unit in units for token in unit["first"]), strict=True):
        if token is not None:
            first[token] += 1
            example.setdefault(token, behaviour)
    ids: list[int] = []
    for token, _ in sorted(first.items(), key=lambda item: (-item[1], item[0])):
        if sum(first[t] for t in ids) >= _COVERED * first.total():
            break
        ids.append(token)

    def texts() -> dict[str, Any]:
        if not ids:
            return {"tokens": []}
        answers = engine.generate([engine.encode(example[t].turns) for t in ids], max_new_tokens=1)
        return {"tokens": [a.text for a in answers]}

    tokens = steps.unit("refusal-tokens", engine, texts, 0)["tokens"]
    return RefusalTokens(tuple(ids), tuple(tokens), first.total())
