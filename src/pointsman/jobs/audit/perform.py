"""The audit: how fragile is this model's safety to its routing? RoSais, masking, F-SOUR and Guided in one run.

Routers are ranked on the discovery split; every rate is reported on the test split (METHODS sections 0 to 3 and 9).
"""

from __future__ import annotations

import numpy as np

from pointsman.engine.types import Engine, refuse_unable
from pointsman.engine.with_system import with_system
from pointsman.jobs.audit.attacks import try_attacks
from pointsman.jobs.audit.baseline import ask_unrouted
from pointsman.jobs.audit.claims import conclude
from pointsman.jobs.audit.forecast import Assumed, answers_to_judge, forecast
from pointsman.jobs.audit.masking import mask, mask_under_other_seeds
from pointsman.jobs.audit.noise import add_noise
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import choose_fitting_prompts
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.ranking import rank
from pointsman.jobs.audit.results import AuditResults, MethodSeeds
from pointsman.jobs.audit.route_attacks import choose_route_attacks, refuse_unguided
from pointsman.jobs.audit.routes import (
    examine_guided_routes,
    examine_routes,
    search_guided_routes,
    search_routes,
    search_under_other_seeds,
)
from pointsman.jobs.audit.side_by_side import side_by_side
from pointsman.jobs.audit.tasks import measure_answers_under, solve_under_masks
from pointsman.jobs.audit.universal import notes_on_universal, try_universal_route
from pointsman.routing.intervention import Intervention
from pointsman.runs.bench import Bench
from pointsman.runs.forecast import foretold
from pointsman.runs.tasks import prepare_tasks


def perform(plan: Audit, bench: Bench[AuditQuestion]) -> AuditResults:
    """Do (or finish) the audit; writes ``artefacts/completions.jsonl`` and, last, ``results.json``.

    Raises:
        InterventionError: The engine cannot carry out what would be tried.
        UsageError, ModelError: Guided is asked for by name, and the model passes no gradients.
        DataError, PromptTooLong: Nothing is left to rank routers on, or to test.
    """
    if bench.max_new_tokens is None:
        bench.max_new_tokens = plan.max_new_tokens
    bench.model = with_system(bench.engine, bench.question.system)
    bench.set_unlikely_answers_apart()
    engine, suite, judge = bench.engine, bench.suite, bench.judge
    _refuse_unable(engine, plan)
    prompts, room = choose_fitting_prompts(suite, plan, engine)
    room.tell(bench.note)
    searched = prompts.test[: plan.searches]
    attacks = choose_route_attacks(bench, plan, searched)
    on_searches = (*attacks.notes, *notes_on_universal(plan, prompts))
    for note in on_searches:
        bench.note(note)
    tasks = prepare_tasks(bench, plan, bench.question.task_folder, plan.seed)
    predicted = forecast(bench, plan, prompts, attacks)
    bench.say(
        f"Auditing {engine.info.name} with {len(prompts.test)} behaviours of {suite.name}, judge {judge.name}, "
        f"seed {plan.seed}; writing to {bench.run.folder}"
    )
    bench.say(foretold(predicted, resumed=bench.run.has_begun))
    bench.foretell_judging(answers_to_judge(plan, prompts, len(engine.routers), Assumed(), attacks))

    baseline = ask_unrouted(bench, prompts)
    ranking = rank(bench, plan, prompts)
    masking = mask(bench, plan, prompts, ranking.order, baseline.restricted)
    noise = add_noise(bench, plan, prompts, baseline.restricted)
    masking_seeds = mask_under_other_seeds(bench, plan, prompts.test, masking, ranking.seeds) if ranking.seeds else ()
    routes = search_routes(bench, plan, searched) if attacks.fsour else None
    fsour = examine_routes(bench, plan, routes) if routes else None
    by_gradient = search_guided_routes(bench, plan, searched) if attacks.gradient is not None else None
    guided = examine_guided_routes(bench, plan, by_gradient) if by_gradient else None
    universal = try_universal_route(bench, plan, prompts, baseline.restricted)
    others = try_attacks(bench, plan, prompts.test, baseline.restricted)
    answers = measure_answers_under(bench, plan, prompts, baseline.benign, masking, noise) if plan.answer_loss else ()
    solved = solve_under_masks(bench, plan, prompts, tasks, masking) if tasks else None
    seeds = None
    if plan.method_seeds > 1:
        again = search_under_other_seeds(bench, routes, plan.method_seeds) if routes else None
        drawn = ranking.seeds if plan.rank == "rosais" else None
        seeds = MethodSeeds(drawn, masking_seeds, again)

    notes = [*_notes_on_system(bench.question.system), *prompts.notes, *room.notes(), *on_searches]
    results = conclude(
        AuditResults(
            **bench.shared_fields(notes, predicted),
            seed=plan.seed,
            small_n=min(len(prompts.test), plan.searches or len(prompts.test)) < 100,
            threat_model="T1",
            left_out=tuple(room.left_out),
            splits=prompts.sizes,
            base=baseline.base,
            utility=baseline.utility,
            over_refusal=baseline.over_refusal,
            multi_turn=baseline.multi_turn,
            rosais=ranking.routers,
            rosais_settings=ranking.settings,
            reach=ranking.reach,
            masking=masking,
            noise=noise,
            fsour=fsour,
            guided=guided,
            side_by_side=side_by_side(routes.found, by_gradient.found, plan.seed) if routes and by_gradient else None,
            universal=universal,
            attacks=others,
            seeds=seeds,
            tasks=solved,
            answers=answers,
        )
    )
    bench.finish(results)
    return results


def _notes_on_system(system: str | None) -> list[str]:
    return [f"Every request is asked with a system prompt of {len(system)} characters"] if system else []


def _refuse_unable(engine: Engine, plan: Audit) -> None:
    """Refuse an engine that cannot carry out one of the kinds of routing that are tried."""
    router = engine.routers[0]
    experts = router.draw(np.random.default_rng(0), 1)[0].tolist()
    for phase in dict.fromkeys(("prefill", *plan.phases)):
        refuse_unable(engine, Intervention.force({router.layer: experts}, phase=phase), f"A mask ({phase})")
    refuse_unable(engine, Intervention.force({(router.layer, 0): experts}, phase="prefill"), "A route")
    refuse_unguided(engine, plan)
    if plan.noise:
        refuse_unable(engine, Intervention.noise({router.layer: 1.0}, seed=0, phase="prefill"), "Noise")
