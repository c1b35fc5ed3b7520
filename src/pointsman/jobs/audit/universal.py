"""One route for all prompts: found on discovery prompts, and asked on all that are tested (METHODS section 9)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pointsman.data.types import Behaviour
from pointsman.engine.abilities import that_guides
from pointsman.engine.types import Engine
from pointsman.errors import ModelError, UsageError
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import AuditPrompts
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.route_results import UniversalPlace, UniversalRates
from pointsman.methods.attempts import Attempt
from pointsman.methods.universal import Replay, Universal, UniversalAnswers, UniversalSearch
from pointsman.runs.bench import Bench
from pointsman.runs.rates import AttackRates, compare_success, successes
from pointsman.stats.paired import above_draws
from pointsman.stats.rates import Rate

ROUTE = "artefacts/universal_route.json"
"""Where the route is kept, for `UniversalRoute.load`."""


def forwards_of_gradient(engine: Engine, behaviour: Behaviour) -> float:
    """What a route gradient takes, in forwards of its row, seen on one.

    Raises:
        UsageError, ModelError: There are no gradients.
    """
    try:
        prompts, targets = [engine.encode(behaviour.turns)], [engine.encode_target(behaviour.target)]
        return that_guides(engine).route_gradients(prompts, targets)[0].forwards
    except (UsageError, ModelError) as error:
        raise type(error)(error.problem, "Leave --universal out") from error


def random_routes(plan: Audit) -> int:
    """How many random universal routes are asked beside the one that was found."""
    return plan.random_draws if plan.route_controls else 0


def notes_on_universal(plan: Audit, prompts: AuditPrompts) -> tuple[str, ...]:
    """Where fewer prompts are searched on than were asked for, that it is so."""
    there = len(prompts.discovery)
    if plan.universal <= there:
        return ()
    return (
        f"The universal route is searched on {there} prompts, and not on {plan.universal}: routers are ranked on no "
        "more (--rank-prompts)",
    )


def try_universal_route(
    bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts, base: Sequence[Attempt]
) -> UniversalRates | None:
    """Find a route on discovery prompts and ask under it; None if none was asked for.

    Args:
        base: Answers to the tested behaviours as the model is.
    """
    if not plan.universal:
        return None
    engine, test, draws, method = bench.engine, prompts.test, random_routes(plan), Universal()
    with bench.stage("universal", "Universal route", method.iterations) as steps:
        found = method.find(engine, prompts.discovery[: plan.universal], steps=steps)
    bench.run.write_text(ROUTE, json.dumps(found.route.to_json(), indent=1) + "\n")
    replay = Replay(draws, bench.answer_tokens, plan.seed)
    with bench.stage("universal_answers", "Under the universal route", (2 + draws) * len(test)) as steps:
        answers = replay.ask(engine, test, bench.judge, found.route, plain=base, steps=steps)
    bench.keep_answers("universal", test, answers.routed)
    bench.keep_answers("universal-natural", test, answers.natural)
    for draw, drawn in enumerate(answers.random, 1):
        bench.keep_answers(f"universal-random-{draw}", test, drawn)
    return universal_rates(method, found, answers, plan.seed)


def universal_rates(method: Universal, found: UniversalSearch, answers: UniversalAnswers, seed: int) -> UniversalRates:
    """What the route does on the test prompts, beside its controls."""
    routed, drawn = answers.routed, [successes(draw) for draw in answers.random]
    return UniversalRates(
        **vars(AttackRates.of(routed, seed)),
        prompts=len(found.prompts),
        reached=Rate.of([total >= method.log_tau for total in found.after], found.sources, seed),
        log_prob_before=found.trajectory[0],
        log_prob_after=found.trajectory[-1],
        forwards=found.rows,
        places=tuple(
            UniversalPlace(each.layer, each.place.anchor, each.place.offset, each.experts)
            for each in found.route.forced
        ),
        vs_base=compare_success(routed, answers.plain, seed),
        natural=AttackRates.of(answers.natural, seed),
        difference_natural=compare_success(routed, answers.natural, seed),
        random=AttackRates.of_draws(answers.random, seed) if drawn else None,
        draws=tuple(sum(draw) / len(draw) for draw in drawn),
        difference_random=above_draws(successes(routed), drawn, [a.source for a in routed], seed) if drawn else None,
    )
