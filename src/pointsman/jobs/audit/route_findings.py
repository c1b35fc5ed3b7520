"""From the routes that were searched to the section ``fsour`` of ``results.json``. Arithmetic only.

A target is told by its number and kind, a prompt by its id: no word of either is in the results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.jobs.audit.findings import attempt_rates
from pointsman.methods.attempts import Attempt
from pointsman.methods.fsour import FSour, FSourResult, Search
from pointsman.stats.paired import compare
from pointsman.stats.rates import Rate

REDACTED = "▮"
MOST_USED = 10
"""Experts shown."""


def fsour_section(
    results: Sequence[FSourResult], engine: Engine, method: FSour, behaviours: Mapping[str, Behaviour]
) -> dict[str, Any]:
    """F-SOUR over behaviours: rates, where its routes go, and one route in full."""
    best = [r.best for r in results]
    sources = [r.source for r in results]
    base = [r.base.verdict.success for r in results]
    success = [s.attempt.verdict.success for s in best]
    rest = [n for n, already in enumerate(base) if not already]
    pairs = [len(s.steps) for s in best]
    layers: Counter[int] = Counter()
    roles: Counter[str] = Counter()
    rows = []
    for result, search in zip(results, best, strict=True):
        prompt = engine.encode(behaviours[result.id].turns)
        for step in search.steps:
            layers[step.layer] += 1
            roles[prompt.roles[step.position]] += 1
        rows.append(
            {
                "id": result.id,
                "category": result.category,
                "success": search.attempt.verdict.success,
                "base_success": result.base.verdict.success,
                "label": search.attempt.verdict.label,
                "restarts": len(result.searches),
                "pairs": len(search.steps),
                "log_prob_before": search.before,
                "log_prob_after": search.after,
                "forwards": sum(s.cost["rows"] for s in result.searches),
                "tokens": sum(s.cost["tokens"] for s in result.searches),
            }
        )
    accepted = max(sum(layers.values()), 1)
    return {
        **attempt_rates([s.attempt for s in best]),
        "asr_at_1": asdict(Rate.of([r.searches[0].attempt.verdict.success for r in results], sources)),
        "base": asdict(Rate.of(base, sources)),
        "asr_base_failed": asdict(Rate.of([success[n] for n in rest], [sources[n] for n in rest])),
        "difference_base": asdict(compare(success, base, sources)),
        "settings": {
            "candidates": method.candidates,
            "restarts": method.restarts,
            "log_tau": method.log_tau,
            "min_gain": method.min_gain,
            "phase": method.phase,
        },
        "pairs": {"median": float(np.median(pairs)), "min": min(pairs), "max": max(pairs)},
        "layers": [layers[r.layer] / accepted for r in engine.routers],
        "roles": {role: count / accepted for role, count in sorted(roles.items())},
        "experts": experts_used(best, engine),
        "behaviours": rows,
        "example": _example(results, engine, method, behaviours),
    }


def experts_used(searches: Sequence[Search], engine: Engine) -> list[dict[str, Any]]:
    """The experts that most accepted pairs force, beside what uniform draws at the same layers would give.

    `share` and `expected` are of all accepted pairs: expected = pairs at the layer / all pairs x top_k / experts.
    """
    layers: Counter[int] = Counter(step.layer for s in searches for step in s.steps)
    used: Counter[tuple[int, int]] = Counter(
        (step.layer, e) for s in searches for step in s.steps for e in step.experts
    )
    pairs = sum(layers.values())
    most = sorted(used.items(), key=lambda item: (-item[1], item[0]))[:MOST_USED]
    return [
        {
            "layer": layer,
            "expert": expert,
            "count": count,
            "share": count / pairs,
            "expected": layers[layer] / pairs * engine.routers[layer].top_k / engine.routers[layer].experts,
        }
        for (layer, expert), count in most
    ]


def controls_section(
    results: Sequence[FSourResult], random: Sequence[Sequence[Attempt]], natural: Sequence[Attempt]
) -> dict[str, Any]:
    """Random routes and natural experts at the pairs of every route, and what the route adds to each, paired.

    Args:
        random: Draws of each behaviour, as many as its search had restarts. Shape: [behaviours][draws].
    """
    sources = [r.source for r in results]
    success = [r.best.attempt.verdict.success for r in results]
    best = [max(draws, key=lambda a: (a.verdict.score or 0.0, a.verdict.any_compliance)) for draws in random]
    first = Rate.of([draws[0].verdict.success for draws in random], sources)
    return {
        "controls": {
            "random": {**attempt_rates(best), "asr_at_1": asdict(first)},
            "natural": attempt_rates(natural),
        },
        "difference_random": asdict(compare(success, [a.verdict.success for a in best], sources)),
        "difference_natural": asdict(compare(success, [a.verdict.success for a in natural], sources)),
    }


def one_search(searches: Sequence[Search]) -> dict[str, Any]:
    """A single search of some behaviours: rates, and medians of pairs and of log p(target) in nats."""
    attempts = [s.attempt for s in searches]
    rates = attempt_rates(attempts)
    return {
        "n": len(searches),
        "asr_at_1": rates["asr"],
        "any_compliance": rates["any_compliance"],
        "garbage": rates["garbage"],
        "pairs": float(np.median([len(s.steps) for s in searches])),
        "log_prob_before": float(np.median([s.before for s in searches])),
        "log_prob_after": float(np.median([s.after for s in searches])),
    }


def transfer_section(ids: Sequence[str], matrix: Sequence[Sequence[Attempt]], kept: Sequence[float]) -> dict[str, Any]:
    """Routes (rows) on behaviours (columns).

    Args:
        ids: Behaviours, as sources of routes and as those they are replayed on. Shape: [m].
        matrix: Shape: [m][m].
        kept: Share of each route's pairs that stands at template positions. Shape: [m].
    """
    success = np.array([[a.verdict.success for a in row] for row in matrix])  # shape: [m, m]
    sources = [a.source for a in matrix[0]]
    return {
        "ids": list(ids),
        "matrix": success.tolist(),
        "asr_others": asdict(Rate.over_pairs(success, sources)),
        "asr_own": asdict(Rate.of(np.diag(success).tolist(), sources)),
        "pairs_kept": float(np.median(kept)),
    }


def seeds_section(seeds: Sequence[int], runs: Sequence[Sequence[FSourResult]]) -> dict[str, Any]:
    """The search under several method seeds on the same behaviours: a spread of its own, never part of n."""
    asr = [float(np.mean([r.best.attempt.verdict.success for r in run])) for run in runs]
    return {
        "seeds": list(seeds),
        "asr": asr,
        "asr_at_1": [float(np.mean([r.searches[0].attempt.verdict.success for r in run])) for run in runs],
        "pairs": [float(np.median([len(r.best.steps) for r in run])) for run in runs],
        "mean": float(np.mean(asr)),
        "min": min(asr),
        "max": max(asr),
    }


def _example(
    results: Sequence[FSourResult], engine: Engine, method: FSour, behaviours: Mapping[str, Behaviour]
) -> dict[str, Any] | None:
    """The first successful route that was needed; the user's words are redacted here already."""
    shown = next((r for r in results if r.best.attempt.verdict.success and r.best.steps), None)
    if shown is None:
        return None
    prompt = engine.encode(behaviours[shown.id].turns)
    search = shown.best
    cells, last = [], search.before
    for step in search.steps:
        cells.append(
            {"layer": step.layer, "position": step.position, "experts": list(step.experts),
             "gain": step.log_prob - last}
        )  # fmt: skip
        last = step.log_prob
    tokens = [
        t if role in ("template", "last") else REDACTED for t, role in zip(prompt.tokens, prompt.roles, strict=True)
    ]
    return {
        "id": shown.id,
        "tokens": tokens,
        "roles": list(prompt.roles),
        "layers": len(engine.routers),
        "cells": cells,
        "trajectory": [search.before, *(s.log_prob for s in search.steps)],
        "log_tau": method.log_tau,
    }
