"""What a finished run says: its results, also those of older versions, its page, and its summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pointsman.errors import RunError
from pointsman.jobs.job import Job, job_of
from pointsman.registry import jobs
from pointsman.report.write import read_folder, write_page
from pointsman.runs.results import SCHEMA, Results, read

ANEW = (
    "The headline, limits or claims that this file held are not those that follow from its figures now; these are made "
    "anew"
)


def read_results(data: Mapping[str, Any]) -> tuple[Job, Results]:
    """The content of a ``results.json``, also of older versions, and the job that made it.

    What follows from figures is made anew: a file may come from a stranger, and say that a claim holds which does not.
    Where headline, limits or claims of the file are others, a note says so.

    Raises:
        RunError: It is of a version that cannot be read, or not what its schema says.
    """
    schema = data.get("schema")
    if schema == SCHEMA:
        name = data.get("job")
        if not isinstance(name, str) or name not in jobs:
            raise _unknown(f"is of the job {str(name)[:60]!r}, which nobody registered")
        job = job_of(name)
        results = read(data, job.work.results)
        concluded = job.work.conclude(results)
        return job, concluded if concluded == results else replace(concluded, notes=(*results.notes, ANEW))
    for job in _loadable():
        if isinstance(schema, str) and schema in job.work.older:
            try:
                now = job.work.older[schema](dict(data))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _unknown(f"is not what {schema} was ({type(error).__name__}: {error})") from error
            if now["job"] == job.name:
                return job, job.work.conclude(read({**now, "schema": SCHEMA}, job.work.results))
    raise _unknown(f"has schema {str(schema)[:60]!r}" if schema is not None else "names no schema")


def _loadable() -> Iterator[Job]:
    """The registered jobs, but for those of packages that are broken: the command line leaves them out, too."""
    for name in jobs.names():
        try:
            job = job_of(name)
            _ = job.work
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
    return write_page(folder, job.work.page(results, show_text=show_text), results.judge.name)
