"""The ranking stage of the audit: RoSais on the discovery split, and how far it can be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.jobs.audit.findings import reach_section, rosais_section
from pointsman.jobs.audit.work import Asked, Work
from pointsman.judges.types import judged
from pointsman.methods.attempts import CHUNK
from pointsman.methods.rosais import RoSais, RoSaisResult
from pointsman.methods.steps import Steps
from pointsman.stats.rank_agreement import spearman

AFFIRMATIVE = "Sure"
"""How an answer to a benign request without a target is taken to begin."""

_COVERED = 0.9  # share of the refusals that the refusal tokens begin


@dataclass(frozen=True)
class Refusals:
    """How the model's own refusals begin.

    Attributes:
        ids: Token ids that begin at least 90 % of the refusals, the most frequent first.
        tokens: As text.
        refused, asked: How many of the prompts were refused.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    refused: int
    asked: int


def rank(work: Work, asked: Asked) -> tuple[RoSaisResult, dict[str, Any]]:
    """Rank the routers by the first token, as the paper does; by the whole target and on benign prompts beside it.

    Returns:
        The scores that later stages rank by, and the sections ``rosais``, ``rosais_settings`` and, if there are more
        seeds than one, ``seeds``.
    """
    audit, engine, prompts = work.audit, work.engine, asked.discovery
    method = RoSais(samples=audit.samples, seed=audit.seed)
    with work.stage("rosais", "RoSais", len(prompts)) as steps:
        ranked = method.rank(engine, prompts, steps=steps)
    by_target = replace(method, score="target", scale="log_probability")
    with work.stage("rosais_target", "RoSais of targets", len(prompts)) as steps:
        target = by_target.rank(engine, prompts, steps=steps.under("target"))
    placebo, refusals = None, None
    harmless = with_targets(asked.benign_discovery) if audit.placebo else []
    if harmless:
        with work.stage("placebo", "Placebo", len(prompts) + len(harmless)) as steps:
            refusals = refusal_tokens(work, prompts, steps.under("placebo"))
            if refusals.ids:
                of_refusal = replace(method, affirmative=refusals.ids)
                placebo = of_refusal.rank(engine, harmless, steps=steps.under("placebo"))
    sections = rosais_section(
        ranked, method, engine, target=target, placebo=placebo, top_n=routers_masked(work), seed=audit.seed
    )
    sections["rosais_settings"]["placebo"] = _placebo_settings(placebo, refusals, len(harmless), audit.placebo)
    sections["reach"] = reach_section(ranked, method, engine)
    if audit.method_seeds > 1:
        sections["seeds"] = {"rosais": _seeds(work, asked, method, ranked)}
    return ranked, sections


def routers_masked(work: Work) -> int:
    """How many of the top routers are masked at most: asked for, or min(5, L / 4)."""
    layers = len(work.engine.routers)
    return min(work.audit.routers or max(1, min(5, layers // 4)), layers)


def with_targets(behaviours: Sequence[Behaviour]) -> list[Behaviour]:
    """The same, with `AFFIRMATIVE` for the target of those that have none."""
    return [b if b.target else replace(b, target=AFFIRMATIVE) for b in behaviours]


def refusal_tokens(work: Work, behaviours: Sequence[Behaviour], steps: Steps) -> Refusals:
    """How the model begins when it refuses these prompts: the fewest first tokens that cover 90 % of its refusals."""
    engine, judge = work.engine, work.judge
    first: Counter[int] = Counter()
    example: dict[int, Behaviour] = {}
    for start in range(0, len(behaviours), CHUNK):
        chunk = behaviours[start : start + CHUNK]

        def compute(chunk: Sequence[Behaviour] = chunk) -> dict[str, Any]:
            prompts = [engine.encode(b.turns) for b in chunk]
            answers = engine.generate(prompts, max_new_tokens=work.answer_tokens)
            verdicts = judged(judge, chunk, answers)
            return {
                "first": [a.ids[0] if v.refused and a.ids else None for a, v in zip(answers, verdicts, strict=True)]
            }

        unit = steps.unit(f"refusals/{start}", engine, compute, len(chunk))
        for behaviour, token in zip(chunk, unit["first"], strict=True):
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
    return Refusals(tuple(ids), tuple(tokens), first.total(), len(behaviours))


def _placebo_settings(
    placebo: RoSaisResult | None, refusals: Refusals | None, prompts: int, wanted: bool
) -> dict[str, Any]:
    """What the placebo was measured with; or, in words, why it was not."""
    why = None
    if not wanted:
        why = "not asked for"
    elif refusals is None:
        why = "there are no benign prompts of the discovery split"
    elif placebo is None:
        why = f"the model refused none of the {refusals.asked} discovery prompts"
    return {
        "prompts": 0 if placebo is None else prompts,
        "tokens": [] if refusals is None else list(refusals.tokens),
        "refused": None if refusals is None else refusals.refused,
        "base": None if placebo is None else float(placebo.base.mean()),
        "why_not": why,
    }


def _seeds(work: Work, asked: Asked, method: RoSais, first: RoSaisResult) -> dict[str, Any]:
    """The ranking once more with each of the other seeds: how much of it is the luck of the masks."""
    seeds = list(range(method.seed, method.seed + work.audit.method_seeds))
    results = [first]
    with work.stage("rosais_seeds", "RoSais, other seeds", len(asked.discovery) * (len(seeds) - 1)) as steps:
        for seed in seeds[1:]:
            again = replace(method, seed=seed)
            results.append(again.rank(work.engine, asked.discovery, steps=steps.under(f"seed-{seed}")))
    pairs = [spearman(a.mean, b.mean) for n, a in enumerate(results) for b in results[:n]]
    kept = [p for p in pairs if p is not None]
    return {
        "seeds": seeds,
        "rankings": [list(r.ranking) for r in results],
        "top1": [r.ranking[0] for r in results],
        "spearman": {"mean": float(np.mean(kept)), "min": min(kept), "max": max(kept)} if kept else None,
    }
