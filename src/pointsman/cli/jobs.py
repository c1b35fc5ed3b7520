"""A verb for every registered job, made of its inputs and its plan; and ``run``, which does what a plan file says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointsman.cli.loading import Loading, ModelOptions
from pointsman.cli.manifest import config_of, local_of
from pointsman.cli.options import (
    Command,
    JsonOption,
    OutOption,
    ShowTextOption,
    TrustOption,
    declared,
    loading_options,
    made,
    model_argument,
    option,
    preset_option,
    shared,
)
from pointsman.cli.output import Session, one_line, say_note, write_yaml
from pointsman.cli.plan_file import Request
from pointsman.cli.runs import begun, finish, perform
from pointsman.jobs.parameters import parameters, presets
from pointsman.registry import jobs

if TYPE_CHECKING:
    from pointsman.jobs.job import Job

_EFFORT = "Effort"
_FIRST = ("seed", "limit")  # of the plan, beside the inputs: what everybody looks for
SavePlanOption = Annotated[
    Path | None,
    typer.Option("--save-plan", metavar="FILE", help="Write this command to a YAML file for `run`, and stop."),
]


def add_jobs(app: typer.Typer) -> None:
    """Make a verb of every registered job. A job of another package that cannot be loaded is said, and left out."""
    for name in jobs.names():
        try:
            job: Job = jobs.get(name)
            command = command_of(job)
        except Exception as error:
            say_note(f"the job {name} cannot be loaded ({type(error).__name__}: {error})")
            continue
        app.command(name, rich_help_panel=job.panel)(command)


def command_of(job: Job) -> Command:
    """The verb of a job."""
    plan = parameters(job.plan)
    panels = {name: preset.panel for preset in presets(job.plan) for name in preset.values}
    options = [
        *(model_argument() if job.needs_model else ()),
        *(option(each) for each in parameters(job.inputs)),
        shared("out", OutOption),
        *(option(each) for each in plan if each.name in _FIRST),
        shared("as_json", JsonOption, False),
        shared("show_text", ShowTextOption, False),
        shared("save_plan", SavePlanOption),
        *(option(each, panels.get(each.name, _EFFORT)) for each in plan if each.name not in _FIRST),
        *(preset_option(each) for each in presets(job.plan)),
        *(loading_options() if job.needs_model else ()),
    ]

    def command(context: typer.Context, save_plan: Path | None, model: str = "", **given: Any) -> None:
        request = Request(job, model, made(Loading, given), made(job.inputs, given), made(job.plan, given))
        if save_plan is not None:
            write_yaml(save_plan, request.to_yaml(), "--save-plan", "plan")
            print(one_line(str(save_plan)))
            return
        _carry_out(
            context.obj, request, given["out"], trust_remote_code=given.get("trust_remote_code", False),
            show_text=given["show_text"], as_json=given["as_json"],
        )  # fmt: skip

    return declared(command, job.name, job.help, options)


def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML, as --save-plan writes it.", show_default=False)],
    out: OutOption = None,
    as_json: JsonOption = False,
    show_text: ShowTextOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Do what a plan says: a command that was saved to a YAML file with --save-plan, and perhaps edited.

    What it is about to load, read and ask is said first, and code of a checkpoint runs only if this very command
    allows it.

    [bold]Examples[/bold]

    pointsman audit testbed --samples 40 --save-plan plan.yaml

    pointsman run plan.yaml --out runs/mine
    """
    request = Request.read(file)
    say_note(f"{file} asks for {request.names()}")
    _carry_out(context.obj, request, out, trust_remote_code=trust_remote_code, show_text=show_text, as_json=as_json)


def _carry_out(
    session: Session, request: Request, out: Path | None, *, trust_remote_code: bool, show_text: bool, as_json: bool
) -> None:
    """Ask, do the work in a run, and show what came out."""
    job = request.job
    options = ModelOptions.of(request.model, request.loading, trust_remote_code) if job.needs_model else None
    question, plan = job.work.ask(request.model, request.inputs, request.plan, say_note)
    config = config_of(options, job.work.config(question), plan)
    with begun(out, job.name, config, local_of(options, job.work.local(question))) as run:
        perform(session, run, job, plan, question, options)
        finish(session, run, show_text, as_json)
