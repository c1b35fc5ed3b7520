"""``resume`` and ``report``: for the runs of every verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import typer

from pointsman.cli import audit, evaluate, steer
from pointsman.cli.options import JsonOption
from pointsman.cli.output import Session, say
from pointsman.cli.runs import RunArgument, ShowTextOption, finish
from pointsman.errors import RunError

if TYPE_CHECKING:
    from pointsman.experiment.run import Run

_CONTINUED: Mapping[str, Callable[[Session, Run], None]] = {
    audit.VERB: audit.continued,
    steer.VERB: steer.continued,
    evaluate.VERB: evaluate.continued,
}


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
            for change in run.version_changes():
                say(f"pointsman: note: {change} since this run began; results may differ in their last digits.")
            _CONTINUED[run.verb](session, run)
        finish(session, run, show_text, as_json)


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


def _refuse_other_verbs(run: Run) -> None:
    if run.verb not in _CONTINUED:
        raise RunError(
            f"{run.folder} is a run of `pointsman {run.verb}`, which this version does not know",
            f"Give the folder of a run of {', '.join(_CONTINUED)}",
        )
