"""``evaluate``: what a steering gains and costs on the test prompts of a scenario."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer

from pointsman.cli.fold import SteeringOption, read_steering
from pointsman.cli.manifest import Anew, announce, local_json, steering_json, steering_of
from pointsman.cli.options import (
    BatchOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    LoadInOption,
    ModelArgument,
    ModelOptions,
    RevisionOption,
    TemplateOption,
    TrustOption,
)
from pointsman.cli.output import Session, say, say_note, waiting
from pointsman.cli.runs import OutOption, ShowTextOption, begun, damaged_manifest, finish, loaded
from pointsman.cli.steer import from_manifest, prompts_json, read_again, scenario_json
from pointsman.errors import RunError, UsageError

if TYPE_CHECKING:
    from pointsman.data.scenario import Scenario
    from pointsman.data.types import Suite
    from pointsman.jobs.evaluate.plan import Evaluate
    from pointsman.judges.types import Judge
    from pointsman.runs.run import Run
    from pointsman.steering.artefact import Steering

VERB = "evaluate"


def evaluate(
    context: typer.Context,
    model: ModelArgument,
    steering: SteeringOption,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario",
            metavar="NAME|FILE",
            show_default=False,
            help="A scenario by name, or a YAML file; the one that the steering was made for if left out.",
        ),
    ] = None,
    out: OutOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**32 - 1,
            metavar="N",
            show_default=False,
            help="Of splits, and of the choice of prompts; the one that the steering was learnt with if left out.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Most prompts of each kind to test; 0 for all.")] = 100,
    latency_rounds: Annotated[int, typer.Option(min=0, metavar="N", help="Timed rounds; 0 for none.")] = 5,
    as_json: JsonOption = False,
    show_text: ShowTextOption = False,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    load_in: LoadInOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    chat_template: TemplateOption = None,
    batch_size: BatchOption = None,
) -> None:
    """Evaluate a steering on the test prompts of a scenario, beside the same model without it.

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman evaluate testbed --steering runs/defence

    pointsman evaluate ./my-model --steering me/my-steering --scenario defence.yaml --limit 0
    """  # fmt: skip
    session: Session = context.obj
    options = ModelOptions.of(
        model, dtype, device, load_in, revision, trust_remote_code, chat_template, batch_size
    )  # fmt: skip
    with waiting("Starting ..."):
        from pointsman.data.scenario import load_scenario, scenario_names
        from pointsman.jobs.evaluate.plan import Evaluate, evaluate_config
    chosen = read_steering(steering)
    name = scenario or str(chosen.about.get("scenario", ""))
    if scenario is None and name not in scenario_names():
        raise UsageError(
            f"{steering} was made for the scenario {name or 'of no name'}, which does not come with Pointsman",
            "Give the scenario's file with --scenario FILE",
        )
    what = load_scenario(name)
    learnt = chosen.about.get("split_seed")
    learnt = learnt if type(learnt) is int and learnt >= 0 else 0  # not a bool, nor whatever else a file may hold
    if seed is not None and seed != learnt:
        say(
            f"pointsman: note: this steering was learnt on the splits of seed {learnt}: where prompts have no splits "
            "of their own, it may have been learnt on what is tested now."
        )
    seed = learnt if seed is None else seed
    plan = Evaluate(seed=seed, limit=limit or None, latency_rounds=latency_rounds)
    suite = what.read(seed)
    made_on = chosen.about.get("suite")
    if scenario is None and made_on != suite.name:
        raise UsageError(
            f"{steering} was made on the prompts {made_on}, and the scenario {name} that comes with Pointsman asks "
            f"{suite.name}",
            "Give the scenario's file with --scenario FILE",
        )
    from pointsman.judges.making import judge_json, make_judge

    judge = make_judge(suite.judge)
    config = evaluate_config(
        plan,
        model=options.shown,
        load=options.to_json(),
        steering=steering_json(steering, _hash(chosen)),
        scenario=scenario_json(what),
        prompts=prompts_json(what, suite, options),
        judge=judge_json(judge),
    )
    with begun(out, VERB, config, local_json(options, what.files, steering)) as run:
        _perform(session, run, plan, options, chosen, what, suite, judge)
        finish(session, run, show_text, as_json)


def continued(session: Session, run: Run, anew: Anew) -> None:
    """Do what is left of a run, as its manifest says."""
    from pointsman.jobs.evaluate.plan import Evaluate

    config = run.config
    scenario, options, judge = from_manifest(run, anew)
    try:
        plan = Evaluate(**{f.name: config[f.name] for f in fields(Evaluate)})
        name, then = steering_of(run), config["steering"]["sha256"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged_manifest(run, error) from error
    suite = read_again(run, scenario, plan.seed)
    announce(options, name)
    steering = read_steering(name)
    if _hash(steering) != then:
        raise RunError(
            f"The steering {name} has changed since {run.folder} began",
            "Put the old one back, or start a new run in another folder",
        )
    _perform(session, run, plan, options, steering, scenario, suite, judge)


def _perform(
    session: Session,
    run: Run,
    plan: Evaluate,
    options: ModelOptions,
    steering: Steering,
    scenario: Scenario,
    suite: Suite,
    judge: Judge,
) -> None:
    """Load the model and do what is left to do. Nothing of it is printed to stdout."""
    if run.finished:
        say(f"{run.folder} is finished already; its results are shown as they are.")
        return
    from pointsman.jobs.evaluate.perform import perform
    from pointsman.jobs.evaluate.question import EvaluateQuestion
    from pointsman.runs.bench import Bench
    from pointsman.runs.progress import Progress

    with loaded(session, run, options) as (engine, command, _):
        steering.check(engine.routers, engine.info.fingerprint)
        other = steering.on_other_weights(engine.weights)
        if other:
            say(f"pointsman: note: {other}.")
        say(
            f"Evaluating a steering of {engine.info.name} on {scenario.name} ({scenario.objective}), judge "
            f"{judge.name}; writing to {run.folder}"
        )
        with Progress() as progress:
            question = EvaluateQuestion(steering, scenario, suite, judge)
            perform(plan, Bench(engine, question, run, progress, plan.max_new_tokens, command, say, say_note))


def _hash(steering: Steering) -> str:
    """Of all that decides what it does."""
    rows = "".join(row.tobytes().hex() for row in steering.matrix)
    return hashlib.sha256(f"{rows}{steering.to_json()}".encode()).hexdigest()
