"""A command in a file: ``--save-plan FILE`` writes it, ``pointsman run FILE`` does it.

The file holds what is asked and how, and no consent: whether code of a checkpoint may run is said on the command line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pointsman.cli.loading import Loading
from pointsman.errors import UsageError
from pointsman.jobs.parameters import Parameter, parameters, plain, read, refuse_unknown
from pointsman.registry import jobs

if TYPE_CHECKING:
    from pointsman.jobs.job import Job

SCHEMA = "pointsman.plan/1"
CONSENT = "trust_remote_code"
_COLUMNS = 100


@dataclass(frozen=True)
class Request:
    """What a command asks for.

    Attributes:
        job: What is done.
        model: As the user names it; empty for a job that needs none.
        loading: How it is loaded.
        inputs: What the user names beside the model, of the job's class.
        plan: The parameters, of the job's class.
    """

    job: Job
    model: str
    loading: Loading
    inputs: Any
    plan: Any

    def to_yaml(self) -> str:
        """All of it as YAML, every value with its help as a comment, so that nothing depends on defaults."""
        lines = [
            f"# What `pointsman {self.job.name}` shall do: `pointsman run` with this file does it.",
            "# Paths are relative to the folder that it is run in.",
            _written("schema", SCHEMA),
            _written("job", self.job.name),
            *([_written("model", self.model)] if self.job.needs_model else []),
        ]
        for name, part in self._parts().items():
            lines += ["", f"{name}:", *textwrap.indent("\n".join(_described(part)), "  ").splitlines()]
        return "\n".join(lines) + "\n"

    @classmethod
    def read(cls, file: Path) -> Self:
        """From a file that `to_yaml`, or a user, wrote. Nothing that it names is read.

        Raises:
            DataError: It cannot be read, or is no plain YAML.
            UsageError: Something in it is unknown, missing, of another type, or out of bounds.
        """
        from pointsman.data.plain_yaml import LARGEST, plain_yaml
        from pointsman.data.records import decode

        found = plain_yaml(decode(file, most=LARGEST), str(file))
        try:
            return cls._checked(found)
        except UsageError as error:
            raise UsageError(f"{file}: {error.problem}", error.remedy) from None

    @classmethod
    def _checked(cls, found: Any) -> Self:
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise UsageError(f"this is no plan: it has no line `schema: {SCHEMA}`", "Write one with --save-plan FILE")
        refuse_unknown(found, ("schema", *(field.name for field in fields(cls))), "the keys of a plan")
        if not isinstance(found.get("job"), str):
            raise UsageError(f"job is {found.get('job')!r}", "Give text")
        job: Job = jobs.get(found["job"])
        model = found.get("model") if job.needs_model else found.get("model", "")
        if not isinstance(model, str) or (model and not job.needs_model):
            raise UsageError(
                f"model is {model!r}", "Give text" if job.needs_model else f"Leave it out: {job.name} needs none"
            )
        parts = {}
        for name, kind in (("loading", Loading), ("inputs", job.inputs), ("plan", job.plan)):
            values = found.get(name)
            values = {} if values is None else values
            if not isinstance(values, dict):
                raise UsageError(f"{name} is {values!r}", "Give keys and values, indented below it")
            if CONSENT in values:
                raise UsageError(
                    f"{name} cannot allow code of a checkpoint ({CONSENT})",
                    "Leave it out; if you trust that code, add --trust-remote-code to the command line",
                )
            parts[name] = read(kind, values, f"the keys of {name}")
        return cls(job, model, **parts)

    def names(self) -> str:
        """In one line what a file, which may come from a stranger, is about to load, read and ask."""
        named = [f"{self.job.name} {self.model}".rstrip()]
        for part in (self.loading, self.inputs):
            values = plain(part)
            changed = [p for p in parameters(type(part)) if getattr(part, p.name) != p.default]
            named += [f"{p.label} {values[p.name]}" for p in changed]
        return ", ".join(named)

    def _parts(self) -> Mapping[str, Any]:
        loading = {"loading": self.loading} if self.job.needs_model else {}
        parts = {**loading, "inputs": self.inputs, "plan": self.plan}
        return {name: part for name, part in parts.items() if parameters(type(part))}


def _described(part: Any) -> Iterator[str]:
    """Lines of YAML, above every value what it is."""
    values = plain(part)
    for parameter in parameters(type(part)):
        for line in textwrap.wrap(_comment(parameter), _COLUMNS):
            yield f"# {line}"
        yield _written(parameter.name, values[parameter.name])


def _comment(parameter: Parameter) -> str:
    text = parameter.help.replace("None for", "null for").replace("empty for", "[] for")
    said = all(word in text for word in parameter.choices)
    return text if said else f"{text} ({', '.join(parameter.choices)})"


def _written(name: str, value: Any) -> str:
    """A line of YAML."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=2**16)
    return f"{name}: {text.rstrip().removesuffix('...').rstrip()}"
