"""What is judged again: the answers of a run, and what a reader must know of it; found again by its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pointsman.data.types import Suite
from pointsman.errors import JudgeError, RunError, UsageError
from pointsman.jobs.finished import read_results
from pointsman.jobs.job import Note
from pointsman.jobs.judge.plan import JudgeAgain, JudgeInputs
from pointsman.judges.making import make_judge
from pointsman.judges.types import Judge, Reading
from pointsman.report.write import read_folder
from pointsman.runs.answers import KeptAnswers, read_answers
from pointsman.runs.files import judge_again, judge_json, judge_places, known_hash, reading_manifest, typed
from pointsman.runs.results import Results
from pointsman.runs.run import Run


@dataclass(frozen=True)
class JudgeQuestion:
    """The answers of a run; and who judges them again.

    Attributes:
        kept: The answers.
        of: The results of the run: which model answered, and who judged it.
    """

    kept: KeptAnswers
    of: Results
    judge: Judge

    @property
    def suite(self) -> Suite:
        """What was asked, by name alone."""
        return Suite(self.of.suite, ())

    @property
    def digest(self) -> str:
        """Of the answers, and of what is said of the run."""
        facts = (self.of.job, self.of.suite, self.of.threat_model, self.of.judge, self.of.model)
        return hashlib.sha256(f"{self.kept.digest}{facts!r}".encode("utf-8", "backslashreplace")).hexdigest()


def ask(model: str, inputs: JudgeInputs, plan: JudgeAgain, note: Note) -> tuple[JudgeQuestion, JudgeAgain]:
    """Read the answers, and make the judge.

    Raises:
        RunError: There are no answers to judge.
        JudgeError: The judge reads what a run does not keep.
    """
    return _question(inputs.run, make_judge(inputs.judge)), plan


def config(question: JudgeQuestion) -> dict[str, Any]:
    """For the manifest: the run by its name and content, never by its place."""
    judged = {"name": question.kept.folder.resolve().name, "sha256": question.digest}
    return {"model": question.of.model.name, "judged": judged, "judge": judge_json(question.judge)}


def local(question: JudgeQuestion) -> dict[str, Any]:
    """Where the judged run, and files of the judge, lie on this machine."""
    folder = str(question.kept.folder.expanduser().resolve())
    return {"judged": folder, **judge_places(question.judge)}


def ask_again(run: Run, plan: JudgeAgain, note: Note) -> JudgeQuestion:
    """What was judged again, from the manifest; where it lies now is said before it is read.

    Raises:
        RunError: It is not there, or not what it was; or the judge is another one now.
    """
    with reading_manifest(run):
        saved = run.config["judged"]
        known_hash(run, "the judged run", saved.get("sha256"))
        place = typed(run.local().get("judged", saved["name"]), str, "the place of the judged run")
        judge = judge_again(run, note)
    note(f"reading the answers of the run that this one judges: {place}")
    question = _question(Path(place), judge)
    if question.digest != saved["sha256"]:
        raise RunError(
            f"The answers of {place} have changed since {run.folder} began",
            "Put the old ones back, or judge them in another folder",
        )
    return question


def _question(folder: Path, judge: Judge) -> JudgeQuestion:
    with Run.open(folder, read_only=True) as run:
        if run.verb == "judge":
            raise UsageError(
                f"{folder} is itself a run that judges another", "Give the folder of the run that it judged"
            )
    kept, (_, of) = read_answers(folder), read_results(read_folder(folder))
    unknown = set(judge.reads) - set(get_args(Reading))
    if unknown:
        raise JudgeError(
            f"The judge {judge.name} reads {', '.join(sorted(unknown))}, which a run does not keep",
            "Name another judge, or name this one when the run is made",
        )
    return JudgeQuestion(kept, of, judge)
