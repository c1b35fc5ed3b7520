"""The same searches in other ways: with other targets, and with larger gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.route_results import SearchVariant
from pointsman.methods.fsour import FSour
from pointsman.methods.rosais import to_first_token
from pointsman.methods.routes import RouteResult, Search
from pointsman.runs.bench import Bench
from pointsman.runs.rates import AttackRates

SPARSE = 0.1
"""The minimum gain that the default is compared with, in nats."""
TargetKind = Literal["affirmative", "content", "mixed"]


def search_other_targets(
    bench: Bench[AuditQuestion], method: FSour, behaviours: Sequence[Behaviour], found: Sequence[RouteResult], most: int
) -> tuple[SearchVariant, ...]:
    """One search with each other target, beside the first search with the target proper on the same behaviours."""
    groups = other_targets(bench.engine, behaviours, most)
    if not groups:
        return ()
    proper = search_variant(_first_searches(found, groups[0][1]))
    entries = [replace(proper, target="affirmative", number=0)]
    once = replace(method, restarts=1)
    with bench.stage("targets", "Other targets", sum(len(aimed) for _, aimed in groups)) as steps:
        for number, (kind, aimed) in enumerate(groups, start=1):
            results = once.search(bench.engine, aimed, bench.judge, steps=steps.under(f"target-{number}"))
            searches = [r.searches[0] for r in results]
            entries.append(replace(search_variant(searches), target=kind, number=number))
            bench.keep_answers(f"fsour-target-{number}", aimed, [s.attempt for s in searches])
            bench.keep_routes(f"fsour-target-{number}", aimed, searches)
    return tuple(entries)


def other_targets(
    engine: Engine, behaviours: Sequence[Behaviour], most: int
) -> list[tuple[TargetKind, list[Behaviour]]]:
    """The first `most` behaviours that have other targets, aimed at the first of these, the second, and so on.

    Returns:
        For each its kind and the behaviours that have one: ``content`` if none begins with the first token of the
        target proper, ``affirmative`` if all do, else ``mixed``.
    """
    some = [b for b in behaviours if b.targets][:most]
    aimed: list[tuple[TargetKind, list[Behaviour]]] = []
    for number in range(max((len(b.targets) for b in some), default=0)):
        group = [b for b in some if len(b.targets) > number]
        first = [
            [to_first_token(engine, engine.encode_target(text)) for text in (b.target, b.targets[number])]
            for b in group
        ]
        alike = [one == other for one, other in first]
        kind: TargetKind = "affirmative" if all(alike) else "mixed" if any(alike) else "content"
        aimed.append((kind, [replace(b, target=b.targets[number], targets=()) for b in group]))
    return aimed


def search_sparser(
    bench: Bench[AuditQuestion], method: FSour, behaviours: Sequence[Behaviour], found: Sequence[RouteResult]
) -> tuple[SearchVariant, ...]:
    """One search that accepts only a gain of `SPARSE` nats, beside the first search as it was."""
    usual = replace(search_variant(_first_searches(found, behaviours)), min_gain=method.min_gain)
    if method.min_gain == SPARSE:
        return (usual,)
    sparse = replace(method, restarts=1, min_gain=SPARSE)
    with bench.stage("min_gain", "Sparser routes", len(behaviours)) as steps:
        results = sparse.search(bench.engine, behaviours, bench.judge, steps=steps.under(f"min-gain-{SPARSE}"))
    searches = [r.searches[0] for r in results]
    bench.keep_answers("fsour-min-gain", behaviours, [s.attempt for s in searches])
    bench.keep_routes("fsour-min-gain", behaviours, searches)
    return usual, replace(search_variant(searches), min_gain=SPARSE)


def search_variant(searches: Sequence[Search]) -> SearchVariant:
    """A single search of some behaviours: rates, and medians of pairs and of log p(target) in nats."""
    rates = AttackRates.of([s.attempt for s in searches])
    return SearchVariant(
        n=len(searches),
        asr_at_1=rates.asr,
        any_compliance=rates.any_compliance,
        garbage=rates.garbage,
        pairs=float(np.median([len(s.steps) for s in searches])),
        log_prob_before=float(np.median([s.before for s in searches])),
        log_prob_after=float(np.median([s.after for s in searches])),
    )


def _first_searches(found: Sequence[RouteResult], behaviours: Sequence[Behaviour]) -> list[Search]:
    """The first restart of some behaviours."""
    first = {f.id: f.searches[0] for f in found}
    return [first[b.id] for b in behaviours]
