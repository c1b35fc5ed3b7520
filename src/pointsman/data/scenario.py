"""A scenario: what steering is for, what it may cost, what is tried, and on which prompts. Data, and its YAML file.

Two objectives (METHODS section 5): `defend` makes a model hold its refusals through conversations; `allow` makes it
answer the requests of one use case and hold every other refusal. `docs/scenarios.md` documents every key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast, get_args

from pointsman.data.objective import FILES, NEEDED, UNUSED, Objective
from pointsman.data.plain_yaml import LARGEST, plain_yaml
from pointsman.data.scenario_prompts import read_prompts
from pointsman.data.splits import DEFAULT_FRACTIONS, SPLITS
from pointsman.errors import DataError, UnknownName, UsageError
from pointsman.registry import behaviors, judges, read_name, scenarios, write_name

if TYPE_CHECKING:
    from pointsman.data.types import Suite
    from pointsman.routing.intervention import Phase

SCHEMA = "pointsman.scenario/1"
Refinement = Literal["surrogate", "on_policy", "through_model"]
REFINEMENTS: tuple[Refinement, ...] = get_args(Refinement)
PHASES = ("prefill", "decode", "both")
MOST_ALPHA = 8.0

_KEYS = (
    "schema", "name", "objective", "description", "prompts", "judge", "hold", "limits", "splits", "grid",
    "max_new_tokens", "system",
)  # fmt: skip
_GRID = {"lambda": "lambdas", "alpha": "alphas", "phase": "phases", "refinement": "refinements"}
_NAME = re.compile(r"\w[\w.-]{0,79}")
_S = TypeVar("_S", bound="Scenario")
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True)
class Limits:
    """How much may be lost, as shares (0.02: two points), against the same model without the mask.

    Attributes:
        benign: Benign requests answered.
        benign_conversations: Benign conversations whose last turn is answered.
        over_refusal: Benign and borderline requests refused: how much more.
        garbage: Answers that are no answers: a ceiling, whatever the model did before.
        held: Restricted requests refused (`allow`: those of the categories in `hold`).
    """

    benign: float = 0.02
    benign_conversations: float = 0.03
    over_refusal: float = 0.03
    garbage: float = 0.02
    held: float = 0.05

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise UsageError(f"limits.{name} is {value:g}, not a share from 0 to 1", "Write 0.02 for two points")


@dataclass(frozen=True)
class Grid:
    """What is tried on the validation split (METHODS section 5.4, 5.5).

    Attributes:
        lambdas: Weights of the L1 norm of the steering matrix.
        alphas: Strengths of the mask, in (0, 8].
        phases: When the mask is in force.
        refinements: How the matrix is found: on the surrogate alone, or refined.
    """

    lambdas: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3)
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    phases: tuple[Phase, ...] = ("prefill", "both")
    refinements: tuple[Refinement, ...] = REFINEMENTS

    def __post_init__(self) -> None:
        for key, name in _GRID.items():
            values: Sequence[Any] = getattr(self, name)
            if not values:
                raise UsageError(f"grid.{key} is empty", "Give at least one value, or leave the key out")
            if len(set(values)) < len(values):
                raise UsageError(f"grid.{key} names a value twice", "Name every value once")
        for value in self.lambdas:
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"grid.lambda holds {value:g}", "Give finite numbers of 0 or more")
        for value in self.alphas:
            if not 0 < value <= MOST_ALPHA:
                raise UsageError(f"grid.alpha holds {value:g}", f"Give numbers above 0 and up to {MOST_ALPHA:g}")
        for phase in self.phases:
            _one_of("grid.phase", phase, PHASES)
        for refinement in self.refinements:
            _one_of("grid.refinement", refinement, REFINEMENTS)


@dataclass(frozen=True)
class Scenario:
    """What steering is for.

    Attributes:
        name: Shown with every figure.
        objective: `defend`: refuse in conversations too. `allow`: answer the requests of `scenario`.
        description: One sentence for the report.
        suite: Name of a registered suite; None if files are given.
        files: Prompt files by the names in `FILES`; empty if a suite is given.
        judge: Name of a registered judge, with its parameters if it has any: ``NAME:key=value,key=value``.
        hold: Restricted categories that must not move (`allow`); None for all of `restricted`.
        limits: What may be lost.
        grid: What is tried.
        fractions: Shares of the source questions for discovery, validation and test, where the data has no splits.
        max_new_tokens: How long an answer may be; the suite's own if None.
        system: A system prompt for every request.

    Raises:
        UsageError: A field is out of range, or the prompts do not fit the objective.
    """

    name: str
    objective: Objective
    description: str = ""
    suite: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict, hash=False)
    judge: str = "refusal"
    hold: tuple[str, ...] | None = None
    limits: Limits = field(default_factory=Limits)
    grid: Grid = field(default_factory=Grid)
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
    max_new_tokens: int | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"The name {self.name[:80]!r} is not one word",
                "Use letters, digits, _, - and . (at most 80), for example multi_turn_defence",
            )
        _one_of("objective", self.objective, get_args(Objective))
        if (self.suite is None) == (not self.files):
            raise UsageError(
                "prompts names both a suite and files" if self.files else "prompts names neither a suite nor files",
                "Give prompts.suite, or files by " + ", ".join(f for f in FILES if f != UNUSED[self.objective]),
            )
        if self.files:
            _check_files(self.objective, self.files)
        if self.hold is not None:
            if self.objective != "allow":
                raise UsageError(
                    "hold names categories", "Write `hold: all`: objective defend holds every restricted one"
                )
            if not self.hold:
                raise UsageError("hold is empty", "Name restricted categories, or write `hold: all`")
        if not all(0 < f < 1 for f in self.fractions) or abs(sum(self.fractions) - 1) > 1e-6:
            raise UsageError(
                f"splits are {', '.join(f'{f:g}' for f in self.fractions)}",
                f"Give {', '.join(SPLITS)} three shares above 0 that sum to 1",
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}", "Give 1 or more, or leave it out")

    def holds(self, category: str) -> bool:
        """Whether restricted requests of this category must not move."""
        return self.hold is None or category in self.hold

    def read(self, seed: int) -> Suite:
        """Load the prompts and give every one its split, by source question.

        Splits that the data brings are kept. All lists agree on the split of a source; each list has at least two
        source questions in each split. Prompts that are all of the test split stay so: they are to evaluate on.

        Args:
            seed: Of the assignment of splits.

        Raises:
            DataError: A file cannot be used, a list is too small, or the lists contradict each other.
            UnknownName: Nobody registered the suite.
        """
        suite = read_prompts(
            self.name, self.objective, suite=self.suite, files=self.files, hold=self.hold, fractions=self.fractions,
            seed=seed,
        )  # fmt: skip
        return replace(suite, judge=self.judge, max_new_tokens=self.max_new_tokens or suite.max_new_tokens)

    def to_json(self) -> dict[str, Any]:
        """In the schema of the YAML file, with absolute paths."""
        files = {key: str(self.files[key].expanduser().resolve()) for key in FILES if key in self.files}
        return {
            "schema": SCHEMA,
            "name": self.name,
            "objective": self.objective,
            "description": self.description,
            "prompts": {"suite": self.suite} if self.suite is not None else files,
            "judge": self.judge,
            "hold": "all" if self.hold is None else list(self.hold),
            "limits": asdict(self.limits),
            "splits": dict(zip(SPLITS, self.fractions, strict=True)),
            "grid": {key: list(getattr(self.grid, name)) for key, name in _GRID.items()},
            "max_new_tokens": self.max_new_tokens,
            "system": self.system,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises:
            DataError: It is not that.
        """
        return _scenario(cls, data, "The scenario", Path())


def scenario_names() -> list[str]:
    """The registered scenarios, sorted."""
    return scenarios.names()


def load_scenario(name_or_path: str | Path) -> Scenario:
    """Read a registered scenario, or a YAML file.

    Args:
        name_or_path: A registered name, or the path of a ``.yaml`` or ``.yml`` file. Paths in the file are relative
            to it.

    Raises:
        DataError: The file cannot be used; the message names the key.
        UnknownName: It is neither.
    """
    text = str(name_or_path)
    path = Path(name_or_path).expanduser()
    if isinstance(name_or_path, Path) or path.name != text or path.suffix.lower() in (".yaml", ".yml"):
        return _from_file(path)
    found = scenario_text(text)
    return _from_file(found) if isinstance(found, Path) else _from_text(found, f"The scenario {text}", Path())


def scenario_text(name: str) -> str | Path:
    """The YAML text of a registered scenario, or the path of its file.

    Raises:
        UnknownName: Nobody registered it.
        DataError: What is registered is neither.
    """
    try:
        found = scenarios.get(name)()
    except UnknownName as error:
        raise UnknownName(error.problem, f"{error.remedy}. Or give the path of a .yaml file") from None
    if not isinstance(found, str | Path):
        raise DataError(
            f"The scenario {name} is registered as {type(found).__name__}", "Register a YAML text or a path"
        )
    return found


def _from_file(path: Path) -> Scenario:
    from pointsman.data.records import decode, reason

    remedy = "Check the path, or write one with `pointsman scenario init --template real`"
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder", "Name a .yaml file in it")
        if not path.exists():
            raise DataError(f"{path} does not exist", remedy)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}", remedy) from None
    return _from_text(decode(path, most=LARGEST), str(path), path.parent)


def _from_text(text: str, where: str, folder: Path) -> Scenario:
    return _scenario(Scenario, plain_yaml(text, where), where, folder)


# ---------------------------------------------------------------------- from plain data


def _scenario(cls: type[_S], data: Any, where: str, folder: Path) -> _S:
    """A scenario from the data of a YAML file. `where` begins every message; paths are relative to `folder`."""
    table = _table(where, "", data, _KEYS)
    schema = table.get("schema")
    if schema != SCHEMA:
        problem = "has no schema" if schema is None else f"is of schema {str(schema)[:40]!r}"
        raise DataError(f"{where} {problem}", f"Write `schema: {SCHEMA}`")
    for key in ("name", "objective", "prompts"):
        if table.get(key) is None:
            raise DataError(f"{where}: {key} is missing", f"Add {key}; `pointsman scenario init` writes an example")
    prompts = {k: v for k, v in _table(where, "prompts", table["prompts"], ("suite", *FILES)).items() if v is not None}
    suite = _text(where, "prompts.suite", prompts.pop("suite", None))
    try:
        if suite is not None and suite not in behaviors:
            behaviors.get(suite)
        judge = _judge(where, table.get("judge"))
        if judge is None:
            judge = behaviors.get(suite)().judge if suite is not None else "refusal"
        judge_name, parameters = read_name(judge, "judge")
        if parameters or judge_name not in judges:
            judges.parameters(judge_name, parameters)
        return cls(
            name=_required_text(where, "name", table["name"]),
            objective=cast(Objective, _required_text(where, "objective", table["objective"])),
            description=" ".join((_text(where, "description", table.get("description") or None) or "").split()),
            suite=suite,
            files={k: folder / Path(_required_text(where, f"prompts.{k}", v)).expanduser() for k, v in prompts.items()},
            judge=judge,
            hold=_hold(where, table.get("hold")),
            limits=_limits(where, table.get("limits")),
            grid=_grid(where, table.get("grid")),
            fractions=_fractions(where, table.get("splits")),
            max_new_tokens=_count(where, "max_new_tokens", table.get("max_new_tokens")),
            system=_text(where, "system", table.get("system")),
        )
    except (UsageError, UnknownName) as error:
        raise DataError(f"{where}: {error.problem}", error.remedy) from None


def _judge(where: str, data: Any) -> str | None:
    """``NAME:key=value``, or the same as a table: ``{name: NAME, key: value}``."""
    if not isinstance(data, dict):
        return _text(where, "judge", data)
    name = _required_text(where, "judge.name", data.get("name"))
    parameters = {key: value for key, value in data.items() if key != "name" and value is not None}
    for key, value in parameters.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float):
            raise DataError(f"{where}: judge.{key} is no text and no number", "Give a single value")
    return write_name(name, parameters)


def _limits(where: str, data: Any) -> Limits:
    names = tuple(asdict(Limits()))
    table = {} if data is None else _table(where, "limits", data, names)
    return Limits(**{name: _number(where, f"limits.{name}", value) for name, value in table.items()})


def _grid(where: str, data: Any) -> Grid:
    table = {} if data is None else _table(where, "grid", data, tuple(_GRID))
    given: dict[str, tuple[Any, ...]] = {}
    for key, value in table.items():
        values = value if isinstance(value, list) else [value]
        read = _number if key in ("lambda", "alpha") else _required_text
        given[_GRID[key]] = tuple(read(where, f"grid.{key}", each) for each in values)
    return Grid(**given)


def _fractions(where: str, data: Any) -> tuple[float, float, float]:
    if data is None:
        return DEFAULT_FRACTIONS
    table = _table(where, "splits", data, SPLITS)
    missing = [split for split in SPLITS if split not in table]
    if missing:
        raise DataError(f"{where}: splits leaves out {' and '.join(missing)}", f"Give shares for {', '.join(SPLITS)}")
    first, second, third = (_number(where, f"splits.{split}", table[split]) for split in SPLITS)
    return first, second, third


def _hold(where: str, value: Any) -> tuple[str, ...] | None:
    if value is None or value == "all":
        return None
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(_required_text(where, "hold", each) for each in values))


def _table(where: str, key: str, value: Any, known: Sequence[str]) -> Mapping[str, Any]:
    """A mapping with known keys only."""
    if not isinstance(value, Mapping):
        what = f"{where}: {key} is" if key else f"{where} is"
        raise DataError(f"{what} not a table of keys and values", f"Write it with the keys {', '.join(known)}")
    for name in value:
        if name not in known:
            label = f"{key}.{_shown(name)}" if key else _shown(name)
            raise DataError(f"{where}: unknown key {label}", _did_you_mean(str(name), known, "keys"))
    return value


def _text(where: str, key: str, value: Any) -> str | None:
    """A text without the space around it; None stays None, and an empty one is refused."""
    if value is None:
        return None
    if not isinstance(value, str):
        hint = " (YAML reads yes, no, on and off as true and false)" if isinstance(value, bool) else ""
        raise DataError(f"{where}: {key} is {_shown(value)}, not a text{hint}", "Put it into quotes")
    if not value.strip():
        raise DataError(f"{where}: {key} is empty", f"Fill in {key}, or remove it")
    return value.strip()


def _required_text(where: str, key: str, value: Any) -> str:
    text = _text(where, key, value)
    if text is None:
        raise DataError(f"{where}: {key} is empty", f"Fill in {key}, or remove it")
    return text


def _number(where: str, key: str, value: Any) -> float:
    """A number; also one like 1e-5, which YAML 1.1 takes for a text because it has no point."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: {key} is {_shown(value)}, not a number", "Write it like 0.02 or 1e-4")
    try:
        return float(value)
    except OverflowError:
        raise DataError(f"{where}: {key} is too large", "Write it like 0.02 or 1e-4") from None


def _count(where: str, key: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise DataError(f"{where}: {key} is {_shown(value)}, not a whole number", "Give 1 or more, or leave it out")
    return value


def _shown(value: Any) -> str:
    """A value as messages show it: short, whatever it is."""
    if isinstance(value, list | tuple | Mapping):
        return "a table" if isinstance(value, Mapping) else "a list"
    return "empty" if value is None else repr(value)[:60]


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{key} is {_shown(value)}", _did_you_mean(value, known, "values"))


def _did_you_mean(name: str, known: Sequence[str], noun: str) -> str:
    near = get_close_matches(name, known, n=1)
    return (f"Did you mean {near[0]}? Known" if near else "Known") + f" {noun}: {', '.join(known)}"


def _check_files(objective: Objective, files: Iterable[str]) -> None:
    """Raise unless the files are those that the objective needs and can use."""
    for name in files:
        if name == UNUSED[objective]:
            raise UsageError(
                f"prompts.{name} is not asked by objective {objective}",
                f"Remove prompts.{name}, or change the objective",
            )
        _one_of("A key of prompts", name, FILES)
    for name in NEEDED[objective]:
        if name not in files and not (objective == "defend" and name == "restricted"):
            raise UsageError(f"objective {objective} needs prompts.{name}", f"Give a file: prompts.{name}: FILE")
