"""``resume`` and ``report``: for the runs of every verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from pointsman.cli import audit, evaluate, steer
from pointsman.cli.manifest import Anew
from pointsman.cli.options import LOADING, JsonOption, TrustOption
from pointsman.cli.output import Session, say
from pointsman.cli.runs import RunArgument, ShowTextOption, finish, tell_changes
from pointsman.errors import RunError

if TYPE_CHECKING:
    from pointsman.runs.run import Run

_CONTINUED: Mapping[str, Callable[[Session, Run, Anew], None]] = {
    audit.VERB: audit.continued,
    steer.VERB: steer.continued,
    evaluate.VERB: evaluate.continued,
}


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
        _refuse_other_verbs(run)
        if not run.was_bound:
            say(f"pointsman: note: {folder} did not know its manifest's checksum; it is taken as it stands.")
        if not run.finished:
            if run.path(RESULTS).exists():
                say(f"pointsman: note: {run.path(RESULTS)} is damaged or was changed; it is made again.")
            for change in run.version_changes():
                say(f"pointsman: note: {change} since this run began; results may differ in their last digits.")
            _CONTINUED[run.verb](session, run, Anew(model, trust_remote_code))
        finish(session, run, show_text, as_json)


def report(context: typer.Context, folder: RunArgument, show_text: ShowTextOption = False) -> None:
    """Write the report of a finished run again, and print its path.

    [bold]Example[/bold]

    pointsman report runs/audit-testbed-20260101-120000 --show-text
    """
    from pointsman.jobs.job import write_report
    from pointsman.runs.run import Run

    with Run.open(folder, read_only=True) as run:
        _refuse_other_verbs(run)
        path = write_report(run.folder, show_text=show_text)
        tell_changes(run)
        print(path)


def _refuse_other_verbs(run: Run) -> None:
    if run.verb not in _CONTINUED:
        raise RunError(
            f"{run.folder} is a run of `pointsman {run.verb}`, which this version does not know",
            f"Give the folder of a run of {', '.join(_CONTINUED)}",
        )
