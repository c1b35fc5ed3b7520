"""From what a user writes, ``NAME:key=value,key=value``, to a `Judge`, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

from pointsman.errors import JudgeError
from pointsman.judges.types import Judge, JudgeAround, Reading
from pointsman.registry import judges, read_name, write_name


def make_judge(written: str) -> Judge:
    """The judge that a user names, with its parameters.

    Raises:
        UnknownName: Nobody registered it.
        UsageError: It has no such parameters.
        JudgeError: What is registered is no judge of this version of Pointsman.
    """
    return judge_of(*read_name(written, "judge"))


def judge_of(name: str, parameters: Mapping[str, Any]) -> Judge:
    """The registered judge `name`, made with these parameters. Raises as `make_judge`."""
    judge = judges.make(name, parameters)
    _refuse_other(name, judge)
    made: Judge = judge
    return made


def parameters_of(judge: Judge) -> dict[str, Any]:
    """The parameters of a judge that are not its defaults; `judge_of` makes the same judge of them.

    Of a judge around another, those of the other.
    """
    return judges.chosen(innermost(judge))


def innermost(judge: Judge) -> Judge:
    """The judge that others stand around (`JudgeAround`); itself, if none does."""
    while isinstance(judge, JudgeAround):
        judge = judge.inner
    return judge


def written_judge(judge: Judge) -> str:
    """What `make_judge` makes it of."""
    return write_name(judge.name, parameters_of(judge))


def _refuse_other(name: str, judge: Any) -> None:
    """Refuse what lacks something of the protocol, or judges one answer at a time, as it did before."""
    remedy = "Install a version of it for this version of Pointsman, or name another judge"
    for attribute in ("name", "version", "grades_content"):
        if not hasattr(judge, attribute):
            raise JudgeError(f"The judge {name} has no {attribute}", remedy)
    if judge.name != name:
        raise JudgeError(f"The judge {name} calls itself {judge.name!r}, so that no run could find it again", remedy)
    verb = getattr(judge, "judge", None)
    if not callable(verb):
        raise JudgeError(f"The judge {name} has no verb judge", remedy)
    wanted = list(inspect.signature(verb).parameters)
    reads = getattr(judge, "reads", None)
    if "finished" in wanted or reads is None:
        raise JudgeError(
            f"The judge {name} is of an older Pointsman: judges take many answers at once now, judge(asked, answers), "
            "and say in `reads` what they read",
            remedy,
        )
    others = set(reads) - set(get_args(Reading))
    if others:
        raise JudgeError(
            f"The judge {name} says that it reads {', '.join(sorted(map(str, others)))}",
            f"A judge may read {', '.join(get_args(Reading))}",
        )
