"""Evaluate a steering: what it gains and what it costs on the test split of a scenario, beside the unsteered model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pointsman.data.scenario import Scenario
from pointsman.data.types import Suite
from pointsman.engine.types import Engine, refuse_unable
from pointsman.jobs.audit.findings import model_section, notes_on_model
from pointsman.jobs.audit.work import Bench
from pointsman.jobs.evaluate.plan import Evaluate
from pointsman.jobs.steer.contexts import Context
from pointsman.jobs.steer.latency import latency
from pointsman.jobs.steer.outcome import compared, last_turns_again
from pointsman.jobs.steer.perform import SCHEMA, broken_on_test, headline, note_outcome
from pointsman.jobs.steer.scene import Scene
from pointsman.judges.making import judge_section
from pointsman.judges.types import Judge
from pointsman.methods.mascing import circuit
from pointsman.runs.progress import NullProgress, ProgressLike
from pointsman.runs.provenance import provenance, shareable_command
from pointsman.runs.run import Run
from pointsman.steering.artefact import Steering


def perform(
    plan: Evaluate,
    engine: Engine,
    steering: Steering,
    scenario: Scenario,
    suite: Suite,
    judge: Judge,
    run: Run,
    *,
    progress: ProgressLike | None = None,
    command: str = "",
    noted: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Do (or finish) the evaluation in `run`; writes ``results.json`` and ``artefacts/completions.jsonl``.

    Returns:
        The results, in the schema of a steering run, without what only learning gives.

    Raises:
        WrongModel: The steering is for another model.
        InterventionError: The engine cannot carry it out.
    """
    steering.check(engine.routers, engine.info.fingerprint)
    refuse_unable(engine, steering, "This steering")
    progress = progress or NullProgress()
    seed = plan.seed_for(steering)
    bench = Bench(engine, suite, judge, run, progress)
    scene = Scene(bench, engine, scenario, plan.max_new_tokens)
    asked = scene.asked("test", plan.limit, plan.limit, seed)
    scene.room.tell(noted)
    before = scene.measure(asked, None, "test/before", "Unsteered", stage="test")
    scene.check_judged(before)
    contexts = scene.contexts(asked, before)
    fallen: list[Context | None] | None = None
    if scene.defends:
        by_id = {c.id: c for c in contexts if c.kind == "fallen"}
        fallen = [by_id.get(c.id) for c in asked.conversations]
        with bench.stage("test", "Unsteered, last turns", 0) as steps:
            again = last_turns_again(
                engine, asked.conversations, fallen, judge, key="test/before/again", steps=steps,
                max_new_tokens=scene.tokens, system=scene.system,
            )  # fmt: skip
        before = before.with_again(again)
    after = scene.measure(asked, steering.intervention, "test/after", "Steered", fallen, "test")
    timed = latency(
        engine, asked.benign, steering.intervention, rounds=plan.latency_rounds, run=run, progress=progress,
        max_new_tokens=scene.tokens, system=scene.system,
    )  # fmt: skip
    outcomes = {"before": before, "after": after}
    limits = asdict(scenario.limits)
    for name, outcome in outcomes.items():
        note_outcome(bench, f"test/{name}", asked, outcome)
    matrix = [row.astype(np.float64) for row in steering.matrix]
    about = dict(steering.about)
    results = {
        "schema": SCHEMA,
        "suite": suite.name,
        "seed": seed,
        "small_n": len(after.gain()[0]) < 100,
        "threat_model": "T3",
        "scenario": scene.section(),
        "judge": judge_section(judge),
        "model": model_section(engine),
        "notes": [
            *suite.notes, *notes_on_model(engine), *scene.room.notes(),
            "A given steering is evaluated: nothing was learnt or chosen here.",
        ],
        **scene.room.section(),
        "splits": {"test": asked.sizes()},
        "contexts": {"test": scene.contexts_section(before, contexts)},
        "chosen": {
            "id": "as given", "method": "mascing", "refinement": about.get("refinement"),
            "lambda": about.get("lambda"), "alpha": steering.alpha, "phase": steering.phase,
            "entries": len(steering.circuit), "norm1": steering.alpha * float(sum(np.abs(r).sum() for r in matrix)),
            "admissible": None, "why": "given with --steering",
        },
        "circuit": {
            "entries": [{"layer": n, "expert": e, "value": v} for n, e, v in circuit(matrix)],
            "size": len(steering.circuit), "possible": sum(map(len, matrix)),
            "layers": [float(np.abs(row).sum()) for row in matrix], "matrix": [row.tolist() for row in matrix],
            "sigma": list(steering.sigma), "stability": None,
        },
        "test": {name: outcome.to_json() for name, outcome in outcomes.items()},
        "comparisons": compared(after, before),
        "broken_on_test": broken_on_test(outcomes, limits),
        "latency": timed,
        "cost": bench.cost(),
        "provenance": {
            **provenance(), "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shareable_command(command),
        },
    }  # fmt: skip
    results["headline"] = headline(results)
    run.write_text("artefacts/completions.jsonl", "".join(json.dumps(c) + "\n" for c in bench.completions))
    run.write_results(results)  # last: a run that has its results is finished
    return results
