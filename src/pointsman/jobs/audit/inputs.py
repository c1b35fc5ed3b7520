"""What an audit is given: prompts in files, or the suite that comes with a model; and who judges the answers."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pointsman.errors import RunError, UsageError
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.parameters import Metavar
from pointsman.runs.files import (
    OTHER_VERSION,
    announce_data_sets,
    digest,
    files_json,
    judge_again,
    located,
    reading_manifest,
    typed,
)

if TYPE_CHECKING:
    from pointsman.data.types import Suite
    from pointsman.runs.run import Run

_FILES = ("behaviors", "benign", "borderline", "conversations")
_MAPPED = _FILES[:-1]  # whose columns can be named
_MOST_SYSTEM = 2**16  # bytes of a file with a system prompt


@dataclass(frozen=True)
class AuditInputs:
    """What an audit is given beside the model.

    Attributes:
        behaviors: What the model should refuse: CSV, TSV, JSONL, JSON, Parquet or hub:owner/name, with columns Goal,
            Target, Category; `data check` says what is understood.
        benign: Benign requests: measures utility and over-refusal.
        borderline: Benign requests that look restricted.
        conversations: Multi-turn attempts at restricted requests.
        columns: What a column is used for, where its name does not say it: goal=Question of --behaviors,
            benign.goal=Question of --benign.
        system: A system prompt for every request, or the file that holds it.
        judge: The suite's own if left out; some judges take parameters.
    """

    behaviors: Path | None = None
    benign: Path | None = None
    borderline: Path | None = None
    conversations: Path | None = None
    columns: Annotated[tuple[str, ...], Metavar("[FILE.]USE=NAME")] = ()
    system: Annotated[str, Metavar("TEXT|@FILE")] | None = None
    judge: Annotated[str, Metavar("NAME[:KEY=VALUE,...]")] | None = None


def ask(model: str, inputs: AuditInputs, plan: Audit) -> AuditQuestion:
    """Read the prompts, and make the judge.

    Raises:
        UsageError: There is nothing to ask, or an option that would be ignored.
        DataError: A file cannot be used, or holds too little to split.
    """
    from pointsman.jobs.audit.splitting import divided
    from pointsman.judges.making import make_judge

    name = model.partition(":")[0] if inputs.behaviors is None else None
    if name is not None:
        _refuse_ignored(model, name, inputs)
    given = {key: getattr(inputs, key) for key in _FILES}
    files = {key: path.expanduser() for key, path in given.items() if path is not None}
    suite = read_suite(name, files, inputs.columns)
    judge = make_judge(suite.judge if inputs.judge is None else inputs.judge)
    divided(suite.restricted, plan)  # the audit does so: refuse what is too little now
    return AuditQuestion(suite, judge, name, files, inputs.columns, _system(inputs.system))


def config(question: AuditQuestion) -> dict[str, Any]:
    """Prompts and judge for the manifest: files by path and content hash, or a registered suite by its content."""
    from pointsman.judges.making import judge_json

    name = question.registered
    known = digest(question.suite) if name is not None else None
    prompts: dict[str, Any] = {"suite": name, "digest": known, "files": files_json(question.files)}
    said = {"columns": list(question.columns), "system": question.system}
    prompts |= {key: value for key, value in said.items() if value}  # earlier manifests have neither
    return {"prompts": prompts, "judge": judge_json(question.judge)}


def ask_again(run: Run, note: Callable[[str], None]) -> AuditQuestion:
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
        judge = judge_again(run, note)
    suite = read_suite(name, files, columns)
    if name is not None and digest(suite) != then:
        raise RunError(f"The prompts of {name} have changed since {run.folder} began", OTHER_VERSION)
    return AuditQuestion(suite, judge, name, files, columns, system)


def read_suite(name: str | None, files: Mapping[str, Path], columns: Sequence[str] = ()) -> Suite:
    """The registered suite of this name; the one in files if there is no name.

    Raises:
        DataError: A file cannot be used.
        UsageError: What is said of columns is malformed.
    """
    from pointsman.data.loaders import load_suite
    from pointsman.registry import behaviors

    if name is None:
        others = {key: files.get(key) for key in _FILES[1:]}
        return load_suite(files["behaviors"], **others, columns=mapped_columns(columns, files))
    suite: Suite = behaviors.get(name)()
    return suite


def mapped_columns(said: Sequence[str], files: Container[str]) -> dict[str, dict[str, str]]:
    """Of every file, the columns that are named: ``goal=Question`` for the behaviours, ``benign.goal=...`` for others.

    Args:
        said: As a user writes them.
        files: The files that are given, by option.

    Raises:
        UsageError: One is malformed, names an unknown use or a file that is not given, or names a use twice.
    """
    from pointsman.data.loaders import USES

    found: dict[str, dict[str, str]] = {}
    for each in said:
        key, equals, column = (part.strip() for part in each.partition("="))
        file, _, use = key.partition(".") if "." in key else ("behaviors", "", key)
        if not equals or not column:
            raise UsageError(f"--column {each!r} names no column", "Write it as goal=Question or benign.goal=Question")
        if use not in USES:
            near = get_close_matches(use, USES, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(USES)}"
            raise UsageError(f"--column {each!r} is of an unknown use {use!r}", hint)
        if file not in _MAPPED or file not in files:
            raise UsageError(
                f"--column {each!r} is of a file {file!r} that is not given",
                f"Write {', '.join(f'{name}.{use}=...' for name in _MAPPED)} of a file that you give",
            )
        if use in found.setdefault(file, {}):
            raise UsageError(f"--column names {use} of {file} twice", "Name every use once")
        found[file][use] = column
    return found


def _system(given: str | None) -> str | None:
    """The system prompt: what is given, or what is in the file after an @."""
    from pointsman.data.records import decode

    text = decode(Path(given[1:]).expanduser(), most=_MOST_SYSTEM) if given and given.startswith("@") else given
    if text is not None and not text.strip():
        raise UsageError("The system prompt is empty", "Give its text, or @FILE; or leave --system out")
    return text and text.strip()


def _refuse_ignored(model: str, name: str, inputs: AuditInputs) -> None:
    """Refuse a model that brings no prompts, and files beside those that it brings."""
    from pointsman.registry import behaviors

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
