"""What the verbs that make runs share: loading the model once, keeping what was done, the end of a run."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointsman.cli.loading import ModelOptions
from pointsman.cli.output import Session, one_line, say, say_note, show, undisturbed, waiting
from pointsman.errors import DataError, Interrupted, PromptTooLong, RunError
from pointsman.runs.files import make_again, resume_command
from pointsman.runs.run import COMMAND_STEP, MODEL_STEP

if TYPE_CHECKING:
    from pointsman.engine.types import Engine
    from pointsman.jobs.job import Job
    from pointsman.runs.run import Run

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]


def perform(session: Session, run: Run, job: Job, plan: Any, question: Any, options: ModelOptions | None) -> None:
    """Load the model, if the job needs one, and do what is left to do. Nothing of it is printed to stdout."""
    if run.finished:
        say(f"{run.folder} is finished already; its results are shown as they are.")
        return
    with waiting("Starting ..."):
        from pointsman.runs.bench import Bench
        from pointsman.runs.progress import Progress

    with _at_work(session, run) as command:
        engine = None if options is None else _load(session, run, options)
        with Progress() as progress:
            most = getattr(plan, "max_new_tokens", None)
            bench = Bench(engine, question, run, progress, most, command, say, say_note)
            for note in bench.notes_on_thinking():
                say_note(f"{bench.engine.info.name}: {note}")
            job.work.perform(plan, bench)


@contextmanager
def _at_work(session: Session, run: Run) -> Iterator[str]:
    """The command that began a run.

    Within the block nothing reaches stdout, Ctrl-C says how to continue, and errors say that what was done is kept.
    """
    from pointsman.runs.provenance import shareable_command

    with undisturbed(session, f"Continue with {resume_command(run.folder)}"), _kept(run):
        yield run.remember(COMMAND_STEP, lambda: shareable_command(session.command))


def _load(session: Session, run: Run, options: ModelOptions) -> Engine:
    """The model of a run: the one that it began with."""
    if MODEL_STEP in run:  # the very commit that the run began with
        options = options.at(run.remember(MODEL_STEP, dict)["revision"])
    engine = options.load(session)
    _refuse_other_model(run, engine)
    if options.moved:
        run.keep_local({**run.local(), "model": options.source})
    for note in engine.info.extra.get("notes", []):
        say_note(f"{engine.info.name}: {one_line(note)}")
    if not engine.resumes_fully:
        say_note(f"{engine.info.name}: {engine.resumes}; this takes longer and changes no result")
    return engine


IN_VAIN = 3


def finish(session: Session, run: Run, show_text: bool, as_json: bool) -> None:
    """Render the report; print the results, and where the report is.

    Raises:
        typer.Exit: With `IN_VAIN`, after all that, if the run found nothing of use.
    """
    from pointsman.jobs.finished import read_results, write_report
    from pointsman.report.terminal import table
    from pointsman.runs.forecast import against_forecast
    from pointsman.runs.results import dump

    path = write_report(run.folder, show_text=show_text)
    tell_changes(run)
    job, results = read_results(run.read_results())
    if results.cost.predicted is not None:
        say(against_forecast(results.cost, results.cost.predicted))
    if as_json:
        print(json.dumps(dump(results), indent=2))
        say(f"Report: {path}")
    else:
        show(table(job.work.summary(results)))
        print(one_line(results.headline))
        print()
        print(path)
    if results.in_vain:
        say(f"pointsman: {results.in_vain}.")
        raise typer.Exit(IN_VAIN)


def tell_changes(run: Run) -> None:
    """Say in one line if a file that the run wrote is missing or was changed since."""
    changes = run.changes()
    if changes:
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        say_note(f"{changes[0]}{more}. To make it again, {make_again(run)}")


@contextmanager
def begun(folder: Path | None, verb: str, config: Mapping[str, Any], local: Mapping[str, Any]) -> Iterator[Run]:
    """A new run, or the same one continued; where it could not even begin, no empty folder is left behind.

    Args:
        local: Where model and files lie on this machine: kept beside the manifest, and not for sharing.
    """
    from pointsman.cli.manifest import same_question
    from pointsman.runs.folder import writing
    from pointsman.runs.run import MANIFEST, Run

    place = folder or Path("runs")
    with writing(place):  # a name may be too long even to look
        new = folder is None or not (folder / MANIFEST).exists()
        there = {f for f in (place, *place.parents) if f.exists()}
    with Run.create(folder, verb, config, same_question) as run:
        if not run.finished:
            run.keep_local(local)
        if not new:
            yield run
            return
        with _discarded_if_nothing_was_done(run, there):
            yield run


@contextmanager
def _kept(run: Run) -> Iterator[None]:
    """Let an error say that what was done before it is not lost."""
    try:
        yield
    except Exception as error:
        if run.has_begun and isinstance(error, DataError | PromptTooLong):  # again the same, if it were resumed
            error.add_note(f"{run.folder} keeps what was done; a run with other prompts needs another --out.")
        elif run.has_begun:
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
        if not isinstance(error, Interrupted) and not run.has_begun:
            from pointsman.runs.folder import remove

            run.close()
            for entry in run.folder.iterdir():
                remove(entry)
            with suppress(OSError):
                for folder in (run.folder, *run.folder.parents):
                    if folder not in there:
                        folder.rmdir()
        raise


_REMEDY = "Put the old checkpoint back, or start a new run in another folder"
_ONE_HASH = ("float64", "float32", "bfloat16")  # loaded in these, a checkpoint has one hash of its weights


def _refuse_other_model(run: Run, engine: Engine) -> None:
    """All that decides what the model says is remembered: half a run with another model is worth nothing."""
    info = engine.info
    now = {
        "fingerprint": info.fingerprint, "weights": engine.weights, "settings": engine.settings,
        "revision": info.revision, "dtype": info.dtype, "device": info.device,
    }  # fmt: skip
    then = run.remember(MODEL_STEP, lambda: now)
    for name in ("dtype", "device"):
        if then[name] != now[name]:
            say_note(f"this run began on {name} {then[name]} and continues on {now[name]}")
    if then["fingerprint"] != info.fingerprint:
        raise RunError(
            f"{info.name} is not the model that this run began with ({info.fingerprint}, not {then['fingerprint']})",
            _REMEDY,
        )
    _refuse_other_weights(then, now, info.name)
    changed = [part for part, known in then.get("settings", {}).items() if engine.settings.get(part) != known]
    newer = [change for change in run.version_changes() if change.startswith(("transformers", "tokenizers"))]
    if changed and not newer:
        raise RunError(f"The {' and the '.join(changed)} of {info.name} changed since {run.folder} began", _REMEDY)
    if changed:  # another transformers may write the same things down in another way
        say_note(f"the {' and the '.join(changed)} of the model may have changed ({newer[0]})")


def _refuse_other_weights(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> None:
    weights = then.get("weights")  # runs of older versions did not remember it
    if weights is None or weights == now["weights"]:
        return
    if then["dtype"] != now["dtype"] and not (then["dtype"] in _ONE_HASH and now["dtype"] in _ONE_HASH):
        say_note(f"weights in {now['dtype']} cannot be compared with those in {then['dtype']}")
        return
    raise RunError(
        f"{name} has the routers that this run began with, and other weights beside them ({now['weights']}, not "
        f"{weights})",
        _REMEDY,
    )
