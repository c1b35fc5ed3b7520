"""``audit``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointsman.cli.manifest import Anew, announce, local_json, model_of
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
from pointsman.cli.output import (
    Session,
    say,
    say_note,
    waiting,
)
from pointsman.cli.prompts import Prompts
from pointsman.cli.runs import ShowTextOption, begun, damaged_manifest, finish, judge_again, loaded

if TYPE_CHECKING:
    from pointsman.data.types import Suite
    from pointsman.jobs.audit.plan import Audit
    from pointsman.judges.types import Judge
    from pointsman.runs.run import Run

VERB = "audit"
_EFFORT = "Effort"


def _effort(help_: str, minimum: int = 1) -> Any:
    return typer.Option(min=minimum, metavar="N", help=help_, rich_help_panel=_EFFORT, show_default=False)


def audit(
    context: typer.Context,
    model: ModelArgument,
    behaviors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="What the model should refuse: CSV, JSONL or JSON with columns Goal, Target, Category.",
        ),
    ] = None,
    benign: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Benign requests: measures utility and over-refusal."),
    ] = None,
    borderline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Benign requests that look restricted."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE,...]",
            show_default=False,
            help="The suite's own if left out; some judges take parameters.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the run; runs/... if left out.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of splits, masks, random routers and searches.")] = 0,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Most behaviours to test; 0 for all.")] = 20,
    as_json: JsonOption = False,
    show_text: ShowTextOption = False,
    samples: Annotated[
        int | None, _effort("Random masks per prompt and set of routers. [dim]default: 20[/dim]")
    ] = None,
    routers: Annotated[
        int | None, _effort("Mask the top 1 to this many routers. [dim]default: L/4, at most 5[/dim]")
    ] = None,
    random_draws: Annotated[
        int | None, _effort("Random sets of routers per number, as control. [dim]default: 10[/dim]", 0)
    ] = None,
    candidates: Annotated[int | None, _effort("F-SOUR: sets per token and layer. [dim]default: 10[/dim]")] = None,
    restarts: Annotated[int | None, _effort("F-SOUR: searches per behaviour. [dim]default: 5[/dim]")] = None,
    rank_prompts: Annotated[
        int | None, _effort("Prompts that routers are ranked on. [dim]default: as --limit[/dim]")
    ] = None,
    searches: Annotated[int | None, _effort("Behaviours that F-SOUR attacks. [dim]default: all tested[/dim]")] = None,
    method_seeds: Annotated[
        int | None, _effort("Repeat the methods with this many seeds, reported apart from n. [dim]default: 1[/dim]")
    ] = None,
    min_gain: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="NATS",
            rich_help_panel=_EFFORT,
            show_default=False,
            help="F-SOUR: accept a set only if log p(target) rises by more. [dim]default: 1e-9[/dim]",
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls",
            rich_help_panel=_EFFORT,
            show_default=False,
            help="--no-controls: leave out placebo, noise, utility under masks, random and natural routes, other "
            "targets, transfer; random, lowest and frozen masks stay. [dim]default: --controls[/dim]",
        ),
    ] = True,
    max_new_tokens: Annotated[int | None, _effort("Length of answers. [dim]default: the suite's[/dim]")] = None,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    load_in: LoadInOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    chat_template: TemplateOption = None,
    batch_size: BatchOption = None,
) -> None:
    """Measure how fragile a model's safety is to its routing, and write a report.

    Ranks the routers (RoSais), masks the most important ones and random others, and searches unsafe routes (F-SOUR).

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman audit testbed

    pointsman audit allenai/OLMoE-1B-7B-0924-Instruct --behaviors harmful.csv --benign benign.csv

    pointsman audit ./my-model --behaviors harmful.jsonl --limit 0 --out runs/mine --json > results.json
    """
    session: Session = context.obj
    options = ModelOptions.of(
        model, dtype, device, load_in, revision, trust_remote_code, chat_template, batch_size
    )  # fmt: skip
    prompts = Prompts.of(model, behaviors, benign, borderline)
    suite = prompts.read()
    from pointsman.judges.making import judge_json, make_judge

    chosen = make_judge(suite.judge if judge is None else judge)
    with waiting("Starting ..."):
        from pointsman.data.splits import assign_splits
        from pointsman.jobs.audit.plan import FRACTIONS, WITHOUT_CONTROLS, Audit, audit_config
    effort = {
        "samples": samples, "routers": routers, "random_draws": random_draws, "candidates": candidates,
        "restarts": restarts, "rank_prompts": rank_prompts, "searches": searches, "max_new_tokens": max_new_tokens,
        "method_seeds": method_seeds, "min_gain": min_gain,
    }  # fmt: skip
    given: dict[str, Any] = {k: v for k, v in effort.items() if v is not None}
    plan = Audit(seed=seed, limit=limit or None, **given, **({} if controls else WITHOUT_CONTROLS))
    if any(b.split is None for b in suite.restricted):
        assign_splits(suite.restricted, seed, FRACTIONS)  # the audit does so: refuse what is too little to split now
    config = audit_config(
        plan,
        model=options.shown,
        load=options.to_json(),
        prompts=prompts.to_json(suite),
        judge=judge_json(chosen),
    )
    with begun(out, VERB, config, local_json(options, prompts.files)) as run:
        _perform(session, run, plan, options, suite, chosen)
        finish(session, run, show_text, as_json)


def continued(session: Session, run: Run, anew: Anew) -> None:
    """Do what is left of a run, as its manifest says."""
    plan, options, prompts, judge = _from_manifest(run, anew)
    suite = prompts.read_again(run)
    announce(options)
    _perform(session, run, plan, options, suite, judge)


# ---------------------------------------------------------------------- the work


def _perform(session: Session, run: Run, plan: Audit, options: ModelOptions, suite: Suite, judge: Judge) -> None:
    """Load the model and do what is left to do. Nothing of it is printed to stdout."""
    if run.finished:
        say(f"{run.folder} is finished already; its results are shown as they are.")
        return
    with waiting("Starting ..."):
        from pointsman.jobs.audit.perform import perform
        from pointsman.jobs.audit.question import AuditQuestion
        from pointsman.runs.bench import Bench
        from pointsman.runs.progress import Progress

    with loaded(session, run, options) as (engine, command, _), Progress() as progress:
        question = AuditQuestion(suite, judge)
        perform(plan, Bench(engine, question, run, progress, plan.max_new_tokens, command, say, say_note))


# ---------------------------------------------------------------------- small things


def _from_manifest(run: Run, anew: Anew) -> tuple[Audit, ModelOptions, Prompts, Judge]:
    """What the run was asked to do."""
    from pointsman.jobs.audit.plan import Audit

    config = run.config
    try:
        values = {f.name: config[f.name] for f in fields(Audit)}
        plan = Audit(**{**values, "phases": tuple(values["phases"]), "noise": tuple(values["noise"])})
        options = model_of(run, anew)
        prompts = Prompts.of_run(run)
        judge = judge_again(run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged_manifest(run, error) from error
    return plan, options, prompts, judge
