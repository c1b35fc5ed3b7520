"""Parameters, written once: a dataclass says their types, bounds, defaults and help.

The command line makes options of them, a plan file keeps them, and the dataclass itself refuses what is out of bounds:
`check` in its ``__post_init__``. Help is the ``Attributes:`` section of its docstring. There, ``; None for X`` (or
``; empty for X``) at the end says what None (or no value) means. None of a number that has another default is written
0 on the command line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from difflib import get_close_matches
from inspect import cleandoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, MinLen

from pointsman.errors import UsageError

Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
LARGEST = 10**18  # a whole number; numpy and torch hold no more than 2**63
P = TypeVar("P")
_WANTED = {
    str: "text", Path: "the path of a file", bool: "true or false", int: "a whole number", float: "a finite number",
}  # fmt: skip


@dataclass(frozen=True)
class Metavar:
    """What stands for the value in help: ``scenario: Annotated[str, Metavar("NAME|FILE")]``."""

    text: str


@dataclass(frozen=True)
class Argument(Metavar):
    """The same of what is given by its place, without a name, on the command line."""


@dataclass(frozen=True)
class Formerly:
    """What the manifest of a run means that began before there was this parameter, where that is not its default."""

    value: Any


@dataclass(frozen=True)
class Preset:
    """Values of several parameters under one name, a switch of the command line.

    Attributes:
        name: Of the switch, without its dashes.
        panel: Under which heading help lists it, and the parameters that it sets.
        help: Of the switch.
        values: By field. What is given beside the switch wins.
    """

    name: str
    panel: str
    help: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A field of a dataclass of parameters.

    Attributes:
        name: Of the field.
        kind: The type of its value, or of one of its values.
        choices: The words that it may be; empty for any.
        many: Whether it is a tuple of values.
        optional: Whether it may be None.
        default: MISSING if it must be given.
        limits: Bounds, a `Metavar`, and what was done `Formerly`.
        help: What it is.
    """

    name: str
    kind: type
    choices: tuple[str, ...]
    many: bool
    optional: bool
    default: Any
    limits: tuple[Any, ...]
    help: str

    @property
    def label(self) -> str:
        """As users write it: of ``through_lambdas``, one of which is given at a time, ``through-lambda``."""
        name = self.name.removesuffix("s") if self.many else self.name
        return name.replace("_", "-")

    @property
    def zero_is_none(self) -> bool:
        """Whether the command line, which knows no None, writes 0 for it."""
        return self.optional and self.kind is int and self.default is not None

    def limit(self, kind: type) -> Any:
        """The bound of this kind; None if there is none."""
        return next((limit for limit in self.limits if isinstance(limit, kind)), None)

    def read(self, value: Any) -> Any:
        """A value as plain data (YAML, JSON) gives it, as the field wants it; what cannot be is left as it is."""
        if self.many and isinstance(value, list | tuple):
            return tuple(self._read(each) for each in value)
        return self._read(value)

    def _read(self, value: Any) -> Any:
        if self.kind is Path and isinstance(value, str):
            return Path(value)
        if self.kind is float and isinstance(value, int | str) and not isinstance(value, bool):
            try:
                return float(value)  # YAML takes 1e-9 for text
            except (ValueError, OverflowError):
                return value
        return value

    def check(self, value: Any) -> None:
        """Refuse a value of another type, or out of bounds.

        Raises:
            UsageError: With what may be given.
        """
        if value is None and self.optional:
            return
        if not self.many:
            self._check(value)
            return
        if not isinstance(value, tuple):
            raise UsageError(f"{self.label} is {value!r}", f"Give a list, each {_WANTED[self.kind]}")
        for each in value:
            self._check(each)
        if self.limit(MinLen) and not value:
            raise UsageError(f"There is no {self.label}", f"Give {' or '.join(self.choices) or 'at least one'}")
        if len(set(value)) < len(value):
            raise UsageError(f"{self.label} names a value twice", "Name every value once")

    def _check(self, value: Any) -> None:
        if self.choices and value not in self.choices:
            near = get_close_matches(str(value), self.choices, n=1)
            remedy = f"Did you mean {near[0]}?" if near else f"Give {' or '.join(self.choices)}"
            raise UsageError(f"{self.label} is {value!r}", remedy)
        number = self.kind in (int, float)
        right = isinstance(value, int | float if self.kind is float else self.kind)
        if not right or (isinstance(value, bool) and self.kind is not bool):
            raise UsageError(f"{self.label} is {value!r}", f"Give {_WANTED[self.kind]}")
        if number and isinstance(value, int) and abs(value) > LARGEST:
            raise UsageError(f"{self.label} has more than 18 digits", "Give a smaller number")
        if number and not (math.isfinite(value) and self._within(value)):
            shown = f"{value:g}" if self.kind is float else value
            raise UsageError(f"{self.label} is {shown}", self._bounds())

    def _within(self, value: float) -> bool:
        least, above, most = self.limit(Ge), self.limit(Gt), self.limit(Le)
        return not (
            (least is not None and value < least.ge)
            or (above is not None and value <= above.gt)
            or (most is not None and value > most.le)
        )

    def _bounds(self) -> str:
        least, above, most = self.limit(Ge), self.limit(Gt), self.limit(Le)
        if self.kind is float:
            where = f" above {above.gt}" if above else f" of {least.ge} or more" if least else ""
            return f"Give a finite number{where}"
        if most is not None:
            return f"Give {least.ge if least else 'a number'} to {most.le}"
        if least is not None and least.ge > 0:
            return f"Give {self.label} of at least {least.ge}, or leave it out"
        return f"Give {least.ge if least else 0} or more"


def parameters(kind: type) -> tuple[Parameter, ...]:
    """The parameters of a dataclass, in their order."""
    hints, docs = get_type_hints(kind, include_extras=True), documented(kind.__doc__ or "")
    return tuple(_parameter(field, hints[field.name], docs.get(field.name, "")) for field in fields(kind))


def presets(kind: type) -> tuple[Preset, ...]:
    """The presets that a dataclass of parameters declares as ``PRESETS``."""
    found: tuple[Preset, ...] = getattr(kind, "PRESETS", ())
    return found


def check(made: Any) -> None:
    """Refuse a dataclass whose parameters are out of bounds; for its ``__post_init__``.

    Raises:
        UsageError: Names the first.
    """
    for parameter in parameters(type(made)):
        parameter.check(getattr(made, parameter.name))


def read(kind: type[P], values: Mapping[str, Any], what: str) -> P:
    """A dataclass of parameters from plain data, the inverse of `plain`.

    Args:
        values: By field; a field that is left out has its default.
        what: Of the parameters, for messages.

    Raises:
        UsageError: One is unknown, missing, of another type, or out of bounds.
    """
    known = {parameter.name: parameter for parameter in parameters(kind)}
    refuse_unknown(values, tuple(known), what)
    for name, parameter in known.items():
        if parameter.default is MISSING and name not in values:
            raise UsageError(f"{name} is missing from {what}", f"Give {_WANTED[parameter.kind]}")
    read = {name: known[name].read(value) for name, value in values.items()}
    for name, value in read.items():
        known[name].check(value)
    return kind(**read)


def refuse_unknown(names: Iterable[Any], known: Sequence[str], what: str) -> None:
    """Refuse a name that is none of those known.

    Raises:
        UsageError: Names the nearest.
    """
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}" if known else "Leave it out"
            raise UsageError(f"There is no {str(name)[:60]!r} among {what}", hint)


def plain(made: Any) -> dict[str, Any]:
    """A dataclass of parameters as JSON values."""
    return {p.name: _plain(getattr(made, p.name)) for p in parameters(type(made))}


def documented(doc: str) -> dict[str, str]:
    """The ``Attributes:`` section of a docstring: of every name, its text in one line."""
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)*)", cleandoc(doc), re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", section.group(1).rstrip()) if section else ():
        names, _, text = entry.strip().partition(": ")
        found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _parameter(field: Field[Any], hint: Any, help: str) -> Parameter:
    limits: list[Any] = []

    def bare(hint: Any) -> Any:
        """The type without its metadata."""
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            limits.extend(more)
            return bare(hint)
        return hint

    hint = bare(hint)
    optional = get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)
    if optional:
        (hint,) = (bare(each) for each in get_args(hint) if each is not NoneType)
    many = get_origin(hint) is tuple
    if many:
        hint = bare(get_args(hint)[0])
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else hint
    if kind not in _WANTED:
        raise TypeError(f"{field.name} is of a type that cannot be a parameter: {hint}")
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return Parameter(field.name, kind, choices, many, optional, default, tuple(limits), help)
