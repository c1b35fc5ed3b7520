"""``steer``: learn a steering mask for a scenario, choose it on validation, show on test what it gains and costs."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointsman.cli.manifest import Anew, announce, files_json, local_json, located, model_of
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
from pointsman.cli.runs import OutOption, ShowTextOption, begun, damaged_manifest, finish, judge_again, loaded
from pointsman.errors import RunError

if TYPE_CHECKING:
    from pointsman.data.scenario import Scenario
    from pointsman.data.types import Suite
    from pointsman.jobs.steer.plan import Steer
    from pointsman.judges.types import Judge
    from pointsman.runs.run import Run

VERB = "steer"
_EFFORT = "Effort"
_TUPLES = ("through_lambdas", "through_holds", "through_phases", "through_starts")


class Start(StrEnum):
    zero = "zero"
    surrogate = "surrogate"


ScenarioOption = Annotated[
    str,
    typer.Option(
        "--scenario", metavar="NAME|FILE", show_default=False,
        help="A scenario that comes with Pointsman (`scenario list`) or a YAML file (`scenario init`).",
    ),
]  # fmt: skip


def _effort(help_: str, minimum: int = 1) -> Any:
    return typer.Option(min=minimum, metavar="N", help=help_, rich_help_panel=_EFFORT, show_default=False)


def _weight(what: str, default: str) -> Any:
    return typer.Option(
        min=0, metavar="X", rich_help_panel=_EFFORT, show_default=False,
        help=f"{what}, through the model; may be repeated. [dim]default: {default}[/dim]",
    )  # fmt: skip


def steer(
    context: typer.Context,
    model: ModelArgument,
    scenario: ScenarioOption,
    out: OutOption = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**32 - 1, metavar="N", help="Of splits, surrogate, matrices, batches and random masks."
        ),
    ] = 0,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Most prompts of each kind to test; 0 for all.")] = 100,
    as_json: JsonOption = False,
    show_text: ShowTextOption = False,
    learn: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=_EFFORT,
            help="Most conversations (or scenario requests) to learn from; 0 for all.",
        ),
    ] = 400,
    validate: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", rich_help_panel=_EFFORT, help="Most prompts of each kind to choose on; 0 for all."
        ),
    ] = 100,
    method_seeds: Annotated[
        int | None, _effort("Learn again with this many seeds, each reported on test. [dim]default: 1[/dim]")
    ] = None,
    surrogate_seeds: Annotated[int | None, _effort("Surrogates that are trained. [dim]default: 3[/dim]")] = None,
    rounds: Annotated[int | None, _effort("Rounds on policy. [dim]default: 1[/dim]")] = None,
    through_steps: Annotated[
        int | None, _effort("Optimisation steps through the model. [dim]default: 150 (defend), 400 (allow)[/dim]")
    ] = None,
    through_lambda: Annotated[
        list[float] | None,
        _weight("Weight of the L1 norm, in nats", "0.01 (defend), 0.001 (allow)"),
    ] = None,
    through_hold: Annotated[
        list[float] | None,
        _weight("Weight of what should stay as it is", "1 (defend), 3 (allow)"),
    ] = None,
    lesson_tokens: Annotated[
        int | None, _effort("Tokens of an answer that count in learning through the model. [dim]default: 64[/dim]")
    ] = None,
    through_start: Annotated[
        list[Start] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_EFFORT,
            show_default=False,
            help="Where an optimisation through the model starts: zero, or the surrogate's matrix; may be "
            "repeated. [dim]default: zero[/dim]",
        ),
    ] = None,
    finalists: Annotated[
        int | None, _effort("Candidates of every method that answer on validation. [dim]default: 2[/dim]")
    ] = None,
    random_draws: Annotated[int | None, _effort("Random masks, the control. [dim]default: 3[/dim]", 0)] = None,
    latency_rounds: Annotated[int | None, _effort("Timed rounds; 0 for none. [dim]default: 5[/dim]", 0)] = None,
    upper_bound: Annotated[
        bool,
        typer.Option(
            "--upper-bound",
            rich_help_panel=_EFFORT,
            help="Also learn on the test prompts themselves: what could a constant mask reach?",
        ),
    ] = False,
    max_new_tokens: Annotated[int | None, _effort("Length of answers. [dim]default: the scenario's[/dim]")] = None,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    load_in: LoadInOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    chat_template: TemplateOption = None,
    batch_size: BatchOption = None,
) -> None:
    """Learn a steering mask on the routers for a scenario, and show what it gains and what it costs.

    Plays the scenario, learns masks (MASCing: surrogate, on policy, through the model), chooses among them and the
    baselines on validation prompts, and reports on test prompts. The mask is an artefact of the run.

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman steer testbed --scenario multi_turn_defence

    pointsman scenario init multi_turn_defence --template real --out defence.yaml

    pointsman steer allenai/OLMoE-1B-7B-0125-Instruct --scenario defence.yaml --out runs/defence
    """  # fmt: skip
    session: Session = context.obj
    options = ModelOptions.of(
        model, dtype, device, load_in, revision, trust_remote_code, chat_template, batch_size
    )  # fmt: skip
    with waiting("Starting ..."):
        from pointsman.data.scenario import load_scenario
        from pointsman.jobs.steer.plan import Steer, steer_config
    chosen = load_scenario(scenario)
    given: dict[str, Any] = {
        "method_seeds": method_seeds, "surrogate_seeds": surrogate_seeds, "rounds": rounds,
        "through_steps": through_steps, "finalists": finalists, "random_draws": random_draws,
        "latency_rounds": latency_rounds, "lesson_tokens": lesson_tokens, "max_new_tokens": max_new_tokens,
        "through_lambdas": tuple(through_lambda) if through_lambda else None,
        "through_holds": tuple(through_hold) if through_hold else None,
        "through_starts": tuple(start.value for start in through_start) if through_start else None,
    }  # fmt: skip
    plan = Steer(
        seed=seed, limit=limit or None, learn=learn or None, validate=validate or None,
        upper_bound=upper_bound, **{k: v for k, v in given.items() if v is not None},
    )  # fmt: skip
    suite = chosen.read(seed)
    from pointsman.judges.making import judge_json, make_judge

    judge = make_judge(suite.judge)
    config = steer_config(
        plan,
        model=options.shown,
        load=options.to_json(),
        scenario=scenario_json(chosen),
        prompts=prompts_json(chosen, suite, options),
        judge=judge_json(judge),
    )
    with begun(out, VERB, config, local_json(options, chosen.files)) as run:
        _perform(session, run, plan, options, chosen, suite, judge)
        finish(session, run, show_text, as_json)


def continued(session: Session, run: Run, anew: Anew) -> None:
    """Do what is left of a run, as its manifest says."""
    from pointsman.jobs.steer.plan import Steer

    config = run.config
    scenario, options, judge = from_manifest(run, anew)
    try:
        values = {f.name: config[f.name] for f in fields(Steer)}
        plan = Steer(**{**values, **{name: tuple(values[name]) for name in _TUPLES}})
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_manifest(run, error) from error
    suite = read_again(run, scenario, plan.seed)
    announce(options)
    _perform(session, run, plan, options, scenario, suite, judge)


def _perform(
    session: Session, run: Run, plan: Steer, options: ModelOptions, scenario: Scenario, suite: Suite, judge: Judge
) -> None:
    """Load the model and do what is left to do. Nothing of it is printed to stdout."""
    if run.finished:
        say(f"{run.folder} is finished already; its results are shown as they are.")
        return
    from pointsman.jobs.steer.perform import perform
    from pointsman.jobs.steer.question import SteerQuestion
    from pointsman.runs.bench import Bench
    from pointsman.runs.progress import Progress

    with loaded(session, run, options) as (engine, command, resumed):
        say(
            f"{'Continuing to steer' if resumed else 'Steering'} {engine.info.name} for {scenario.name} "
            f"({scenario.objective}), judge {judge.name}, seed {plan.seed}; writing to {run.folder}"
        )
        with Progress() as progress:
            question = SteerQuestion(scenario, suite, judge)
            perform(plan, Bench(engine, question, run, progress, plan.max_new_tokens, command, say, say_note))


# ---------------------------------------------------------------------- what `evaluate` needs, too


def from_manifest(run: Run, anew: Anew) -> tuple[Scenario, ModelOptions, Judge]:
    """Scenario, model and judge of a run.

    Raises:
        RunError: The manifest does not say, a file is not what it was, or the judge is another one now.
    """
    from pointsman.data.scenario import Scenario

    config = run.config
    try:
        data = config["scenario"]
        if data["prompts"].get("suite") is None:
            known = config["prompts"].get("files", {})
            named = {key: path for key, path in data["prompts"].items() if path is not None}
            files = {key: known.get(key, {"path": path}) for key, path in named.items()}
            data = {**data, "prompts": {key: str(path) for key, path in located(run, files).items()}}
        scenario = Scenario.from_json(data)
        options = model_of(run, anew)
        judge = judge_again(run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged_manifest(run, error) from error
    return scenario, options, judge


def scenario_json(scenario: Scenario) -> dict[str, Any]:
    """A scenario for the manifest, with the paths of its files as they may be shared."""
    from pointsman.runs.provenance import shareable

    data = scenario.to_json()
    if scenario.files:
        data["prompts"] = {key: shareable(str(path)) for key, path in scenario.files.items()}
    return data


def prompts_json(scenario: Scenario, suite: Suite, options: ModelOptions) -> dict[str, Any]:
    """What is asked, for the manifest."""
    template = options.chat_template
    return {
        "digest": digest(suite), "files": files_json(scenario.files),
        "chat_template": template.sha256 if template else None,
    }  # fmt: skip


def read_again(run: Run, scenario: Scenario, seed: int) -> Suite:
    """The prompts of a run that is resumed.

    Raises:
        RunError: They are not what they were.
    """
    suite = scenario.read(seed)
    if digest(suite) != run.config["prompts"].get("digest"):
        raise RunError(
            f"The prompts of {scenario.name} have changed since {run.folder} began",
            "Put the old content back, or start a new run in another folder",
        )
    return suite


def digest(suite: Suite) -> str:
    """Of all prompts, targets, splits and settings."""
    return hashlib.sha256(repr(suite).encode()).hexdigest()
