"""What a manifest says of the user's files, and how a resumed run finds them again.

A manifest may be shared and may come from a stranger. So it holds no path of this machine (those are in ``local.json``,
which stays here). A file that it names is used only if its content is the one that the run began with, by a SHA-256
that the manifest must hold: who wrote the folder can name any file here, and does not know the hash of one that he has
not read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointsman.data.tables import hub_sha256, on_hub
from pointsman.errors import RunError

if TYPE_CHECKING:
    from pointsman.data.types import Suite
    from pointsman.judges.types import Judge
    from pointsman.runs.run import Run

_SHA256 = re.compile(r"[0-9a-f]{64}")
PUT_BACK = "Put the old content back, or start a new run in another folder"
OTHER_VERSION = "Continue it with the version of Pointsman that made it, or start a new run"


# ---------------------------------------------------------------------- into the manifest


def files_json(files: Mapping[str, Path]) -> dict[str, Any]:
    """Files for the manifest: paths as they may be shared, and SHA-256 of their content."""
    from pointsman.runs.provenance import shareable

    return {key: {"path": shareable(str(path)), "sha256": _sha256(path)} for key, path in files.items()}


def places(files: Mapping[str, Path]) -> dict[str, str]:
    """Where files lie on this machine, for ``local.json``."""
    return {key: str(path.expanduser().resolve()) for key, path in files.items() if not on_hub(path)}


def digest(suite: Suite) -> str:
    """SHA-256 of all prompts, targets, splits and settings of a suite."""
    return hashlib.sha256(repr(suite).encode()).hexdigest()


def judge_json(judge: Judge) -> dict[str, Any]:
    """A judge for the manifest; the parameters only where some were given, files by paths that may be shared."""
    found = {"name": judge.name, "version": judge.version}
    parameters = shareable_parameters(judge)
    return {**found, "parameters": parameters} if parameters else found


def judge_places(judge: Judge) -> dict[str, Any]:
    """Where files and folders among the parameters of a judge lie on this machine, for ``local.json``."""
    from pointsman.judges.making import parameters_of

    given = {name: Path(value).expanduser() for name, value in parameters_of(judge).items() if isinstance(value, str)}
    found = {name: str(path.resolve()) for name, path in given.items() if _is_there(path)}
    return {"judge": found} if found else {}


def shareable_parameters(judge: Judge) -> dict[str, Any]:
    """The parameters of a judge that were given, without names of users and their folders."""
    from pointsman.judges.making import parameters_of
    from pointsman.runs.provenance import shareable

    return {name: shareable(value) if isinstance(value, str) else value for name, value in parameters_of(judge).items()}


def shareable_judge(judge: Judge) -> str:
    """A judge as a user would name it, without names of users and their folders."""
    from pointsman.registry import write_name

    return write_name(judge.name, shareable_parameters(judge))


def _is_there(path: Path) -> bool:
    """Whether this is a file or, if it is more than one word, a folder."""
    try:
        return path.is_file() or (len(path.parts) > 1 and path.is_dir())
    except (OSError, ValueError):  # no path at all
        return False


# ---------------------------------------------------------------------- and back


@contextmanager
def reading_manifest(run: Run) -> Iterator[None]:
    """Turn what a manifest lacks, or holds of another type, into one line.

    Raises:
        RunError: In place of KeyError, TypeError, ValueError and AttributeError.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"The manifest of {run.folder} does not say all that is needed ({type(error).__name__}: {error})",
            OTHER_VERSION,
        ) from error


def typed(value: Any, kind: Any, what: str) -> Any:
    """A value of a manifest. Raises TypeError if it is of another type."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{what} is {value!r}")
    return value


def located(run: Run, files: Mapping[str, Any]) -> dict[str, Path]:
    """Where the files of a run lie now.

    Args:
        files: From the manifest: of every file its path, and SHA-256 of its content.

    Raises:
        RunError: A file is not there, not what it was, or nothing says what it was.
    """
    return {key: locate(run, key, Path(entry["path"]), entry.get("sha256")) for key, entry in files.items()}


def announce_data_sets(files: Mapping[str, Any], note: Callable[[str], None]) -> None:
    """Say which data sets of the hub a run names, before they are loaded."""
    for entry in files.values():
        if on_hub(Path(entry["path"])):
            note(f"reading the data set that this run names: {entry['path']}")


def locate(run: Run, key: str, named: Path, sha256: object) -> Path:
    """Where a file lies now, found by its content; nothing else of the content is looked at before.

    Args:
        key: Of the file in ``local.json``.
        named: Its path in the manifest.
        sha256: Of its content, from the manifest.
    """
    known_hash(run, str(named), sha256)
    if on_hub(named):
        if _sha256(named) != sha256:
            raise RunError(f"{named} has changed since {run.folder} began", "Start a new run in another folder")
        return named
    files = run.local().get("files")
    known = Path(typed(files.get(key, str(named)), str, "a path") if isinstance(files, dict) else named)
    try:
        candidates = [known.expanduser(), named.expanduser()]
        path = next((place for place in candidates if place.is_file()), candidates[0])
        if path.exists() and not path.is_file():
            raise RunError(f"{path}, which {run.folder} names, is no file", PUT_BACK)
        now = _sha256(path)
    except (OSError, ValueError, RuntimeError) as error:  # no such file, such path, or such user
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise RunError(
            f"{known}, which {run.folder} began with, cannot be read ({reason})",
            f"Put it back, or resume in the folder where {named} leads to it",
        ) from None
    if now != sha256:
        raise RunError(f"{path} has changed since {run.folder} began", PUT_BACK)
    return path


def known_hash(run: Run, what: str, sha256: object) -> None:
    """Refuse what a manifest names without a SHA-256 of its content.

    Raises:
        RunError: Nothing says what it was.
    """
    if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise RunError(
            f"The manifest of {run.folder} does not say what {what} held", "Start a new run in another folder"
        )


CONSENT = "POINTSMAN_SEND_KEY_TO"
"""The environment variable in which a user says that a judge out of a manifest may send a key there."""


def judge_again(run: Run, note: Callable[[str], None]) -> Judge:
    """The judge that a run began with. Parameters may name an endpoint that answers are sent to: they are said.

    Raises:
        RunError: It is of another version now, or would send a key that the user did not name.
        KeyError, TypeError: The manifest does not say.
    """
    from pointsman.judges.making import judge_of, written_judge

    saved = run.config["judge"]
    name, version, parameters = saved["name"], saved["version"], saved.get("parameters", {})
    if not isinstance(name, str) or not isinstance(parameters, dict):
        raise TypeError(f"the judge is {saved!r}")
    parameters = {**parameters, **_where_files_lie_now(run, parameters)}
    _refuse_key(run, name, parameters)
    judge = judge_of(name, parameters)
    if judge.version != version:
        raise RunError(
            f"The judge {name} is version {judge.version} now and was {version} when {run.folder} began",
            OTHER_VERSION,
        )
    if parameters:
        note(f"judging with the judge that this run names: {written_judge(judge)}")
    return judge


def _where_files_lie_now(run: Run, parameters: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that name a file of this machine, by ``local.json``."""
    places = run.local().get("judge")
    found = {}
    for key, place in places.items() if isinstance(places, dict) else ():
        known = parameters.get(key)
        if isinstance(known, str) and isinstance(place, str) and Path(known).name == Path(place).name:
            found[key] = place
    return found


def _refuse_key(run: Run, name: str, parameters: Mapping[str, Any]) -> None:
    """Raise if a manifest would have a secret of this machine sent where it says, and nobody here said so now.

    Raises:
        RunError: It would.
    """
    key, endpoint = parameters.get("key"), str(parameters.get("endpoint") or "OpenAI")
    if key is not None and os.environ.get(CONSENT) != endpoint:
        raise RunError(
            f"{run.folder} names a judge, {name}, that sends what the environment variable {key} holds to {endpoint}",
            f"If you want that, say so with {CONSENT}={shlex.quote(endpoint)} in front of the command",
        )


def _sha256(path: Path) -> str:
    if on_hub(path):
        return hub_sha256(str(path))
    with path.expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------- what to type


def resume_command(folder: Path) -> str:
    """What to type to continue the run in `folder`."""
    return f"`pointsman resume {shlex.quote(str(folder))}`"


def make_again(run: Run) -> str:
    """What to do to have the files of a finished run made again."""
    return f"delete {run.folder / 'results.json'} and {resume_command(run.folder)}"
