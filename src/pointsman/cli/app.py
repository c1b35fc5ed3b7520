"""The application: its verbs, its global options, and how every failure becomes one line."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from pointsman import __version__, environment
from pointsman.cli import agreement, chat, data, fold, jobs, look, resume, scenario, show, testbed
from pointsman.cli.output import Session, explain, say

INTERRUPTED = 130
_ASKS = frozenset({"-h", "--help", "--version"})  # answered wherever Pointsman is installed


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pointsman {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks, and what other libraries say. Works anywhere.")
    ] = False,
) -> None:
    """Taken out of the arguments by `main`; declared here for the help."""


def application() -> typer.Typer:
    """The verbs: those of the jobs that are registered now, and the others."""
    app = typer.Typer(
        name="pointsman",
        help="See and set the routers of Mixture-of-Experts language models.\n\n"
        "Begin with [bold]pointsman audit testbed[/bold]: a tiny model that ships with the package, in a few minutes.",
        rich_markup_mode="rich",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    jobs.add_jobs(app)
    app.command("chat", rich_help_panel="Steer")(chat.chat)
    app.command("fold", rich_help_panel="Steer")(fold.fold)
    app.add_typer(scenario.app, name="scenario", rich_help_panel="Steer")
    app.command("agree", rich_help_panel="Judges")(agreement.agree)
    app.command("label", rich_help_panel="Judges")(agreement.label)
    app.command("run", rich_help_panel="Runs")(jobs.run)
    app.command("resume", rich_help_panel="Runs")(resume.resume)
    app.command("report", rich_help_panel="Runs")(resume.report)
    app.command("show", rich_help_panel="Runs")(show.show_answers)
    app.add_typer(data.app, name="data", rich_help_panel="Look")
    app.command("doctor", rich_help_panel="Look")(look.doctor)
    app.command("routers", rich_help_panel="Look")(look.routers)
    app.add_typer(testbed.app, name="testbed", rich_help_panel="Look")
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every failure is one line on stderr.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns:
        Exit code: 0; 2 for what the user can mend; 3 for a run that is finished and found nothing of use; 130 after
        Ctrl-C; 1 for the unforeseen.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    _never_fail_to_print()
    arguments = [a for a in given if a != "--debug"] or ["--help"]
    session = Session(shlex.join(["pointsman", *given]), "--debug" in given)
    try:
        if _ASKS.isdisjoint(arguments):
            environment.check()
        command = typer.main.get_command(application())
        code = command.main(arguments, prog_name="pointsman", standalone_mode=False, obj=session)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own: the arguments make no sense
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "pointsman"
            message = error.format_message()
            stop = "" if message.endswith((".", "?")) else "."
            say(f"pointsman: {message}{stop} See `{path} --help`.")
            return 2
        told = environment.broken(error) if isinstance(error, ImportError) else None
        return explain(told or error, session)
    if code == INTERRUPTED:
        say("pointsman: Interrupted. Run the same command again.")
    return code if isinstance(code, int) else 0


def run() -> None:
    """The program: `main`, and its exit code.

    After Ctrl-C it leaves without Python's own ending: Python would die of the signal instead of returning 130 if the
    key was pressed while some module was being imported, although the interrupt was handled.
    """
    code = main()
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _never_fail_to_print() -> None:
    """A terminal that cannot show a character gets a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
