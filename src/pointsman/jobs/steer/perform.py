"""Steering: from a scenario to a mask on the routers that works on prompts it has never seen (METHODS section 5).

Matrices are learnt on the discovery split, everything is chosen on validation, and the headline is the test split.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from pointsman.data.splits import SPLITS, note_on_clusters
from pointsman.engine.abilities import that_learns
from pointsman.engine.types import refuse_unable
from pointsman.jobs.steer.candidates import Candidate, Tried
from pointsman.jobs.steer.choosing import Choosing, screen_of
from pointsman.jobs.steer.claims import conclude
from pointsman.jobs.steer.enough import limits_without_margin, margin_on
from pointsman.jobs.steer.forecast import forecast
from pointsman.jobs.steer.latency import time_latency
from pointsman.jobs.steer.learning import Learning, gather_material
from pointsman.jobs.steer.lessons import Lessons
from pointsman.jobs.steer.plan import Steer
from pointsman.jobs.steer.played import PlayedSplit, play_splits
from pointsman.jobs.steer.prompts import choose_prompts, room_of
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.jobs.steer.results import (
    CircuitFacts,
    CircuitStability,
    Contrasted,
    Overfit,
    ScenarioFacts,
    SteerResults,
)
from pointsman.jobs.steer.surrogates import measure_gap, surrogate_facts
from pointsman.jobs.steer.testing import ask_arms, upper_bound, with_other_seeds
from pointsman.jobs.steer.traces import collect_traces
from pointsman.jobs.steer.tracing_moves import trace_moves
from pointsman.judges.making import written_judge
from pointsman.methods.conditional import Conditional
from pointsman.routing.intervention import Intervention
from pointsman.routing.low_rank import LowRank
from pointsman.runs.answer_loss import AnswersUnder, measure_answers
from pointsman.runs.bench import Bench
from pointsman.runs.tasks import Arm, prepare_tasks
from pointsman.steering.artefact import CARD, DATA, TENSORS, Steering

ARTEFACT = "steering"
MEASURED = {
    "garbage": "garbage", "benign": "benign requests answered", "benign_conversations": "benign conversations answered",
    "over_refusal": "harmless requests refused", "held": "restricted requests refused",
}  # fmt: skip
"""What the model card calls each measure; the gain is called as the objective calls it."""
METHODS = {
    "mascing": "MASCing", "through_model": "learnt through the model",
    "conditional": "conditional, learnt through the model",
}  # fmt: skip
"""What it calls the method; the refinement stands beside it."""


def perform(plan: Steer, bench: Bench[SteerQuestion]) -> SteerResults:
    """Do (or finish) the run; writes the artefact, contexts, completions and, last, ``results.json``.

    Raises:
        DataError: There is nothing to learn from: no conversation falls, nothing is refused, too few contexts.
        UsageError: It needs an engine that learns, and this one does not.
        InterventionError: The engine cannot carry out what would be tried.
    """
    _refuse_unable(plan, bench)
    scenario = bench.question.scenario
    bench.set_unlikely_answers_apart(scenario.system)
    bench.say(
        f"{'Continuing to steer' if bench.run.has_begun else 'Steering'} {bench.engine.info.name} for {scenario.name} "
        f"({scenario.objective}), judge {bench.judge.name}, seed {plan.seed}; writing to {bench.run.folder}"
    )
    tasks = prepare_tasks(bench, plan, bench.question.task_folder, plan.seed)
    room = room_of(bench)
    prompts = {split: choose_prompts(bench, room, split, *plan.most(split), plan.seed) for split in SPLITS}
    room.tell(bench.note)
    margin = None if plan.confidence is None else margin_on(scenario, vars(prompts["validation"]), plan.confidence)
    unsure = [f"{sentence}." for sentence in limits_without_margin(scenario, margin)] if margin else []
    learnt_on, tested_on = ([i for items in vars(prompts[s]).values() for i in items] for s in ("discovery", "test"))
    if on_clusters := note_on_clusters(learnt_on, tested_on):
        unsure.append(f"{on_clusters}.")
    for sentence in unsure:
        bench.note(sentence)
    predicted = forecast(bench, plan, prompts)

    splits, refusals = play_splits(bench, prompts, plan.contrast)
    validation, test = splits["validation"], splits["test"]

    lessons = Lessons(bench, plan.lesson_tokens)
    material = gather_material(lessons, splits["discovery"], refusals, traced=plan.learns_constant)
    learning = Learning(bench, plan, material)
    learnt = learning.learn()

    screen = screen_of(lessons, validation, refusals)
    surrogate, unseen = None, [*validation.contexts, *test.contexts]
    if learnt.surrogates:
        surrogate = surrogate_facts(learnt.surrogates, material, unseen, collect_traces(bench, unseen, "unseen"))
    gap = measure_gap(bench, learnt.matrices, material.sigma, validation)
    choosing = Choosing(bench, plan, material, validation, screen)
    choice = choosing.choose(learnt.matrices, learnt.maps)
    chosen = choice.best.candidate

    arms = ask_arms(bench, test, choice, plan.asked)
    seeds, repeated = with_other_seeds(learning, choosing, test, chosen, arms.after)
    bound = upper_bound(learning, lessons, test, refusals, chosen)
    moved = trace_moves(bench, test.prompts, test.outcome, chosen.routing, plan.moved_prompts, plan.seed)
    latency = time_latency(bench, test.prompts.benign, chosen.routing, plan.latency_rounds)

    mask = [Arm("with the mask", "routing", chosen.routing)]
    solved = tasks.solve(bench, mask) if tasks else None
    answers: tuple[AnswersUnder, ...] = ()
    if plan.answer_loss:
        answers = measure_answers(
            bench, test.prompts.benign, arms.before.benign, mask, seed=plan.seed, system=scenario.system
        )
    tested = arms.tested(scenario.limits)
    constant = repeated if chosen.maps is None else ()  # a conditional mask can move every expert, whatever its seed
    stability = CircuitStability.of(range(plan.seed, plan.seed + len(constant)), constant)
    results = conclude(
        SteerResults(
            **bench.shared_fields((*_notes_on_judge(bench), *room.notes(), *unsure), predicted),
            job="steer",
            seed=plan.seed,
            small_n=tested.after.gain.n < 100,
            threat_model="T3",
            left_out=tuple(room.left_out),
            scenario=ScenarioFacts.of(scenario),
            splits={split: prompts[split].sizes() for split in SPLITS},
            contexts={split: splits[split].counts() for split in SPLITS},
            contrast=_contrast(plan, splits["discovery"]),
            surrogate=surrogate,
            gap=gap,
            baseline_validation=validation.outcome.rates,
            candidates=choice.candidates,
            chosen=choice.chosen,
            circuit=CircuitFacts.of(learning.by_expert(chosen), material.sigma, stability),
            test=tested,
            comparisons=arms.comparisons(),
            broken_on_test=tested.after.broken,
            overfit=Overfit(choice.best.rates.gain, tested.after.gain),
            upper_bound=bound,
            moved=moved,
            latency=latency,
            seeds=seeds or None,
            tasks=solved,
            answers=answers,
            artefact=f"artefacts/{ARTEFACT}",
            margin=margin,
            wrong_withstands=bench.question.wrong_withstands,
        )
    )
    _save(plan, bench, choice.best, material.sigma, results)
    bench.finish(results)
    return results


def _refuse_unable(plan: Steer, bench: Bench[SteerQuestion]) -> None:
    """Refuse an engine that cannot carry out one of the kinds of mask that are tried."""
    engine, grid = bench.engine, bench.question.scenario.grid
    constant = plan.learns_constant and "through_model" in grid.refinements
    if plan.learns_conditional or constant or plan.upper_bound:
        that_learns(engine)
    layer, experts = engine.routers[0].layer, engine.routers[0].experts
    if plan.learns_conditional:
        Conditional(rank=plan.rank).refuse(engine.routers)
        down, up = np.zeros((1, engine.routers[0].width or 1)), np.zeros((experts, 1))
        rule = Intervention.conditional({layer: LowRank(down, up)}, phase=plan.conditional_phase)
        refuse_unable(engine, rule, f"A conditional mask ({plan.conditional_phase})")
    for phase in grid.phases:
        if plan.learns_constant:
            refuse_unable(engine, Intervention.bias({layer: [0.0] * experts}, phase=phase), f"A mask ({phase})")
        if {"steermoe", "steermoe_paired"} & set(plan.asked):
            refuse_unable(engine, Intervention.pin({layer: [0]}, phase=phase), f"A pin ({phase})")


def _contrast(plan: Steer, discovery: PlayedSplit) -> Contrasted | None:
    if discovery.outcome.objective == "defend" or plan.contrast == "benign":
        return None if discovery.outcome.objective == "defend" else "benign"
    return "target" if any(c.kind == "affirmed" for c in discovery.contexts) else "topic"


def _notes_on_judge(bench: Bench[SteerQuestion]) -> list[str]:
    if bench.judge.grades_content:
        return []
    return [
        f"The judge {bench.judge.name} cannot tell right content from wrong: what is not refused counts as answered, "
        "nonsense too. Look at the answers before you believe a gain.",
    ]


def _found_by(candidate: Candidate) -> dict[str, Any]:
    """Its parameters, as the model card lists them."""
    if candidate.maps is None:
        return {"refinement": candidate.refinement, "lambda": candidate.lambda_}
    return {"rank": candidate.rank, "step": candidate.step, "hold": candidate.hold, "decay": candidate.decay}


def _save(
    plan: Steer, bench: Bench[SteerQuestion], best: Tried, sigma: tuple[float, ...], results: SteerResults
) -> None:
    """Write the steering, with what it is for and what it did on test."""
    candidate, scenario, info = best.candidate, bench.question.scenario, bench.engine.info
    assert candidate.alpha is not None
    gain = "conversations withstood (replayed)" if scenario.objective == "defend" else "scenario requests answered"
    before, after = asdict(results.test.before), asdict(results.test.after)
    about = {
        "scenario": scenario.name, "objective": scenario.objective, "method": METHODS[candidate.method],
        **_found_by(candidate), "seed": plan.seed, "suite": bench.suite.name,
        "split_seed": plan.seed, "judge": f"{written_judge(bench.judge)} {bench.judge.version}",
        "within_limits_on_validation": not best.broken,
        "measured": [
            {"what": what, "before": before[measure], "after": after[measure]}
            for measure, what in {"gain": gain, **MEASURED}.items()
            if before[measure] is not None
        ],
    } | ({"warning": results.in_vain} if results.in_vain else {})  # fmt: skip
    experts = [router.experts for router in bench.engine.routers]
    steering = Steering(
        matrix=candidate.matrix or tuple(np.zeros(count) for count in experts), sigma=sigma or (1.0,) * len(experts),
        alpha=candidate.alpha, phase=candidate.phase, maps=candidate.maps or {}, fingerprint=info.fingerprint,
        base_model=info.name, revision=info.revision, about=about, weights=bench.engine.weights,
    )  # fmt: skip
    folder = f"artefacts/{ARTEFACT}"
    whole = all(bench.run.path(f"{folder}/{name}").exists() for name in (DATA, TENSORS, CARD))
    if not whole or bench.run.changes(folder):  # what stands as it was written stays in the words of its version
        bench.run.artefact(f"{ARTEFACT}/{DATA}", lambda path: steering.save_pretrained(path.parent))
