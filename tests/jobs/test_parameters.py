"""Parameters are written once: a dataclass says their types, bounds, defaults and help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, MinLen

from pointsman.errors import UsageError
from pointsman.jobs.parameters import Count, Metavar, Positive, check, documented, parameters, plain, read
from pointsman.registry import jobs


@dataclass(frozen=True)
class Plan:
    """Of a test.

    Attributes:
        file: Read.
        limit: Most of them,
            in two lines; None for all.
        share: Some, others: Of it.
        word, words: Of both.
    """

    file: Path
    limit: Positive | None = 5
    most: Positive | None = None
    seed: Annotated[int, Ge(0), Le(9)] = 0
    count: Count = 2
    share: Annotated[float, Gt(0)] = 0.5
    word: Literal["one", "two"] = "one"
    words: Annotated[tuple[Literal["one", "two"], ...], MinLen(1)] = ("one",)
    shares: tuple[Annotated[float, Ge(0)], ...] = ()
    name: Annotated[str, Metavar("NAME")] | None = None
    flag: bool = False

    def __post_init__(self) -> None:
        check(self)


def test_a_field_says_what_it_is() -> None:
    found = {p.name: p for p in parameters(Plan)}
    assert list(found) == list(Plan.__dataclass_fields__)
    assert found["limit"].help == "Most of them, in two lines; None for all."
    assert found["share"].help == "Some, others: Of it."
    assert found["word"].help == found["words"].help == "Of both."
    assert found["count"].help == ""
    assert (found["words"].label, found["words"].many, found["words"].choices) == ("word", True, ("one", "two"))
    assert found["limit"].zero_is_none
    assert not found["most"].zero_is_none, "it is None unless it is given"
    assert found["name"].limit(Metavar) == Metavar("NAME")
    assert documented("No attributes.") == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limit": 0}, "limit is 0. Give limit of at least 1, or leave it out."), ({"limit": True}, "limit is True"),
        ({"limit": 1.0}, "limit is 1.0. Give a whole number."), ({"count": -1}, "count is -1. Give 0 or more."),
        ({"seed": 10}, "seed is 10. Give 0 to 9."), ({"seed": None}, "seed is None. Give a whole number."),
        ({"share": 0.0}, "share is 0. Give a finite number above 0."), ({"share": float("nan")}, "share is nan."),
        ({"share": "x"}, "share is 'x'. Give a finite number."), ({"word": "tow"}, "word is 'tow'. Did you mean two?"),
        ({"word": 3}, "word is 3. Give one or two."), ({"words": ("two", "x")}, "word is 'x'."),
        ({"words": ()}, "There is no word. Give one or two."), ({"words": "one"}, "word is 'one'. Give a list"),
        ({"shares": (1.0, 1.0)}, "share names a value twice."), ({"shares": (-1.0,)}, "share is -1."),
        ({"flag": 1}, "flag is 1. Give true or false."), ({"file": 3}, "file is 3. Give the path of a file."),
        ({"name": 3}, "name is 3. Give text."), ({"share": 10**400}, "share has more than 18 digits."),
        ({"count": 10**400}, "count has more than 18 digits. Give a smaller number."),
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    for make in (lambda: Plan(**{"file": Path("f"), **changes}), lambda: read(Plan, {"file": "f", **changes}, "it")):
        with pytest.raises(UsageError) as refused:
            make()
        assert str(refused.value).startswith(said)


def test_plain_data_and_back() -> None:
    made = Plan(Path("a/b"), limit=None, share=2.0, words=("two", "one"), shares=(1e-9,), name="x", flag=True)
    data = plain(made)
    assert data["file"] == "a/b"
    assert data["words"] == ["two", "one"]
    assert read(Plan, data, "it") == made
    assert read(Plan, {"file": "f", "shares": [1, "1e-9"]}, "it").shares == (1.0, 1e-9), "YAML takes 1e-9 for text"


def test_names_that_are_unknown_or_missing() -> None:
    with pytest.raises(UsageError, match=r"There is no 'limt' among the plan\. Did you mean limit\?"):
        read(Plan, {"file": "f", "limt": 3}, "the plan")
    with pytest.raises(UsageError, match=r"file is missing from the plan\. Give the path of a file"):
        read(Plan, {}, "the plan")


def test_every_parameter_of_every_job_has_help() -> None:
    for name in jobs.names():
        job = jobs.get(name)
        for each in (*parameters(job.inputs), *parameters(job.plan)):
            assert each.help.endswith((".", "?")), f"{name}: {each.name}"
            assert each.help[0].isupper(), f"{name}: {each.name}"
