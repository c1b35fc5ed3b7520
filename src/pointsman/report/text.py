"""How numbers are written: each kind in one way, on every page and in the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pointsman.stats.auroc import Auroc
from pointsman.stats.paired import AboveDraws, Comparison
from pointsman.stats.rates import Mean, Rate

REDACTED = "▮"
NARROW = "\u202f"  # narrow no-break space: between a number and its unit, and between thousands
MINUS = "\u2212"
MISSING = "–"

# C0 and C1 controls except tab and newline; bidirectional overrides and isolates; lone surrogates.
_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)


def clean_text(text: str) -> str:
    """Replace characters that would garble a page or a terminal by U+FFFD. Renderers do so with all that they write."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n"))


# ---------------------------------------------------------------------- numbers


def signed(number: float | None, digits: int = 0) -> str:
    """A change: ``+59``, ``−3`` and ``0``."""
    if number is None:
        return MISSING
    said = f"{abs(number):.{digits}f}"
    if float(said) == 0:
        return said
    return (MINUS if number < 0 else "+") + said


def plain(number: float | None, digits: int) -> str:
    """A number with a true minus sign."""
    if number is None or not math.isfinite(number):
        return MISSING
    said = f"{number:.{digits}f}"
    return said.replace("-", MINUS) if float(said) else said.replace("-", "")


def p_value(number: float | None, *, equals: bool = False) -> str:
    """``0.012``, and ``< 0.001`` below that; with `equals`, ``= 0.012``."""
    if number is None:
        return MISSING
    if number < 0.001:
        return f"<{NARROW}0.001"
    return (f"={NARROW}" if equals else "") + f"{number:.3f}"


def tick(number: float) -> str:
    """A label of an axis: as many digits as the value has."""
    return f"{round(number, 6):g}".replace("-", MINUS)


def count(number: float | None) -> str:
    """``12 345``, and ``1.2 M`` from a million on."""
    if number is None:
        return MISSING
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.3g}{NARROW}{unit}"
    return f"{number:,.0f}".replace(",", NARROW)


def duration(seconds: float | None) -> str:
    """``1.3 s``, ``6 min 43 s``, ``1 h 0 min``."""
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


def percent(share: float, digits: int = 0) -> str:
    """``79 %``."""
    return f"{plain(100 * share, digits)}{NARROW}%"


def points(share: float | None, digits: int = 1) -> str:
    """A share as percentage points: ``1.3``."""
    return plain(None if share is None else 100 * share, digits)


def many(number: int, one: str, more: str = "") -> str:
    """``1 mask``, ``3 masks``."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def readable(key: str) -> str:
    """A key of results as words."""
    return key.replace("_", " ")


def show(value: Any) -> str:
    """Any value of results, such as a setting."""
    if value is None or value in ("", [], ()):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value) if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS)
    if isinstance(value, Mapping):
        return named(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(show(item) for item in value)
    return str(value)


def named(values: Mapping[str, Any]) -> str:
    """Names with their values: ``samples 6, prompts 8``."""
    return ", ".join(f"{name} {show(value)}" for name, value in values.items())


def experts(numbers: Sequence[int], most: int = 16) -> str:
    """Numbers of experts, the first few of them."""
    return ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def token(said: str) -> str:
    """A token with its white space made visible."""
    return said.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"


# ---------------------------------------------------------------------- rates, means and AUROCs


def digits(share: float) -> str:
    """Whole percents, and one decimal next to the ends, where rounding would claim none or all."""
    found = 100 * share
    if 0.05 <= found < 0.95 or 99.05 <= found < 99.95:
        return f"{found:.1f}"
    return f"{math.floor(found + 0.5)}"


def number(rate: Rate) -> str:
    """``79``; a dash where nothing was scored."""
    return MISSING if rate.rate is None else digits(rate.rate)


def value(rate: Rate, *, fine: bool = False) -> str:
    """``79 %``; with `fine` ``79.0 %``; a dash where nothing was scored."""
    if fine and rate.rate is not None:
        return percent(rate.rate, 1)
    return MISSING if rate.rate is None else f"{digits(rate.rate)}{NARROW}%"


def interval(rate: Rate, *, fine: bool = False) -> str:
    """``[68, 87]``, or nothing where nothing was scored."""
    if rate.rate is None:
        return ""
    low, high = (plain(100 * edge, 1) if fine else digits(edge) for edge in (rate.low, rate.high))
    return f"[{low}, {high}]"


def rows(n: int) -> str:
    """``n = 62``."""
    return f"n{NARROW}={NARROW}{n}"


def rows_of(rate: Rate) -> str:
    """``n = 62``, with ``, effective 14`` where rows are alike, so that the interval is that of fewer."""
    fewer = effective(rate)
    return rows(rate.n) if fewer is None else f"{rows(rate.n)}, effective {fewer}"


def effective(rate: Rate) -> int | None:
    """Effective n, where that is less than n."""
    if rate.clusters is None or rate.effective_n is None or round(rate.effective_n) >= rate.n:
        return None
    return round(rate.effective_n)


def short(rate: Rate) -> str:
    """``79 % [68, 87]``."""
    return "nothing scored" if rate.rate is None else f"{value(rate)} {interval(rate)}"


def mean(centre: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """``0.21 [0.02, 0.40]``."""
    return f"{plain(centre, digits)} {mean_interval(low, high, digits)}"


def mean_interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """``[0.02, 0.40]``."""
    return "[no interval]" if low is None or high is None else f"[{plain(low, digits)}, {plain(high, digits)}]"


def full(found: Rate | Mean | Auroc) -> str:
    """``79 % [68, 87] (n = 62, effective 14)``; a mean without its n, which stands beside it."""
    if isinstance(found, Rate):
        return f"{short(found)} ({rows_of(found)})"
    if isinstance(found, Mean):
        return mean(found.mean, found.low, found.high)
    if found.value is None:
        return f"nothing scored ({rows(found.n)})"
    return f"{mean(found.value, found.low, found.high)} ({rows(found.n)})"


# ---------------------------------------------------------------------- differences


def change(difference: Comparison | AboveDraws, digits: int = 0) -> str:
    """``+59``, in percentage points."""
    return signed(None if difference.difference is None else 100 * difference.difference, digits)


def change_interval(difference: Comparison | AboveDraws, digits: int = 0) -> str:
    """``[+45, +70]``: no two rates differ by more than 100 points."""
    if difference.difference is None:
        return ""
    edges = (signed(100 * min(max(edge, -1.0), 1.0), digits) for edge in (difference.low, difference.high))
    return f"[{', '.join(edges)}]"


def change_full(difference: Comparison | AboveDraws, digits: int = 0) -> str:
    """``+59 [+45, +70]``."""
    return f"{change(difference, digits)} {change_interval(difference, digits)}".strip()


def chance(difference: Comparison | AboveDraws) -> str:
    """``p = 0.012``, of whole clusters; nothing for a control of few draws, which has none that could be small."""
    if isinstance(difference, AboveDraws):
        return ""
    return f"p{NARROW}{p_value(difference.p_clustered, equals=True)}"
