"""``audit``, ``resume`` and ``report``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    interruptible,
    keep_stdout_clean,
    one_line,
    quietly,
    resume_command,
    say,
    show,
    waiting,
)
from pointsman.cli.prompts import Prompts
from pointsman.errors import Interrupted, RunError

if TYPE_CHECKING:
    from pointsman.data.types import Suite
    from pointsman.engine.hf import HFEngine
    from pointsman.experiment.audit import Audit
    from pointsman.experiment.progress import ProgressLike, Stage
    from pointsman.experiment.run import Run
    from pointsman.judges.types import Judge

VERB = "audit"
_EFFORT = "Effort"
_MODEL_STEP, _COMMAND_STEP = "model", "command"

ShowTextOption = Annotated[
    bool, typer.Option("--show-text", help="Show prompts and answers in the report; they are redacted otherwise.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]


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
        str | None, typer.Option(metavar="NAME", help="The suite's own if left out.", show_default=False)
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
    prompts = Prompts.of(model, behaviors, benign, borderline, options.chat_template)
    suite = prompts.read()
    chosen = _judge(judge or suite.judge)
    with waiting("Starting ..."):
        from pointsman.data.splits import assign_splits
        from pointsman.experiment.audit import FRACTIONS, WITHOUT_CONTROLS, Audit, audit_config
        from pointsman.experiment.run import MANIFEST, Run
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
        model=options.name,
        load=options.to_json(),
        prompts=prompts.to_json(suite),
        judge={"name": chosen.name, "version": chosen.version},
    )
    new = out is None or not (out / MANIFEST).exists()
    place = out or Path("runs")
    there = {folder for folder in (place, *place.parents) if folder.exists()}
    run = Run.create(out, VERB, config)
    with run, _discarded_if_nothing_was_done(run, there) if new else nullcontext():
        _perform(session, run, plan, options, suite, chosen)
        _finish(session, run, show_text, as_json)


def resume(
    context: typer.Context, folder: RunArgument, as_json: JsonOption = False, show_text: ShowTextOption = False
) -> None:
    """Continue a run that was stopped, to the results it would have had; a finished one is only rendered again.

    [bold]Example[/bold]

    pointsman resume runs/audit-testbed-20260101-120000
    """
    session: Session = context.obj
    from pointsman.experiment.run import Run

    with Run.open(folder) as run:
        _refuse_other_verbs(run)
        if not run.path("results.json").exists():
            plan, options, prompts, judge = _from_manifest(run)
            suite = prompts.read_again(run)
            for change in run.version_changes():
                say(f"pointsman: note: {change} since this run began; results may differ in their last digits.")
            _perform(session, run, plan, options, suite, judge)
        _finish(session, run, show_text, as_json)


def report(context: typer.Context, folder: RunArgument, show_text: ShowTextOption = False) -> None:
    """Write the report of a finished run again, and print its path.

    [bold]Example[/bold]

    pointsman report runs/audit-testbed-20260101-120000 --show-text
    """
    from pointsman.experiment.run import Run
    from pointsman.report import write_report

    with Run.open(folder, read_only=True) as run:
        _refuse_other_verbs(run)
        print(write_report(run.folder, show_text=show_text))


# ---------------------------------------------------------------------- the work


def _perform(session: Session, run: Run, plan: Audit, options: ModelOptions, suite: Suite, judge: Judge) -> None:
    """Load the model and do what is left to do. Nothing of it is printed to stdout."""
    if run.path("results.json").exists():
        say(f"{run.folder} is finished already; its results are shown as they are.")
        return
    from pointsman.experiment.progress import Progress

    with (
        interruptible(f"Continue with {resume_command(run.folder)}"),
        _kept(run),
        keep_stdout_clean(),
        quietly(session),
    ):
        resumed = _steps_done(run)
        command = run.remember(_COMMAND_STEP, lambda: session.command)
        if _MODEL_STEP in run:  # the very commit that the run began with
            options = options.at(run.remember(_MODEL_STEP, dict)["revision"])
        engine = options.load(session)
        _refuse_other_model(run, engine)
        if not engine.resumes_fully:
            say(f"pointsman: note: {engine.info.name}: {engine.resumes}; this takes longer and changes no result.")

        def announce(behaviours: int) -> None:
            say(
                f"Auditing {engine.info.name} with {behaviours} behaviours of {suite.name}, judge {judge.name}, "
                f"seed {plan.seed}; writing to {run.folder}"
            )

        with Progress() as progress:
            announced = _Announced(progress, announce, resumed=resumed)
            plan.perform(engine, suite, judge, run, progress=announced, command=command, foreseen=announced.foresee)


def _finish(session: Session, run: Run, show_text: bool, as_json: bool) -> None:
    """Render the report; print the results, and where the report is."""
    from pointsman.report import summary_table, write_report

    path = write_report(run.folder, show_text=show_text)
    results = run.read_results()
    _say_cost(results)
    if as_json:
        print(json.dumps(results, indent=2))
        say(f"Report: {path}")
        return
    show(summary_table(results))
    print(one_line(results["headline"]))
    print()
    print(path)


def _say_cost(results: dict[str, Any]) -> None:
    """The forecast against what it was."""
    from pointsman.experiment.forecast import against

    if results["cost"].get("predicted"):
        say(against(results["cost"]))


class _Announced:
    """Progress that says once what is about to be done, when nothing cheap can fail any more.

    Args:
        progress: Where the stages are shown.
        announce: Called at the first stage, which asks every behaviour once, with their number; the forecast is
            said after it.
        resumed: Something is done already: say that the forecast is of the whole run.
    """

    def __init__(self, progress: ProgressLike, announce: Callable[[int], None], *, resumed: bool = False) -> None:
        self._progress = progress
        self._announce: Callable[[int], None] | None = announce
        self._forecast = ""
        self._resumed = resumed

    def foresee(self, predicted: dict[str, Any]) -> None:
        """Take the forecast of the audit's cost."""
        from pointsman.experiment.forecast import in_words

        self._forecast = in_words(predicted, resumed=self._resumed)

    def stage(self, name: str, total: int) -> AbstractContextManager[Stage]:
        if self._announce is not None:
            self._announce(total)
            self._announce = None
            say(self._forecast)
        return self._progress.stage(name, total)


# ---------------------------------------------------------------------- small things


def _judge(name: str) -> Judge:
    from pointsman.registry import judges

    judge: Judge = judges.get(name)()
    return judge


def _steps_done(run: Run) -> bool:
    """Has anything been computed?"""
    from pointsman.experiment.forecast import FORECAST

    return bool(set(run.keys()) - {_MODEL_STEP, _COMMAND_STEP, FORECAST})


@contextmanager
def _kept(run: Run) -> Iterator[None]:
    """Let an error say that what was done before it is not lost."""
    try:
        yield
    except Exception as error:
        if _steps_done(run):
            error.add_note(f"What was done is kept: {resume_command(run.folder)} continues.")
        raise


@contextmanager
def _discarded_if_nothing_was_done(run: Run, there: Container[Path]) -> Iterator[None]:
    """Leave no empty run behind when it could not even begin, so that the mended command can use the folder.

    Args:
        run: A run that was created just now.
        there: Folders that were there before; others are removed if they are empty.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, Interrupted) and not _steps_done(run):
            run.close()
            for entry in run.folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            with suppress(OSError):
                for folder in (run.folder, *run.folder.parents):
                    if folder not in there:
                        folder.rmdir()
        raise


def _refuse_other_verbs(run: Run) -> None:
    if run.verb != VERB:
        raise RunError(
            f"{run.folder} is a run of `pointsman {run.verb}`, which this version does not know",
            "Give the folder of a `pointsman audit` run",
        )


def _refuse_other_model(run: Run, engine: HFEngine) -> None:
    """The model is remembered by its fingerprint: half a run with another one would be worth nothing."""
    info = engine.info
    now = {"fingerprint": info.fingerprint, "revision": info.revision, "dtype": info.dtype, "device": info.device}
    then = run.remember(_MODEL_STEP, lambda: now)
    if then["fingerprint"] != info.fingerprint:
        raise RunError(
            f"{info.name} is not the model that this run began with ({info.fingerprint}, not {then['fingerprint']})",
            "Put the old checkpoint back, or start a new run in another folder",
        )
    for name in ("dtype", "device"):
        if then[name] != now[name]:
            say(f"pointsman: note: this run began on {name} {then[name]} and continues on {now[name]}.")


def _from_manifest(run: Run) -> tuple[Audit, ModelOptions, Prompts, Judge]:
    """What the run was asked to do."""
    from pointsman.experiment.audit import Audit

    config = run.config
    try:
        values = {f.name: config[f.name] for f in fields(Audit)}
        plan = Audit(**{**values, "phases": tuple(values["phases"]), "noise": tuple(values["noise"])})
        options = ModelOptions(**config["load"])
        prompts = Prompts.from_json(config["prompts"])
        name, version = config["judge"]["name"], config["judge"]["version"]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"The manifest of {run.folder} does not say all that is needed ({type(error).__name__}: {error})",
            "Continue it with the version of Pointsman that made it, or start a new run",
        ) from error
    judge = _judge(name)
    if judge.version != version:
        raise RunError(
            f"The judge {name} is version {judge.version} now and was {version} when this run began",
            "Continue it with the version of Pointsman that made it, or start a new run",
        )
    return plan, options, prompts, judge
