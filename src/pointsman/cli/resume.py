"""``resume`` and ``report``: for the runs of every verb."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointsman.cli.manifest import Anew, announce, model_of, plan_of
from pointsman.cli.options import LOADING, JsonOption, ShowTextOption, TrustOption
from pointsman.cli.output import Session, say_note
from pointsman.cli.runs import RunArgument, finish, perform, tell_changes
from pointsman.errors import RunError, UsageError
from pointsman.registry import jobs
from pointsman.runs.files import reading_manifest
from pointsman.runs.task_folder import with_task_folder

if TYPE_CHECKING:
    from pointsman.cli.loading import ModelOptions
    from pointsman.jobs.job import Job
    from pointsman.runs.run import Run


def resume(
    context: typer.Context,
    folder: RunArgument,
    as_json: JsonOption = False,
    show_text: ShowTextOption = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=LOADING,
            show_default=False,
            help="Where the model lies now, if not where the run began; it must be the same model.",
        ),
    ] = None,
    trust_remote_code: TrustOption = False,
    utility_tasks: Annotated[
        Path | None,
        typer.Option(
            "--utility-tasks",
            metavar="FOLDER",
            rich_help_panel=LOADING,
            show_default=False,
            help="The task files that the run began with. They are code, so this is said anew.",
        ),
    ] = None,
) -> None:
    """Continue a run that was stopped, to the results it would have had; a finished one is only rendered again.

    The folder may come from somebody else: nothing in it is followed out of it, which model it loads is said before it
    is loaded, and code of a checkpoint runs only if this very command allows it.

    [bold]Example[/bold]

    pointsman resume runs/audit-testbed-20260101-120000
    """  # fmt: skip
    session: Session = context.obj
    from pointsman.runs.run import RESULTS, Run

    with Run.open(folder) as run:
        job = _job_of(run)
        if not run.was_bound:
            say_note(f"{folder} did not know its manifest's checksum; it is taken as it stands")
        if not run.finished:
            if run.path(RESULTS).exists():
                say_note(f"{run.path(RESULTS)} is damaged or was changed; it is made again")
            for change in run.version_changes():
                say_note(f"{change} since this run began; results may differ in their last digits")
            with reading_manifest(run):
                plan = plan_of(run, job.plan)
            question = with_task_folder(job.work.ask_again(run, plan, say_note), utility_tasks)
            options = _model_of(run, job, Anew(model, trust_remote_code))
            perform(session, run, job, plan, question, options)
        finish(session, run, show_text, as_json)


def report(context: typer.Context, folder: RunArgument, show_text: ShowTextOption = False) -> None:
    """Write the report of a finished run again, and print its path.

    [bold]Example[/bold]

    pointsman report runs/audit-testbed-20260101-120000 --show-text
    """
    from pointsman.jobs.finished import write_report
    from pointsman.runs.run import Run

    with Run.open(folder, read_only=True) as run:
        _job_of(run)
        path = write_report(run.folder, show_text=show_text)
        tell_changes(run)
        print(path)


def _model_of(run: Run, job: Job, anew: Anew) -> ModelOptions | None:
    """The model of a run, announced; None if its job needs none."""
    if not job.needs_model:
        if anew != Anew():
            raise UsageError(
                f"{run.folder} is a run of `pointsman {job.name}`, which loads no model", "Leave the model out"
            )
        return None
    with reading_manifest(run):
        options = model_of(run, anew)
    announce(options)
    return options


def _job_of(run: Run) -> Job:
    if run.verb not in jobs:
        raise RunError(
            f"{run.folder} is a run of `pointsman {run.verb}`, which this version does not know",
            f"Give the folder of a run of {', '.join(jobs.names())}",
        )
    job: Job = jobs.get(run.verb)
    return job
