"""Unsafe routes: F-SOUR and Guided over behaviours, and where their routes go (METHODS sections 3 and 9).

A target is told by its number and kind, a prompt by its id: no word of either is in the results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.jobs.audit.plan import Audit, RouteAttack
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.results import FsourSeeds, Spread
from pointsman.jobs.audit.route_controls import control_routes, transfer_routes
from pointsman.jobs.audit.route_results import (
    ExampleRoute,
    ExpertUse,
    FoundRoutes,
    Fsour,
    FsourSettings,
    GuidedRoutes,
    GuidedSettings,
    PairCounts,
    RouteCell,
    Searched,
)
from pointsman.jobs.audit.route_variants import search_other_targets, search_sparser
from pointsman.jobs.audit.side_by_side import forwards_of
from pointsman.methods.fsour import FSour
from pointsman.methods.guided import Guided
from pointsman.methods.routes import RouteResult, Search
from pointsman.runs.bench import Bench
from pointsman.runs.rates import AttackRates
from pointsman.stats.paired import compare
from pointsman.stats.rates import Rate

REDACTED = "▮"
MOST_USED = 10
"""Experts shown."""


Method = TypeVar("Method", bound=FSour | Guided)


@dataclass(frozen=True)
class Routes(Generic[Method]):
    """What was searched: the method, what it searched for, and what it found. Shapes: [behaviours]."""

    method: Method
    behaviours: tuple[Behaviour, ...]
    found: list[RouteResult]


def search_routes(bench: Bench[AuditQuestion], plan: Audit, behaviours: tuple[Behaviour, ...]) -> Routes[FSour]:
    """Search an unsafe route for every behaviour with F-SOUR."""
    method = FSour(
        candidates=plan.candidates, restarts=plan.restarts, min_gain=plan.min_gain,
        max_new_tokens=bench.answer_tokens, together=plan.together, seed=plan.seed,
    )  # fmt: skip
    with bench.stage("fsour", "F-SOUR", len(behaviours)) as steps:
        found = method.search(bench.engine, behaviours, bench.judge, steps=steps)
    return _kept(bench, "fsour", Routes(method, behaviours, found))


def search_guided_routes(bench: Bench[AuditQuestion], plan: Audit, behaviours: tuple[Behaviour, ...]) -> Routes[Guided]:
    """Search an unsafe route for every behaviour by the gradient, once."""
    method = guided_method(plan, bench.answer_tokens)
    with bench.stage("guided", "Guided", len(behaviours)) as steps:
        found = method.search(bench.engine, behaviours, bench.judge, steps=steps)
    return _kept(bench, "guided", Routes(method, behaviours, found))


def guided_method(plan: Audit, answer_tokens: int = 1) -> Guided:
    """Guided as an audit runs it."""
    return Guided(max_new_tokens=answer_tokens, together=plan.together or Guided.together)


def _kept(bench: Bench[AuditQuestion], name: RouteAttack, routes: Routes[Method]) -> Routes[Method]:
    best = [r.best for r in routes.found]
    bench.keep_answers(name, routes.behaviours, [search.attempt for search in best])
    bench.keep_routes(name, routes.behaviours, best)
    return routes


def examine_routes(bench: Bench[AuditQuestion], plan: Audit, routes: Routes[FSour]) -> Fsour:
    """Find out what the routes of F-SOUR owe to what: controls, other targets, larger gains, other prompts."""
    method, behaviours, found = routes.method, routes.behaviours, routes.found
    section = Fsour(**vars(_beside_controls(bench, plan, "fsour", routes)))
    if plan.other_targets:
        targets = search_other_targets(bench, method, behaviours, found, plan.other_targets)
        gains = search_sparser(bench, method, behaviours[: plan.other_targets], found)
        section = replace(section, targets=targets, min_gain=gains)
    if plan.transfer:
        section = replace(section, transfer=transfer_routes(bench, method, behaviours, found, plan.transfer))
    return section


def examine_guided_routes(bench: Bench[AuditQuestion], plan: Audit, routes: Routes[Guided]) -> GuidedRoutes:
    """Hold the routes of Guided against their controls."""
    return GuidedRoutes(**vars(_beside_controls(bench, plan, "guided", routes)))


def _beside_controls(
    bench: Bench[AuditQuestion], plan: Audit, name: RouteAttack, routes: Routes[Method]
) -> FoundRoutes:
    section = describe_routes(bench.engine, routes)
    if not plan.route_controls:
        return section
    controls, random, natural = control_routes(bench, name, routes.method, routes.behaviours, routes.found, plan.seed)
    return replace(section, controls=controls, difference_random=random, difference_natural=natural)


def describe_routes(engine: Engine, routes: Routes[Method]) -> FoundRoutes:
    """The rates of the routes, where they go, and one of them in full."""
    found = routes.found
    best, sources = [r.best for r in found], [r.source for r in found]
    base = [r.base.verdict.success for r in found]
    success = [s.attempt.verdict.success for s in best]
    withstood = [n for n, already in enumerate(base) if not already]
    pairs = [len(s.steps) for s in best]
    layers, roles = Counter[int](), Counter[str]()
    for behaviour, search in zip(routes.behaviours, best, strict=True):
        prompt = engine.encode(behaviour.turns)
        layers.update(step.layer for step in search.steps)
        roles.update(prompt.roles[step.position] for step in search.steps)
    accepted = max(sum(pairs), 1)
    return FoundRoutes(
        **vars(AttackRates.of([s.attempt for s in best])),
        asr_at_1=Rate.of([r.searches[0].attempt.verdict.success for r in found], sources),
        base=Rate.of(base, sources),
        asr_base_failed=Rate.of([success[n] for n in withstood], [sources[n] for n in withstood]),
        difference_base=compare(success, base, sources),
        settings=_settings(routes.method),
        pairs=PairCounts(float(np.median(pairs)), min(pairs), max(pairs)),
        layers=tuple(layers[r.layer] / accepted for r in engine.routers),
        roles={role: count / accepted for role, count in sorted(roles.items())},
        experts=experts_used(engine, best),
        behaviours=tuple(map(_searched, found)),
        example=_example(engine, routes),
    )


def _settings(method: FSour | Guided) -> FsourSettings | GuidedSettings:
    if isinstance(method, FSour):
        return FsourSettings(method.candidates, method.restarts, method.log_tau, method.min_gain, method.phase)
    return GuidedSettings(
        method.iterations, method.joint, method.singles, method.restarts, method.log_tau, method.min_gain,
        method.prune, method.phase,
    )  # fmt: skip


def _searched(result: RouteResult) -> Searched:
    search = result.best
    return Searched(
        id=result.id,
        category=result.category,
        success=search.attempt.verdict.success,
        base_success=result.base.verdict.success,
        label=search.attempt.verdict.label,
        restarts=len(result.searches),
        pairs=len(search.steps),
        log_prob_before=search.before,
        log_prob_after=search.after,
        forwards=forwards_of(result),
        tokens=int(sum(s.cost["tokens"] for s in result.searches)),
    )


def experts_used(engine: Engine, searches: Sequence[Search]) -> tuple[ExpertUse, ...]:
    """The experts that most accepted pairs force, beside what uniform draws at the same layers would give.

    `share` and `expected` are of all accepted pairs: expected = pairs at the layer / all pairs x top_k / experts.
    """
    steps = [step for s in searches for step in s.steps]
    layers = Counter(step.layer for step in steps)
    used = Counter((step.layer, expert) for step in steps for expert in step.experts)
    most = sorted(used.items(), key=lambda item: (-item[1], item[0]))[:MOST_USED]

    def uniform(layer: int) -> float:
        return layers[layer] / len(steps) * engine.routers[layer].top_k / engine.routers[layer].experts

    return tuple(ExpertUse(layer, expert, count, count / len(steps), uniform(layer)) for (layer, expert), count in most)


def _example(engine: Engine, routes: Routes[Method]) -> ExampleRoute | None:
    """The first successful route that was needed; the user's words are redacted here already."""
    for behaviour, result in zip(routes.behaviours, routes.found, strict=True):
        search = result.best
        if not (search.attempt.verdict.success and search.steps):
            continue
        prompt = engine.encode(behaviour.turns)
        trajectory = (search.before, *(s.log_prob for s in search.steps))
        gains = [after - before for before, after in pairwise(trajectory)]
        if isinstance(routes.method, Guided):  # pairs come in together, and leave again
            trajectory, gains = (), [(search.after - search.before) / len(search.steps)] * len(search.steps)
        return ExampleRoute(
            id=result.id,
            tokens=tuple(
                t if role in ("template", "last") else REDACTED
                for t, role in zip(prompt.tokens, prompt.roles, strict=True)
            ),
            roles=tuple(prompt.roles),
            layers=len(engine.routers),
            cells=tuple(
                RouteCell(step.layer, step.position, step.experts, gain)
                for step, gain in zip(search.steps, gains, strict=True)
            ),
            trajectory=trajectory,
            log_tau=routes.method.log_tau,
        )
    return None


def search_under_other_seeds(bench: Bench[AuditQuestion], routes: Routes[FSour], number: int) -> FsourSeeds:
    """The same search by F-SOUR under the next seeds."""
    first, behaviours = routes.method, routes.behaviours
    seeds, runs = range(first.seed, first.seed + number), [routes.found]
    with bench.stage("fsour_seeds", "F-SOUR, other seeds", (number - 1) * len(behaviours)) as steps:
        for seed in seeds[1:]:
            again, named = replace(first, seed=seed), steps.under(f"seed-{seed}")
            runs.append(again.search(bench.engine, behaviours, bench.judge, steps=named))
    return fsour_seeds(seeds, runs)


def fsour_seeds(seeds: Sequence[int], runs: Sequence[Sequence[RouteResult]]) -> FsourSeeds:
    """The search under several method seeds on the same behaviours: a spread of its own, never part of n."""
    asr = tuple(float(np.mean([r.best.attempt.verdict.success for r in run])) for run in runs)
    return FsourSeeds(
        seeds=tuple(seeds),
        asr=asr,
        asr_at_1=tuple(float(np.mean([r.searches[0].attempt.verdict.success for r in run])) for run in runs),
        pairs=tuple(float(np.median([len(r.best.steps) for r in run])) for run in runs),
        **vars(Spread.of(asr)),
    )
