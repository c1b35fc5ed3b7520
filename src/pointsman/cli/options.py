"""Options: those that verbs share, and those that are made of dataclasses of parameters (`jobs.parameters`)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from annotated_types import Ge, Gt, Le

from pointsman.cli.loading import Loading, ModelOptions
from pointsman.jobs.parameters import Argument, Metavar, Parameter, Preset, parameters, presets

LOADING = "Loading the model"

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or testbed[:checkpoint].", show_default=False)
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the model code of the checkpoint.", rich_help_panel=LOADING),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else there.")]
ShowTextOption = Annotated[
    bool, typer.Option("--show-text", help="Show prompts and answers in the report; they are redacted otherwise.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Folder of the run; runs/... if left out.")
]

P = TypeVar("P")
Command = Callable[..., None]


# ---------------------------------------------------------------------- commands that are made


def with_model(*left_out: str) -> Callable[[Command], Command]:
    """Let a command take MODEL and the options of loading it in place of its parameter `options`, a `ModelOptions`.

    Args:
        left_out: Fields of `Loading` that the command does not offer.
    """

    def decorate(command: Command) -> Command:
        own = [
            each for name, each in inspect.signature(command, eval_str=True).parameters.items()
            if name not in ("context", "options")
        ]  # fmt: skip

        def expanded(context: typer.Context, model: str, trust_remote_code: bool, **given: Any) -> None:
            options = ModelOptions.of(model, made(Loading, given), trust_remote_code)
            command(context, options, **{each.name: given[each.name] for each in own})

        options = [*model_argument(), *own, *loading_options(*left_out)]
        return declared(expanded, command.__name__, command.__doc__ or "", options)

    return decorate


def declared(command: Command, name: str, help: str, options: Sequence[inspect.Parameter]) -> Command:
    """A command that takes ``**given``, with the options that typer shall see in its place."""
    every = [shared("context", typer.Context, inspect.Parameter.empty)]
    every += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options]

    def called(**given: Any) -> None:
        command(**given)

    called.__name__ = called.__qualname__ = name
    called.__doc__ = help
    called.__annotations__ = {each.name: each.annotation for each in every}
    called.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    return called


def shared(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """An option that is no parameter of anything."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def model_argument() -> list[inspect.Parameter]:
    """MODEL."""
    return [shared("model", ModelArgument, inspect.Parameter.empty)]


def loading_options(*left_out: str) -> list[inspect.Parameter]:
    """How a model is loaded, and whether code of its checkpoint may run."""
    fields = [each for each in parameters(Loading) if each.name not in left_out]
    return [*(option(each, LOADING) for each in fields), shared("trust_remote_code", TrustOption, False)]


# ---------------------------------------------------------------------- from parameters, and back


def option(parameter: Parameter, panel: str | None = None) -> inspect.Parameter:
    """The option that a parameter is on the command line; None where it is not given."""
    least, above, most = (parameter.limit(kind) for kind in (Ge, Gt, Le))
    lowest = 0 if parameter.zero_is_none else least.ge if least else above.gt if above else None
    usual = "NAME" if parameter.choices and parameter.many else {int: "N", float: "X", Path: "FILE"}.get(parameter.kind)
    written, place = parameter.limit(Metavar), parameter.limit(Argument)
    taken: Any = _choice(parameter.name, parameter.choices) if parameter.choices else parameter.kind
    if parameter.many:
        taken = list[taken]
    needed = parameter.default is MISSING
    if place:
        found = typer.Argument(metavar=place.text, help=help_of(parameter), show_default=False)
        return shared(parameter.name, Annotated[taken, found], inspect.Parameter.empty)
    found = typer.Option(
        f"--{parameter.label}" + (f"/--no-{parameter.label}" if parameter.default is True else ""),
        min=lowest,
        max=most.le if most else None,
        metavar=written.text if written else usual,
        help=help_of(parameter),
        rich_help_panel=panel,
        show_default=False,
    )
    hint: Any = taken if needed else taken | None
    return shared(parameter.name, Annotated[hint, found], inspect.Parameter.empty if needed else None)


def preset_option(preset: Preset) -> inspect.Parameter:
    """The switch of a preset."""
    other = f"/--{preset.name.removeprefix('no-')}" if preset.name.startswith("no-") else ""
    found = typer.Option(f"--{preset.name}{other}", help=preset.help, rich_help_panel=preset.panel, show_default=False)
    return shared(_key(preset), Annotated[bool, found], False)


def made(kind: type[P], given: Mapping[str, Any]) -> P:
    """A dataclass of parameters from what the options gave.

    Raises:
        UsageError: A value is out of bounds.
    """
    values: dict[str, Any] = {}
    for preset in presets(kind):
        if given.get(_key(preset)):
            values |= preset.values
    for parameter in parameters(kind):
        value = given.get(parameter.name)
        if value is None or value == []:
            continue
        if parameter.choices:
            value = [each.value for each in value] if parameter.many else value.value
        if parameter.many:
            value = tuple(value)
        values[parameter.name] = None if parameter.zero_is_none and value == 0 else value
    return kind(**values)


def help_of(parameter: Parameter) -> str:
    """The help of an option: what it is, and its default."""
    text, default = parameter.help.removesuffix("."), parameter.default
    said = re.fullmatch(r"(.*); (?:None|empty) for (.*)", text)
    if said:
        text = f"{said[1]}; 0 for {said[2]}" if parameter.zero_is_none else said[1]
    if parameter.many:
        listed = f" ({', '.join(parameter.choices)})" if parameter.choices else ""
        text += f"{listed}; may be repeated"
    if not text.endswith("?"):
        text += "."
    shown = _shown(default)
    if said and not parameter.zero_is_none:
        shown = said[2]
    if default is True:
        shown = f"--{parameter.label}"
    text = text.replace("[", r"\[")
    return f"{text} [dim]default: {shown}[/dim]" if shown else text


def _shown(default: Any) -> str:
    """A default as one would type it; nothing where there is none to speak of."""
    if default is MISSING or default is None or default is False or default == ():
        return ""
    if isinstance(default, tuple):
        return ", ".join(map(_shown, default))
    return f"{default:g}".replace("e-0", "e-") if isinstance(default, float) else str(default)


def _choice(name: str, choices: Sequence[str]) -> type[Enum]:
    found = Enum(name, {word: word for word in choices}, type=str)  # type: ignore[misc]
    return found


def _key(preset: Preset) -> str:
    return preset.name.replace("-", "_")
