"""`Job`: what Pointsman can do, each in one shape. Registered by entry point, under ``pointsman.jobs``.

A job is a folder: its plan (data), the stages from typed input to typed output, its results, what follows from them,
and the sections of its page. The command line makes a verb of each: its options are the fields of the job's inputs and
of its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from pointsman.registry import jobs

if TYPE_CHECKING:
    from pointsman.report.blocks import Page, Table
    from pointsman.runs.bench import Bench, Question
    from pointsman.runs.results import Results
    from pointsman.runs.run import Run

Note = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One thing that Pointsman can do: what the command line must know of it, and where the rest is.

    Attributes:
        name: The verb of the command line, and `Results.job`.
        panel: Under which heading the help of the command line lists it.
        help: Of the verb; its first sentence in the list of verbs.
        inputs: A dataclass of what is asked, as the user names it: files, suites, scenarios, judges.
        plan: A dataclass of the parameters (`jobs.parameters`).
        module: What does it, a module of the shape `Work`; imported when it is first needed, so that help is quick.
        needs_model: Whether a model is loaded for it; else MODEL is no argument, and nobody answers (`Bench.engine`).
    """

    name: str
    panel: str
    help: str
    inputs: type[Any]
    plan: type[Any]
    module: str
    needs_model: bool = True

    @property
    def work(self) -> Work:
        """What does it."""
        return cast("Work", import_module(self.module))


class Work(Protocol):
    """What a job does: the names of a module, or the attributes of whatever else is of this shape."""

    @property
    def results(self) -> type[Any]:
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
