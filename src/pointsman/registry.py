"""Names that the command line accepts, open to other packages by entry point.

A registry is a dictionary with good errors. Pointsman registers its own judges, models, behaviour sets and
scenarios in the same way as any other package would: one entry point in `pyproject.toml`.

What is registered as a dataclass can be made with parameters, ``NAME:key=value,key=value``: its fields.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pointsman.errors import UnknownName, UsageError


class Registry:
    """The entry points of one group, looked up by name.

    Args:
        group: Entry-point group, for example ``"pointsman.judges"``.
        noun: What one entry is called in messages, for example ``"judge"``.
        fixed: Fields that are no parameters, whoever declares them.
    """

    def __init__(self, group: str, noun: str, fixed: Sequence[str] = ()) -> None:
        self.group = group
        self.noun = noun
        self.fixed = frozenset(fixed)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted({point.name for point in self._points()})

    def __contains__(self, name: str) -> bool:
        return any(point.name == name for point in self._points())

    def get(self, name: str) -> Any:
        """The object registered as `name`.

        Raises:
            UnknownName: Nobody registered it; the message names the nearest ones.
        """
        for point in self._points():
            if point.name == name:
                return point.load()
        raise self.unknown(name)

    def unknown(self, name: str, others: Sequence[str] = ()) -> UnknownName:
        """That nobody registered this name, with the nearest ones.

        Args:
            others: Names that are known where this one was given, without being registered.
        """
        names = [*others, *self.names()]
        near = get_close_matches(name, names, n=2)
        hint = f"Did you mean {' or '.join(near)}? Known" if near else "Known"
        return UnknownName(f"Unknown {self.noun} {name!r}", f"{hint} {self.noun}s: {', '.join(names) or 'none'}")

    def parameters(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of the entry `name` as its fields want them.

        Args:
            name: As registered.
            given: Text as on the command line, or plain values.

        Raises:
            UnknownName: Nobody registered the name.
            UsageError: It has no such parameter, lacks one that was not given, or one is of another type.
        """
        made, what = self.get(name), f"the {self.noun} {name}"
        known = self._fields(made)
        if given and not known:
            raise UsageError(f"There are no parameters of {what}", f"Write {name} alone")
        for key in given:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"Did you mean {near[0]}? Its parameters" if near else "Its parameters"
                raise UsageError(f"There is no parameter {key!r} of {what}", f"{hint}: {', '.join(known)}")
        for key, field in known.items():
            if key not in given and field.default is field.default_factory is dataclasses.MISSING:
                raise UsageError(f"{key} is missing from {what}", f"Write {name}:{key}=VALUE")
        hints = get_type_hints(made) if known else {}
        return {key: _value(f"{key} of {what}", value, hints[key]) for key, value in given.items()}

    def make(self, name: str, given: Mapping[str, Any]) -> Any:
        """The entry `name`, made with these parameters; see `parameters`."""
        return self.get(name)(**self.parameters(name, given))

    def chosen(self, made: Any) -> dict[str, Any]:
        """The parameters of something made whose value is not the default, as plain data."""
        found: dict[str, Any] = {}
        for key, field in self._fields(type(made)).items():
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if default is dataclasses.MISSING or getattr(made, key) != default:
                found[key] = getattr(made, key)
        return found

    def _fields(self, made: Any) -> dict[str, dataclasses.Field[Any]]:
        if not (isinstance(made, type) and dataclasses.is_dataclass(made)):
            return {}
        return {f.name: f for f in dataclasses.fields(made) if f.init and f.name not in self.fixed}

    def _points(self) -> Sequence[EntryPoint]:
        return tuple(entry_points(group=self.group))


def read_name(text: str, noun: str = "name") -> tuple[str, dict[str, str]]:
    """The name and the parameters of ``NAME:key=value,key=value``; a comma within a value is written ``\\,``.

    Raises:
        UsageError: It is not of this form, or says a parameter twice.
    """
    name, _, rest = text.partition(":")
    parameters: dict[str, str] = {}
    for part in re.findall(r"(?:\\[\\,]|[^,])+", rest):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{part!r} is no parameter of the {noun} {name}", f"Write {name}:key=value,key=value")
        if key.strip() in parameters:
            raise UsageError(f"{key.strip()} of the {noun} {name} is given twice", "Give it once")
        parameters[key.strip()] = re.sub(r"\\([\\,])", r"\1", value.strip())
    return name.strip(), parameters


def write_name(name: str, parameters: Mapping[str, Any]) -> str:
    """What `read_name` reads."""
    written = (f"{key}={_text(value)}" for key, value in parameters.items())
    return f"{name}:{','.join(written)}" if parameters else name


def _text(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"([\\,])", r"\\\1", text)


def _value(what: str, value: Any, kind: Any) -> Any:
    """A parameter as a field of this type wants it: text is read, anything else must be of the type."""
    if get_origin(kind) in (Union, UnionType):
        kinds = [each for each in get_args(kind) if each is not NoneType]
        if value is None and len(kinds) < len(get_args(kind)):
            return None
        kind = kinds[0] if len(kinds) == 1 else kind
    if get_origin(kind) is Literal:
        words = [word for word in get_args(kind) if isinstance(word, str)]
        if value not in words:
            near = get_close_matches(str(value), words, n=1)
            raise UsageError(
                f"{what} is {value!r}", f"Did you mean {near[0]}?" if near else f"Give one of {', '.join(words)}"
            )
        return value
    if kind is str:
        if isinstance(value, str):
            return value
    elif kind is bool:
        if isinstance(value, bool) or value in ("true", "false"):
            return value is True or value == "true"
    elif kind in (int, float) and not isinstance(value, bool):
        try:
            number = kind(value) if kind is float or isinstance(value, str | int) else None
        except (TypeError, ValueError):
            number = None
        if number is not None and math.isfinite(number):
            return number
    if kind not in _WANTED:
        raise UsageError(f"{what} is of a type that cannot be given ({kind})", "Leave it out")
    raise UsageError(f"{what} is {value!r}", f"Give {_WANTED[kind]}")


_WANTED = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}

judges = Registry(
    "pointsman.judges", "judge", fixed=("name", "version", "grades_content", "reads", "tells_garbage", "grades_harm")
)
models = Registry("pointsman.models", "model")
behaviors = Registry("pointsman.behaviors", "behavior set")
scenarios = Registry("pointsman.scenarios", "scenario")
attacks = Registry("pointsman.attacks", "attack", fixed=("name",))
jobs = Registry("pointsman.jobs", "job")
