"""What an audit asks: prompts in files, or the suite that comes with a model; and who judges the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pointsman.data.loaders import load_suite
from pointsman.data.records import decode
from pointsman.data.types import Suite
from pointsman.errors import RunError, UsageError
from pointsman.jobs.audit.columns import mapped_columns
from pointsman.jobs.audit.plan import ROUTE_ATTACKS, Audit, AuditInputs
from pointsman.jobs.audit.splitting import divided
from pointsman.jobs.job import Note
from pointsman.judges.making import make_judge
from pointsman.judges.types import Judge
from pointsman.methods.attack import make_attack
from pointsman.registry import attacks, behaviors, read_name
from pointsman.runs.files import (
    OTHER_VERSION,
    announce_data_sets,
    digest,
    files_json,
    judge_again,
    judge_json,
    judge_places,
    located,
    places,
    reading_manifest,
    typed,
)
from pointsman.runs.run import Run
from pointsman.runs.task_folder import TaskFolder, task_config
from pointsman.runs.tasks import refuse_unknown_tasks

_FILES = ("behaviors", "benign", "borderline", "conversations")
_MOST_SYSTEM = 2**16  # bytes of a file with a system prompt


@dataclass(frozen=True)
class AuditQuestion:
    """Behaviours, benign requests and conversations; and who judges the answers.

    Attributes:
        registered: The name of the suite, if it is a registered one.
        files: What it was read from otherwise, by option.
        task_folder: Task files for lm-eval, of the user.
        columns: What the user says of the columns of these files: ``USE=COLUMN``, or ``FILE.USE=COLUMN``.
        system: A system prompt for every request.
    """

    suite: Suite
    judge: Judge
    registered: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    system: str | None = None
    task_folder: TaskFolder | None = None


def ask(model: str, inputs: AuditInputs, plan: Audit, note: Note) -> tuple[AuditQuestion, Audit]:
    """Read the prompts, and make the judge.

    Raises:
        UsageError: There is nothing to ask, or an option that would be ignored.
        DataError: A file cannot be used, or holds too little to split.
    """
    for attack in plan.other_attacks:
        _refuse_unknown_attack(attack)  # before anything is loaded
    tasks = TaskFolder.read(inputs.utility_tasks)
    refuse_unknown_tasks(plan, tasks)
    name = suite_of(model) if inputs.behaviors is None else None
    if name is not None:
        _refuse_ignored(model, name, inputs)
    given = {key: getattr(inputs, key) for key in _FILES}
    files = {key: path.expanduser() for key, path in given.items() if path is not None}
    suite = read_suite(name, files, inputs.columns)
    judge = make_judge(suite.judge if inputs.judge is None else inputs.judge)
    divided(suite.restricted, plan)  # the audit does so: refuse what is too little now
    return AuditQuestion(suite, judge, name, files, inputs.columns, _system(inputs.system), tasks), plan


def config(question: AuditQuestion) -> dict[str, Any]:
    """Prompts and judge for the manifest: files by path and content hash, or a registered suite by its content."""
    name = question.registered
    known = digest(question.suite) if name is not None else None
    prompts: dict[str, Any] = {"suite": name, "digest": known, "files": files_json(question.files)}
    said = {"columns": list(question.columns), "system": question.system}
    prompts |= {key: value for key, value in said.items() if value}  # earlier manifests have neither
    return {"prompts": prompts, "judge": judge_json(question.judge), **task_config(question.task_folder)}


def local(question: AuditQuestion) -> dict[str, Any]:
    """Where the files, and those of the judge, lie on this machine."""
    return {"files": places(question.files), **judge_places(question.judge)}


def ask_again(run: Run, plan: Audit, note: Note) -> AuditQuestion:
    """What a run asks, from its manifest.

    Raises:
        RunError: A file is not there, or not what it was; the registered suite, or the judge, is another one now.
    """
    with reading_manifest(run):
        data = run.config["prompts"]
        known, name = data["files"], data["suite"]
        if name is None and "behaviors" not in known:
            raise ValueError("neither a suite nor a file")
        columns = tuple(typed(each, str, "a column") for each in data.get("columns", ()))
        system = typed(data.get("system"), str | None, "the system prompt")
        asked = {key: known[key] for key in _FILES if key in known}
        announce_data_sets(asked, note)
        files = located(run, asked)
        then = data["digest"]
        judge, tasks = judge_again(run, note), TaskFolder.again(run)
    suite = read_suite(name, files, columns)
    if name is not None and digest(suite) != then:
        raise RunError(f"The prompts of {name} have changed since {run.folder} began", OTHER_VERSION)
    return AuditQuestion(suite, judge, name, files, columns, system, tasks)


def suite_of(model: str) -> str:
    """The name under which a model's own prompts are registered: that of the model, else of all its checkpoints."""
    return model if model in behaviors else model.partition(":")[0]


def read_suite(name: str | None, files: Mapping[str, Path], columns: Sequence[str] = ()) -> Suite:
    """The registered suite of this name; the one in files if there is no name.

    Raises:
        DataError: A file cannot be used.
        UsageError: What is said of columns is malformed.
    """
    if name is None:
        others = {key: files.get(key) for key in _FILES[1:]}
        return load_suite(files["behaviors"], **others, columns=mapped_columns(columns, files))
    suite: Suite = behaviors.get(name)()
    return suite


def _refuse_unknown_attack(written: str) -> None:
    """Refuse an attack that is neither a search of routes nor of a package, and parameters that it does not have.

    Raises:
        UnknownName, UsageError: With what there is.
    """
    name, _ = read_name(written, "attack")
    if name in ROUTE_ATTACKS:
        raise UsageError(f"There are no parameters of the attack {name}", f"Write {name} alone")
    if name not in attacks:
        raise attacks.unknown(name, ROUTE_ATTACKS)
    make_attack(written)


def _system(given: str | None) -> str | None:
    """The system prompt: what is given, or what is in the file after an @."""
    text = decode(Path(given[1:]).expanduser(), most=_MOST_SYSTEM) if given and given.startswith("@") else given
    if text is not None and not text.strip():
        raise UsageError("The system prompt is empty", "Give its text, or @FILE; or leave --system out")
    return text and text.strip()


def _refuse_ignored(model: str, name: str, inputs: AuditInputs) -> None:
    """Refuse a model that brings no prompts, and files beside those that it brings."""
    if name not in behaviors:
        near = get_close_matches(name, behaviors.names(), n=1)
        raise UsageError(
            f"No behaviours come with {model}",
            (f"Did you mean {near[0]}? Else give" if near else "Give")
            + " a file with --behaviors FILE (columns Goal, Target, Category, as in JailbreakBench)",
        )
    others = {option: getattr(inputs, option) for option in _FILES[1:]}
    for option, given in {**others, "column": inputs.columns}.items():
        if given:
            raise UsageError(
                f"--{option} needs --behaviors: {name} brings its own prompts",
                f"Give --behaviors FILE as well, or leave --{option} out",
            )
