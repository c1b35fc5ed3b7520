"""`Job`: what Pointsman can do, each in one shape. Registered by entry point, under ``pointsman.jobs``.

A job is a folder: its plan (data), the stages from typed input to typed output, its results, what follows from them,
and the sections of its page. The command line makes a verb of each: its options are the fields of the job's inputs and
of its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table as RichTable

from pointsman.errors import RunError
from pointsman.registry import jobs
from pointsman.report.blocks import Page, Table
from pointsman.report.terminal import table
from pointsman.report.write import read_folder, write_page
from pointsman.runs.bench import Bench, Question
from pointsman.runs.results import SCHEMA, Results, read
from pointsman.runs.run import Run

Note = Callable[[str], None]


class Job(Protocol):
    """One thing that Pointsman can do.

    An object without state; its module imports nothing heavy, so that help is quick: methods and properties import what
    they need.

    Attributes:
        name: The verb of the command line, and `Results.job`.
        panel: Under which heading the help of the command line lists it.
        help: Of the verb; its first sentence in the list of verbs.
        inputs: A dataclass of what is asked, as the user names it: files, suites, scenarios, judges.
        plan: A dataclass of the parameters (`jobs.parameters`).
        needs_model: Whether a model is loaded for it; else MODEL is no argument, and nobody answers (`Bench.engine`).
    """

    name: str
    panel: str
    help: str
    inputs: type[Any]
    plan: type[Any]
    needs_model: bool

    @property
    def results(self) -> type[Results]:
        """The dataclass of what it finds."""
        ...

    @property
    def older(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Schemas of results that came before, each with what makes the present JSON of such a file; headline, limits
        and claims are made anew."""
        ...

    def ask(self, model: str, inputs: Any, plan: Any, note: Note) -> tuple[Question, Any]:
        """Read what is asked, and settle what the plan leaves to it, such as the seed that a steering was learnt with.

        Args:
            model: As the user named it, since some models bring their own prompts; empty if none is needed.
            note: Called with sentences that nobody asked for and everybody should know.

        Returns:
            The question, and the plan as the manifest shall hold it.
        """
        ...

    def config(self, question: Any) -> dict[str, Any]:
        """What is asked as JSON, for the manifest of a run, beside the fields of the plan, and `model` and
        `load`, which are the job's own to say where it needs no model.

        No path of this machine is in it (`runs.files`).
        """
        ...

    def local(self, question: Any) -> dict[str, Any]:
        """Where the user's files lie on this machine, for ``local.json``, which is not for sharing."""
        ...

    def ask_again(self, run: Run, plan: Any, note: Note) -> Question:
        """What a run asks, from its manifest, unchanged. The manifest may come from a stranger (`runs.files`)."""
        ...

    def perform(self, plan: Any, bench: Bench[Any]) -> Results:
        """Do (or finish) the work, and say first what; writes artefacts, completions and, last, ``results.json``."""
        ...

    def conclude(self, results: Any) -> Results:
        """The same results with headline, limits and claims made from their figures."""
        ...

    def page(self, results: Any, *, show_text: bool) -> Page:
        """What the report says."""
        ...

    def summary(self, results: Any) -> Table:
        """What the terminal says."""
        ...


def job_of(name: str) -> Job:
    """The job that is registered as `name`."""
    job: Job = jobs.get(name)
    return job


def read_results(data: Mapping[str, Any]) -> tuple[Job, Results]:
    """The content of a ``results.json``, also of older versions, and the job that made it.

    Raises:
        RunError: It is of a version that cannot be read, or not what its schema says.
    """
    schema = data.get("schema")
    if schema == SCHEMA:
        name = data.get("job")
        if not isinstance(name, str) or name not in jobs:
            raise _unknown(f"is of the job {str(name)[:60]!r}, which nobody registered")
        job = job_of(name)
        return job, read(data, job.results)
    for job in _loadable():
        if isinstance(schema, str) and schema in job.older:
            try:
                now = job.older[schema](dict(data))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _unknown(f"is no file of the schema {schema!r} ({type(error).__name__}: {error})") from error
            if now["job"] == job.name:
                return job, job.conclude(read({**now, "schema": SCHEMA}, job.results))
    raise _unknown(f"has schema {str(schema)[:60]!r}" if schema is not None else "names no schema")


def _loadable() -> Iterator[Job]:
    """The registered jobs, but for those of packages that are broken: the command line leaves them out, too."""
    for name in jobs.names():
        try:
            job = job_of(name)
        except Exception:
            continue
        yield job


def _unknown(what: str) -> RunError:
    return RunError(
        f"results.json {what}; this version of Pointsman reads {SCHEMA!r}",
        "Read it with the Pointsman version that wrote it, or make the run again",
    )


def write_report(folder: Path, *, show_text: bool = False) -> Path:
    """Render a finished run into its ``report.html``, which appears whole or not at all.

    Args:
        folder: It may come from a stranger: nothing in it is followed.
        show_text: Show prompts and answers. The report is then for its owner's eyes alone.

    Returns:
        The path of the report.

    Raises:
        RunError: There are no results yet, they cannot be read, something in the folder leads out of it, or the report
            cannot be written.
    """
    job, results = read_results(read_folder(folder))
    return write_page(folder, job.page(results, show_text=show_text))


def summary_table(data: Mapping[str, Any]) -> RichTable:
    """What the terminal says of the content of a ``results.json``.

    Raises:
        RunError: It cannot be read.
    """
    job, results = read_results(data)
    return table(job.summary(results))
