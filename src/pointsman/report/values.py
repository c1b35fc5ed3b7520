"""Reading `results.json`: careful access to what may be missing, and one way to write every number.

Everything in a results file is material from outside: names, categories, tokens and error texts can hold
anything.  `clean` makes the strings safe to *show* (no control characters, no bidirectional overrides, no
lone surrogates); the templates escape them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.errors import RunError

AUDIT, STEER = "pointsman.audit/2", "pointsman.steer/1"
"""The schemas that have a page."""

REDACTED = "▮"
NARROW = "\u202f"  # narrow no-break space: between a number and its unit, and between thousands
MINUS = "\u2212"
MISSING = "–"

# C0 and C1 controls except tab and newline; bidirectional overrides and isolates; lone surrogates.
_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)


def clean_text(text: str) -> str:
    """Replace characters that would garble a page or a terminal by U+FFFD."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def clean(value: Any) -> Any:
    """`clean_text` on every string and key of a JSON value."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [clean(item) for item in value]
    return value


def _broken(problem: str) -> RunError:
    return RunError(
        f"results.json cannot be rendered: {problem}",
        "Render it with the Pointsman version that wrote it, or make the run again",
    )


@dataclass(frozen=True)
class Node:
    """A JSON value and the path to it, so that an error can say which entry is wrong."""

    value: Any
    path: str = ""

    def __getitem__(self, key: str) -> Node:
        """The entry `key`; it must exist, and may be null."""
        if not isinstance(self.value, Mapping):
            raise _broken(f"`{self.path or 'the file'}` is not an object")
        where = f"{self.path}.{key}" if self.path else key
        if key not in self.value:
            raise _broken(f"`{where}` is missing")
        return Node(self.value[key], where)

    def get(self, key: str) -> Node | None:
        """The entry `key`, or None where it is missing or null."""
        if not isinstance(self.value, Mapping):
            raise _broken(f"`{self.path or 'the file'}` is not an object")
        value = self.value.get(key)
        return None if value is None else Node(value, f"{self.path}.{key}" if self.path else key)

    def rows(self) -> list[Node]:
        if not isinstance(self.value, list):
            raise _broken(f"`{self.path}` is not a list")
        return [Node(item, f"{self.path}[{i}]") for i, item in enumerate(self.value)]

    def items(self) -> Iterator[tuple[str, Node]]:
        if not isinstance(self.value, Mapping):
            raise _broken(f"`{self.path}` is not an object")
        for key, item in self.value.items():
            yield str(key), Node(item, f"{self.path}.{key}")

    def text(self) -> str:
        """As shown: strings as they are, numbers and lists readably."""
        return show(self.value)

    def number(self) -> float:
        """A finite number."""
        number = self.maybe()
        if number is None:
            raise _broken(f"`{self.path}` is not a finite number")
        return number

    def maybe(self) -> float | None:
        """A finite number, or None for null, NaN and infinities."""
        if self.value is None:
            return None
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise _broken(f"`{self.path}` is not a number")
        return float(self.value) if math.isfinite(self.value) else None

    def integer(self) -> int:
        number = self.number()
        if number != int(number):
            raise _broken(f"`{self.path}` is not a whole number")
        return int(number)

    def integers(self) -> list[int]:
        return [item.integer() for item in self.rows()]

    def truth(self) -> bool:
        """True or false; null is false."""
        if self.value is not None and not isinstance(self.value, bool):
            raise _broken(f"`{self.path}` is neither true nor false")
        return bool(self.value)

    def difference(self) -> Difference:
        """A difference of two rates; where rows share source questions, the p-value is that of whole clusters."""
        clustered, exact = self.get("p_clustered"), self.get("p_mcnemar")
        p = clustered or exact
        value, low, high = (_within(self[key].maybe()) for key in ("difference", "low", "high"))
        return Difference(value, low, high, p.maybe() if p else None)

    def rate(self) -> Rate:
        n = self["n"].integer()
        value = self["rate"].maybe() if n else None
        low, high = (node.maybe() if node else None for node in (self.get("low"), self.get("high")))
        method, clusters = self.get("method"), self.get("clusters")
        k = self["k"].maybe()
        return Rate(
            k=None if k is None else round(k),
            n=n,
            rate=value,
            low=value if low is None else low,
            high=value if high is None else high,
            method=method.text() if method else "",
            clusters=clusters.integer() if clusters else None,
        )


def _within(share: float | None) -> float | None:
    """No two rates differ by more than 100 points, whatever an interval's formula says."""
    return None if share is None else min(max(share, -1.0), 1.0)


def schema_of(results: Any) -> str:
    """`AUDIT` or `STEER`, whichever the results are of; a `RunError` if neither."""
    if not isinstance(results, Mapping):
        raise _broken("it does not hold an object")
    schema = results.get("schema")
    if schema in (AUDIT, STEER):
        return str(schema)
    if schema == "pointsman.results/1":  # until the sections read typed results
        return AUDIT if results.get("job") == "audit" else STEER
    found = f"has schema {clean_text(str(schema))[:60]!r}" if schema is not None else "names no schema"
    raise RunError(
        f"results.json {found}; this version of Pointsman renders {AUDIT!r} and {STEER!r}",
        "Render it with the Pointsman version that wrote it, or make the run again",
    )


def check_schema(results: Any, schema: str = AUDIT) -> Node:
    """The cleaned results as a `Node`; a `RunError` if they are of another schema."""
    found = schema_of(results)
    if found != schema:
        raise RunError(
            f"results.json has schema {found!r}, and this page is that of {schema!r}",
            "Render it with `pointsman report`, which picks the page by the schema",
        )
    return Node(clean(results))


@dataclass(frozen=True)
class Difference:
    """Two rates on the same prompts, one less the other, with the 95 % interval; shares, written as points."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None = None

    @property
    def short(self) -> str:
        """`+59 [+45, +70]`, in percentage points."""
        if self.value is None:
            return MISSING
        edges = [signed(None if edge is None else 100 * edge) for edge in (self.low, self.high)]
        return f"{signed(100 * self.value)} [{', '.join(edges)}]"

    @property
    def fine(self) -> str:
        """`−0.8 [−1.7, 0.1]`: with one decimal, where limits are a few points."""
        if self.value is None:
            return MISSING
        edges = [signed(None if edge is None else 100 * edge, 1) for edge in (self.low, self.high)]
        return f"{signed(100 * self.value, 1)} [{', '.join(edges)}]"

    @property
    def chance(self) -> str:
        """`p = 0.012`, or nothing."""
        return "" if self.p is None else f"p{NARROW}{p_value(self.p, equals=True)}"

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval, ready to be written. `rate` is None when nothing was scored."""

    k: int | None
    n: int
    rate: float | None
    low: float | None
    high: float | None
    method: str = ""
    clusters: int | None = None

    @property
    def percent(self) -> str:
        return MISSING if self.rate is None else f"{self._digits(self.rate)}{NARROW}%"

    @property
    def number(self) -> str:
        return MISSING if self.rate is None else self._digits(self.rate)

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"[{self._digits(self.low)}, {self._digits(self.high)}]"

    @property
    def short(self) -> str:
        """`79 % [68, 87]`"""
        return f"{self.percent} {self.interval}".strip() if self.rate is not None else "nothing scored"

    @property
    def fine(self) -> str:
        """`98.7 % [97.4, 99.4]`: with one decimal."""
        if self.rate is None:
            return "nothing scored"
        low, high = (plain(None if edge is None else 100 * edge, 1) for edge in (self.low, self.high))
        return f"{plain(100 * self.rate, 1)}{NARROW}% [{low}, {high}]"

    @property
    def count(self) -> str:
        return f"n{NARROW}={NARROW}{self.n}"

    @property
    def full(self) -> str:
        """`79 % [68, 87] (n = 62)`"""
        return f"{self.short} ({self.count})"

    @staticmethod
    def _digits(share: float) -> str:
        """Whole percents, and one decimal next to the ends, where rounding would claim none or all."""
        percent = 100 * share
        if 0.05 <= percent < 0.95 or 99.05 <= percent < 99.95:
            return f"{percent:.1f}"
        return f"{math.floor(percent + 0.5)}"


def signed(number: float | None, digits: int = 0) -> str:
    if number is None:
        return MISSING
    text = f"{abs(number):.{digits}f}"
    if float(text) == 0:
        return text
    return (MINUS if number < 0 else "+") + text


def plain(number: float | None, digits: int) -> str:
    """A number with a true minus sign."""
    if number is None:
        return MISSING
    text = f"{number:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.replace("-", "")


def p_value(number: float | None, *, equals: bool = False) -> str:
    """`0.012`, and `< 0.001` below that; with `equals`, `= 0.012`."""
    if number is None:
        return MISSING
    if number < 0.001:
        return f"<{NARROW}0.001"
    return (f"={NARROW}" if equals else "") + f"{number:.3f}"


def tick_text(number: float) -> str:
    """An axis label: as many digits as the value has."""
    return f"{round(number, 6):g}".replace("-", MINUS)


def count(number: float | None) -> str:
    """`12 345`, and `1.2 M` from a million on."""
    if number is None:
        return MISSING
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.3g}{NARROW}{unit}"
    return f"{number:,.0f}".replace(",", NARROW)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f}{NARROW}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NARROW}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}{NARROW}min {rest}{NARROW}s" if rest else f"{minutes}{NARROW}min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NARROW}h {minutes}{NARROW}min"


def show(value: Any) -> str:
    """Any JSON value in a table cell."""
    if value is None or value in ("", []):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value) if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(show(item) for item in value)
    return str(value)


def experts_text(node: Node, most: int = 16) -> str:
    """Expert numbers, the first few of them."""
    experts = node.integers()
    text = ", ".join(map(str, experts[:most]))
    return text + (", …" if len(experts) > most else "")


def is_testbed(results: Node) -> bool:
    """Whether figures come from the testbed: its model or its suite."""
    suite, name = results.get("suite"), results["model"].get("name")
    named = [node.text().lower() for node in (suite, name) if node]
    return any(re.match(r"testbed\b", text) for text in named)


def labels(results: Node) -> list[str]:
    """The warnings that stand beside every figure: `testbed`, `small n`."""
    small = results.get("small_n")
    found = ["testbed"] if is_testbed(results) else []
    if small and small.value:
        found.append("small n")
    return found
