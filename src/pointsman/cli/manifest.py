"""From the command line into a run's manifest, and back when the run is resumed.

A manifest may be shared and may come from a stranger. What `runs.files` says of files holds of the model as well: no
path of this machine is in it, but in ``local.json``. Nor is any consent: whether code of the checkpoint may run is said
anew on every command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointsman.cli.loading import ChatTemplate, ModelOptions
from pointsman.cli.output import say_note
from pointsman.errors import RunError
from pointsman.jobs.parameters import Formerly, Parameter, parameters, plain, read
from pointsman.runs.files import locate, typed

if TYPE_CHECKING:
    from pointsman.runs.run import Run


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
    name = typed(load["name"], str, "the model's name")
    batch = typed(load["batch_size"], int | None, "batch_size")
    if batch is not None and batch < 1:
        raise ValueError(f"batch_size is {batch}")
    return ModelOptions(
        name=name,
        source=ModelOptions.place_of(anew.model) if anew.model is not None else _source(run, load, name),
        dtype=typed(load["dtype"], str, "dtype"),
        device=typed(load["device"], str, "device"),
        quantization=typed(load["quantization"], str | None, "quantization"),
        revision=typed(load["revision"], str | None, "revision"),
        trust_remote_code=anew.trust_remote_code,  # never the manifest's
        chat_template=_template(run, load["chat_template"]),
        batch_size=batch,
        moved=anew.model is not None,
    )


def announce(options: ModelOptions) -> None:
    """Say which model a run names, before it is loaded."""
    where = f", from {options.source}" if options.source != options.name else ""
    say_note(f"loading the model that this run names: {options.name}{where}")


def plan_of(run: Run, kind: type[Any]) -> Any:
    """The plan that a run began with.

    Raises:
        KeyError: The manifest lacks a parameter.
    """
    return read(kind, {each.name: _began_with(run.config, each) for each in parameters(kind)}, "the plan")


def config_of(options: ModelOptions | None, asked: Mapping[str, Any], plan: Any) -> dict[str, Any]:
    """Everything that decides the results, for the manifest.

    Args:
        options: None for a job that needs no model.
        asked: From `Work.config`.
    """
    if options is None:
        return {**asked, **plain(plan)}
    config = {"model": options.shown, "load": options.to_json(), **asked, **plain(plan)}
    if "scenario" in asked:  # where it has stood from the first manifest of a scenario on
        template = options.chat_template
        config["prompts"] = {**asked["prompts"], "chat_template": template.sha256 if template else None}
    return config


def local_of(options: ModelOptions | None, places: Mapping[str, Any]) -> dict[str, Any]:
    """Where everything lies on this machine, for ``local.json``.

    Args:
        places: From `Work.local`.
    """
    return {**places, "model": options.source} if options and options.local else dict(places)


def same_question(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two configs ask the same, wherever model and files lie; the older may be of an earlier version."""
    return bool(_question(then) == _question(now))


# ---------------------------------------------------------------------- small things


def _began_with(config: Mapping[str, Any], parameter: Parameter) -> Any:
    """The value of a parameter; what was done before there was one, in a manifest that lacks it."""
    formerly = parameter.limit(Formerly)
    return config[parameter.name] if formerly is None else config.get(parameter.name, formerly.value)


def _source(run: Run, load: Mapping[str, Any], name: str) -> str:
    """Where the model is loaded from."""
    place = run.local().get("model", load.get("source"))  # `source`: of an earlier version
    if place is None and not load.get("local", False):
        return name
    source = Path(typed(place or name, str, "the model's place")).expanduser()
    if place == name and not source.is_absolute():
        return name  # a hub id, or a registered name
    for folder in (source, Path(name).expanduser()):
        if folder.is_dir():
            return str(folder.resolve())
    raise RunError(
        f"The model {name}, which {run.folder} began with, is not in {source} any more", "Say where with --model FOLDER"
    )


def _template(run: Run, saved: Any) -> ChatTemplate | None:
    """The chat template that a run began with: its text is in the manifest."""
    if saved is None:
        return None
    if isinstance(saved, str):  # of an earlier version: a path, good for no more than the content that is known
        path = locate(run, "chat_template", Path(saved), _known_template(run.config))
        return ChatTemplate.read(path)
    return ChatTemplate(typed(saved["name"], str, "the template's name"), typed(saved["text"], str, "the template"))


def _known_template(config: Mapping[str, Any]) -> str | None:
    """SHA-256 of the chat template that was given, if one was."""
    prompts = config.get("prompts", {})
    if "chat_template" in prompts:  # of `steer` and `evaluate`
        saved: str | None = typed(prompts["chat_template"], str | None, "the template's checksum")
        return saved
    template = config["load"]["chat_template"]
    if isinstance(template, Mapping):
        return str(template["sha256"])
    return str(prompts["files"]["chat_template"]["sha256"]) if template is not None else None


def _question(config: Mapping[str, Any]) -> Any:
    """A config without places and consent."""
    from pointsman.runs.provenance import shareable

    asked: Any = deepcopy(dict(config))
    try:
        asked["template"] = _known_template(config)
        asked["model"] = asked["load"]["name"] = shareable(asked["model"])
        for name in ("source", "local", "trust_remote_code", "chat_template"):
            asked["load"].pop(name, None)
        prompts = asked.get("prompts", {})
        prompts.pop("chat_template", None)
        files = prompts.pop("files", {})
        if "scenario" not in asked:
            asked["files"] = {key: files[key]["sha256"] for key in files if key != "chat_template"}
        elif "suite" not in asked["scenario"]["prompts"]:
            asked["scenario"]["prompts"] = sorted(asked["scenario"]["prompts"])  # the digest says what is in them
        if "steering" in asked:
            asked["steering"] = asked["steering"]["sha256"]
    except (KeyError, TypeError, AttributeError):
        return config
    return asked
