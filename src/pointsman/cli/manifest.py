"""From the command line into a run's manifest, and back when the run is resumed.

A manifest may be shared and may come from a stranger. So it holds no path of this machine (those are in ``local.json``,
which stays here) and no consent: whether code of the checkpoint may run is said anew on every command line. A file that
it names is used only if its content is the one that the run began with, by a SHA-256 that the manifest must hold: who
wrote the folder can name any file here, and does not know the hash of one that he has not read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointsman.cli.options import ModelOptions, Template
from pointsman.cli.output import say
from pointsman.errors import RunError

if TYPE_CHECKING:
    from pointsman.runs.run import Run

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PUT_BACK = "Put the old content back, or start a new run in another folder"


@dataclass(frozen=True)
class Anew:
    """What a run does not remember, and the command that resumes it says anew.

    Attributes:
        model: Where the model lies now; None for where it lay.
        trust_remote_code: Run the model code of the checkpoint.
    """

    model: str | None = None
    trust_remote_code: bool = False


def model_of(run: Run, anew: Anew) -> ModelOptions:
    """The model that a run began with, as its manifest and ``local.json`` name it.

    Raises:
        RunError: It was a local folder, and is not there; or its chat template has changed.
        KeyError, TypeError, ValueError: The manifest does not say.
    """
    load = run.config["load"]
    name = _typed(load["name"], str, "the model's name")
    batch = _typed(load["batch_size"], int | None, "batch_size")
    if batch is not None and batch < 1:
        raise ValueError(f"batch_size is {batch}")
    return ModelOptions(
        name=name,
        source=ModelOptions.place_of(anew.model) if anew.model is not None else _source(run, load, name),
        dtype=_typed(load["dtype"], str, "dtype"),
        device=_typed(load["device"], str, "device"),
        quantization=_typed(load["quantization"], str | None, "quantization"),
        revision=_typed(load["revision"], str | None, "revision"),
        trust_remote_code=anew.trust_remote_code,  # never the manifest's
        chat_template=_template(run, load["chat_template"]),
        batch_size=batch,
        moved=anew.model is not None,
    )


def announce(options: ModelOptions, steering: str | None = None) -> None:
    """Say which model (and steering) a run names, before it is loaded."""
    where = f", from {options.source}" if options.source != options.name else ""
    what = f", and the steering {steering}" if steering is not None else ""
    say(f"pointsman: note: loading the model that this run names: {options.name}{where}{what}.")


def files_json(files: Mapping[str, Path]) -> dict[str, Any]:
    """Prompt files for the manifest: paths as they may be shared, and SHA-256 of their content."""
    from pointsman.runs.provenance import shareable

    return {key: {"path": shareable(str(path)), "sha256": _sha256(path)} for key, path in files.items()}


def local_json(
    options: ModelOptions, files: Mapping[str, Path] | None = None, steering: str | None = None
) -> dict[str, Any]:
    """Where everything lies on this machine, for ``local.json``."""
    found: dict[str, Any] = {"files": {key: str(path.expanduser().resolve()) for key, path in (files or {}).items()}}
    if options.local:
        found["model"] = options.source
    if steering is not None and Path(steering).expanduser().exists():
        found["steering"] = str(Path(steering).expanduser().resolve())
    return found


def steering_json(name: str, sha256: str) -> dict[str, Any]:
    """A steering that is evaluated, for the manifest. `sha256` is of what it does."""
    from pointsman.runs.provenance import shareable

    return {"name": shareable(name), "local": Path(name).expanduser().exists(), "sha256": sha256}


def steering_of(run: Run) -> str:
    """The steering that a run evaluates: where it lies now, or its hub id.

    Raises:
        RunError: It was a local folder, and is not there; or nothing says what it was.
        KeyError, TypeError, AttributeError: The manifest does not say.
    """
    saved = run.config["steering"]
    if not _is_hash(saved.get("sha256")):
        raise _unknown(run, f"the steering {saved['name']}")
    named = _typed(saved["name"], str, "the steering's name")
    place = _typed(run.local().get("steering", named), str, "the steering's place")
    for name in (place, named):
        if Path(name).expanduser().exists():
            return str(name)
    if saved.get("local", False) or place != named:
        raise RunError(
            f"The steering {place}, which {run.folder} began with, is not there any more",
            f"Put it back, or resume in the folder where {named} leads to it",
        )
    return str(named)


def located(run: Run, files: Mapping[str, Any]) -> dict[str, Path]:
    """Where the prompt files of a run lie now.

    Args:
        files: From the manifest: of every file its path, and SHA-256 of its content.

    Raises:
        RunError: A file is not there, not what it was, or nothing says what it was.
    """
    return {key: _located(run, key, Path(entry["path"]), entry.get("sha256")) for key, entry in files.items()}


def same_question(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two configs ask the same, wherever model and files lie; the older may be of an earlier version."""
    return bool(_question(then) == _question(now))


# ---------------------------------------------------------------------- small things


def _source(run: Run, load: Mapping[str, Any], name: str) -> str:
    """Where the model is loaded from."""
    place = run.local().get("model", load.get("source"))  # `source`: of an earlier version
    if place is None and not load.get("local", False):
        return name
    source = Path(_typed(place or name, str, "the model's place")).expanduser()
    if place == name and not source.is_absolute():
        return name  # a hub id, or a registered name
    for folder in (source, Path(name).expanduser()):
        if folder.is_dir():
            return str(folder.resolve())
    raise RunError(
        f"The model {name}, which {run.folder} began with, is not in {source} any more", "Say where with --model FOLDER"
    )


def _template(run: Run, saved: Any) -> Template | None:
    """The chat template that a run began with: its text is in the manifest."""
    if saved is None:
        return None
    if isinstance(saved, str):  # of an earlier version: a path, good for no more than the content that is known
        path = _located(run, "chat_template", Path(saved), _known_template(run.config))
        return Template.read(path)
    return Template(_typed(saved["name"], str, "the template's name"), _typed(saved["text"], str, "the template"))


def _known_template(config: Mapping[str, Any]) -> str | None:
    """SHA-256 of the chat template that was given, if one was."""
    prompts = config["prompts"]
    if "chat_template" in prompts:  # of `steer` and `evaluate`
        saved: str | None = _typed(prompts["chat_template"], str | None, "the template's checksum")
        return saved
    template = config["load"]["chat_template"]
    if isinstance(template, Mapping):
        return str(template["sha256"])
    return str(prompts["files"]["chat_template"]["sha256"]) if template is not None else None


def _located(run: Run, key: str, named: Path, sha256: object) -> Path:
    """Where a file lies now, found by its content; nothing else of the content is looked at before."""
    if not _is_hash(sha256):
        raise _unknown(run, str(named))
    files = run.local().get("files")
    known = Path(_typed(files.get(key, str(named)), str, "a path") if isinstance(files, dict) else named)
    try:
        places = [known.expanduser(), named.expanduser()]
        path = next((place for place in places if place.is_file()), places[0])
        if path.exists() and not path.is_file():
            raise RunError(f"{path}, which {run.folder} names, is no file", _PUT_BACK)
        now = _sha256(path)
    except (OSError, ValueError, RuntimeError) as error:  # no such file, such path, or such user
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise RunError(
            f"{known}, which {run.folder} began with, cannot be read ({reason})",
            f"Put it back, or resume in the folder where {named} leads to it",
        ) from None
    if now != sha256:
        raise RunError(f"{path} has changed since {run.folder} began", _PUT_BACK)
    return path


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _unknown(run: Run, what: str) -> RunError:
    return RunError(f"The manifest of {run.folder} does not say what {what} held", "Start a new run in another folder")


def _question(config: Mapping[str, Any]) -> Any:
    """A config without places and consent."""
    from pointsman.runs.provenance import shareable

    asked: Any = deepcopy(dict(config))
    try:
        asked["template"] = _known_template(config)
        asked["model"] = asked["load"]["name"] = shareable(asked["model"])
        for name in ("source", "local", "trust_remote_code", "chat_template"):
            asked["load"].pop(name, None)
        asked["prompts"].pop("chat_template", None)
        files = asked["prompts"].pop("files", {})
        if "scenario" not in asked:
            asked["files"] = {key: files[key]["sha256"] for key in files if key != "chat_template"}
        elif "suite" not in asked["scenario"]["prompts"]:
            asked["scenario"]["prompts"] = sorted(asked["scenario"]["prompts"])  # the digest says what is in them
        if "steering" in asked:
            asked["steering"] = asked["steering"]["sha256"]
    except (KeyError, TypeError, AttributeError):
        return config
    return asked


def _typed(value: Any, kind: Any, what: str) -> Any:
    """A value of a manifest. Raises TypeError if it is of another type."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{what} is {value!r}")
    return value


def _sha256(path: Path) -> str:
    with path.expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
