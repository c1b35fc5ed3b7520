"""Evaluate a steering: what it gains and what it costs on the test split of a scenario, beside the unsteered model."""

from __future__ import annotations

import numpy as np

from pointsman.engine.abilities import learns
from pointsman.engine.types import refuse_unable
from pointsman.jobs.evaluate.plan import Evaluate
from pointsman.jobs.evaluate.question import EvaluateQuestion
from pointsman.jobs.steer.claims import conclude
from pointsman.jobs.steer.forecast import forecast_evaluation
from pointsman.jobs.steer.latency import time_latency
from pointsman.jobs.steer.maps import size_of
from pointsman.jobs.steer.matrices import norm1
from pointsman.jobs.steer.outcome import ask_in_stage, keep_outcome
from pointsman.jobs.steer.played import label_contexts, refuse_unscored, with_last_turns
from pointsman.jobs.steer.prompts import choose_prompts, room_of
from pointsman.jobs.steer.results import Chosen, CircuitFacts, Method, ScenarioFacts, SteerResults
from pointsman.jobs.steer.testing import Arms
from pointsman.jobs.steer.tracing_moves import trace_moves
from pointsman.runs.answer_loss import AnswersUnder, measure_answers
from pointsman.runs.bench import Bench
from pointsman.runs.tasks import Arm, prepare_tasks


def perform(plan: Evaluate, bench: Bench[EvaluateQuestion]) -> SteerResults:
    """Do (or finish) the evaluation; writes ``artefacts/completions.jsonl`` and, last, ``results.json``.

    Returns:
        The results of a steering run, without what only learning gives.

    Raises:
        WrongModel: The steering is for another model.
        InterventionError: The engine cannot carry it out.
    """
    steering, scenario, engine = bench.question.steering, bench.question.scenario, bench.engine
    steering.check(engine.routers, engine.info.fingerprint)
    refuse_unable(engine, steering, "This steering")
    other = steering.on_other_weights(engine.weights)
    if other:
        bench.note(other)
    bench.say(
        f"Evaluating a steering of {engine.info.name} on {scenario.name} ({scenario.objective}), judge "
        f"{bench.judge.name}; writing to {bench.run.folder}"
    )
    bench.set_unlikely_answers_apart(scenario.system)
    seed = plan.seed_for(steering)
    tasks = prepare_tasks(bench, plan, bench.question.task_folder, seed)
    room = room_of(bench)
    prompts = choose_prompts(bench, room, "test", plan.limit, plan.limit, seed)
    room.tell(bench.note)
    predicted = forecast_evaluation(bench, prompts, plan.moved_prompts)
    turns = sum(len(c.turns) for c in (*prompts.conversations, *prompts.benign_conversations))
    single = len(prompts.scenario) + len(prompts.restricted) + len(prompts.benign) + len(prompts.borderline)
    bench.foretell_judging(2 * (turns + single))

    outcome = ask_in_stage(bench, prompts, None, "test/before", "Unsteered", stage="test")
    refuse_unscored(bench, outcome)
    test = label_contexts(bench, "test", prompts, outcome)
    before = with_last_turns(bench, test, "Unsteered, last turns")
    after = ask_in_stage(
        bench, prompts, steering.intervention, "test/after", "Steered", stage="test", fallen=test.fallen
    )
    moved = trace_moves(bench, prompts, before, steering.intervention, plan.moved_prompts, seed)
    latency = time_latency(bench, prompts.benign, steering.intervention, plan.latency_rounds)
    mask = [Arm("with the mask", "routing", steering.intervention)]
    solved = tasks.solve(bench, mask) if tasks else None
    answers: tuple[AnswersUnder, ...] = ()
    if plan.answer_loss:
        answers = measure_answers(bench, prompts.benign, before.benign, mask, seed=seed, system=scenario.system)
    keep_outcome(bench, "test/before", prompts, before)
    keep_outcome(bench, "test/after", prompts, after)

    arms, matrix = Arms(before, after), [row.astype(np.float64) for row in steering.matrix]
    norms = engine.router_norms() if steering.maps and learns(engine) else ()
    circuit = CircuitFacts.of(matrix, steering.sigma, maps=steering.maps, norms=norms)
    tested = arms.tested(scenario.limits)
    refinement, lambda_ = steering.about.get("refinement"), steering.about.get("lambda")  # whatever a file may hold
    method: Method = "through_model" if refinement == "through_model" else "mascing" if refinement else "given"
    if steering.maps:
        method = "conditional"
    chosen = Chosen(
        id="as given", method=method, alpha=steering.alpha, phase=steering.phase,
        entries=circuit.size or sum(one.experts for one in steering.maps.values()),
        refinement=refinement if isinstance(refinement, str) else None,
        lambda_=float(lambda_) if isinstance(lambda_, int | float) else None,
        norm1=steering.alpha * norm1(matrix) if circuit.size or not steering.maps else None, admissible=None,
        why="given with --steering", rank=max((one.rank for one in steering.maps.values()), default=None),
        size=steering.alpha * size_of(steering.maps, norms) if norms else None,
    )  # fmt: skip
    told = ["A given steering is evaluated: nothing was learnt or chosen here."]
    if steering.maps and not norms:
        told.append("The engine does not tell the routers' weights: B A is shown in logits, not as a share of W.")
    results = conclude(
        SteerResults(
            **bench.shared_fields((*room.notes(), *told), predicted),
            job="evaluate",
            seed=seed,
            small_n=tested.after.gain.n < 100,
            threat_model="T3",
            left_out=tuple(room.left_out),
            scenario=ScenarioFacts.of(scenario),
            splits={"test": prompts.sizes()},
            contexts={"test": test.counts()},
            chosen=chosen,
            circuit=circuit,
            test=tested,
            comparisons=arms.comparisons(),
            broken_on_test=tested.after.broken,
            moved=moved,
            latency=latency,
            tasks=solved,
            answers=answers,
            wrong_withstands=bench.question.wrong_withstands,
        )
    )
    bench.finish(results)
    return results
