"""What a route owes to its experts, to the forcing, and to its prompt: random and natural routes, and other prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.jobs.audit.plan import RouteAttack
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.route_results import RandomRouteRates, RouteControls, TransferResult
from pointsman.methods.attempts import Attempt
from pointsman.methods.fsour import FSour
from pointsman.methods.guided import Guided
from pointsman.methods.route_controls import NaturalRoutes, RandomRoutes, Transfer, template_places
from pointsman.methods.routes import RouteResult
from pointsman.runs.bench import Bench
from pointsman.runs.rates import AttackRates, compare_success, successes
from pointsman.stats.paired import Comparison
from pointsman.stats.rates import Rate

Controlled = tuple[RouteControls, Comparison, Comparison]
"""The controls, and what the route adds to the random ones and to the natural ones."""


def control_routes(
    bench: Bench[AuditQuestion],
    name: RouteAttack,
    method: FSour | Guided,
    behaviours: Sequence[Behaviour],
    found: Sequence[RouteResult],
    seed: int,
) -> Controlled:
    """Random routes, judged as often as the search, and the natural experts, at the pairs of the routes found."""
    engine, judge, answer = bench.engine, bench.judge, bench.answer_tokens
    key, title = ("route_controls", "Route controls") if name == "fsour" else (f"{name}_controls", "Controls of Guided")
    with bench.stage(key, title, len(found) * (method.restarts + 1)) as steps:
        steps = steps if name == "fsour" else steps.under(name)  # the keys of F-SOUR's are older than Guided
        random = RandomRoutes(method.restarts, method.phase, answer, seed).ask(
            engine, behaviours, judge, found, steps=steps
        )
        natural = NaturalRoutes(method.phase, answer).ask(engine, behaviours, judge, found, steps=steps)
    for draw in range(max(len(draws) for draws in random)):
        drawn = [n for n, draws in enumerate(random) if len(draws) > draw]
        bench.keep_answers(
            f"{name}-random-{draw + 1}", [behaviours[n] for n in drawn], [random[n][draw] for n in drawn]
        )
    bench.keep_answers(f"{name}-natural", behaviours, natural)
    return compare_routes(found, random, natural)


def compare_routes(
    found: Sequence[RouteResult], random: Sequence[Sequence[Attempt]], natural: Sequence[Attempt]
) -> Controlled:
    """Hold every route against its controls, paired by behaviour.

    Args:
        random: Draws of each behaviour, as many as its search had restarts. Shape: [behaviours][draws].
    """
    routes = [r.best.attempt for r in found]
    best = [max(draws, key=lambda a: (a.verdict.score or 0.0, a.verdict.any_compliance)) for draws in random]
    first = Rate.of([draws[0].verdict.success for draws in random], [r.source for r in found])
    controls = RouteControls(RandomRouteRates(**vars(AttackRates.of(best)), asr_at_1=first), AttackRates.of(natural))
    return controls, compare_success(routes, best), compare_success(routes, natural)


def transfer_routes(
    bench: Bench[AuditQuestion], method: FSour, behaviours: Sequence[Behaviour], found: Sequence[RouteResult], most: int
) -> TransferResult | None:
    """Routes that were needed and succeeded, replayed on each other's prompts; None if there are fewer than two."""
    needed = [
        (b, f.best.steps)
        for b, f in zip(behaviours, found, strict=True)
        if f.best.attempt.verdict.success and f.best.steps and not f.base.verdict.success
    ][:most]
    if len(needed) < 2:
        return None
    asked, routes = [b for b, _ in needed], [steps for _, steps in needed]
    with bench.stage("transfer", "Transfer", len(needed) ** 2) as steps:
        matrix = Transfer(method.phase, bench.answer_tokens).replay(
            bench.engine, asked, bench.judge, routes, steps=steps
        )
    kept = []
    for behaviour, route in needed:
        prompt = bench.engine.encode(behaviour.turns)
        places = template_places(prompt, prompt)
        kept.append(sum(step.position in places for step in route) / len(route))
    return transfer_result([b.id for b in asked], matrix, kept)


def transfer_result(ids: Sequence[str], matrix: Sequence[Sequence[Attempt]], kept: Sequence[float]) -> TransferResult:
    """Routes (rows) on behaviours (columns).

    Args:
        ids: Behaviours, as sources of routes and as those they are replayed on. Shape: [m].
        matrix: Shape: [m][m].
        kept: Share of each route's pairs that stands at template positions. Shape: [m].
    """
    success, sources = [successes(row) for row in matrix], [a.source for a in matrix[0]]
    return TransferResult(
        ids=tuple(ids),
        matrix=tuple(map(tuple, success)),
        asr_others=Rate.over_pairs(np.array(success), sources),
        asr_own=Rate.of([row[n] for n, row in enumerate(success)], sources),
        pairs_kept=float(np.median(kept)),
    )
