"""How figures are shown in tables, and the old figure beside the new one. Used by the scripts that make tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evidence_files import older, read_new

from pointsman.stats.rates import Rate

Evidence = dict[str, Any]
Rows = list[list[str]]
OLD = " (old)"
"""Behind the name of a checkpoint of which there is nothing but the old evidence."""


def percent(rate: Evidence | None, *, n: bool = False) -> str:
    """``79 % [68, 87]``, with ``(n)`` if wanted."""
    if rate is None or rate["rate"] is None:
        return "-"
    text = f"{100 * rate['rate']:.1f} % [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"
    return f"{text} ({rate['n']})" if n else text


def asked(rate: Evidence | None) -> str:
    """``200 (57)``: n, and how many independent rows would know the rate as well."""
    if rate is None:
        return "-"
    effective = Rate(**rate).effective_n
    return str(rate["n"]) if effective is None or round(effective) >= rate["n"] else f"{rate['n']} ({effective:.0f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


@dataclass(frozen=True)
class Shown:
    """Runs of which a page tells.

    Attributes:
        shown: Every one that there is, the new one before the old of its name.
        twins: The old ones of those that are new.
    """

    shown: list[Evidence]
    twins: list[Evidence]

    @staticmethod
    def of(names: Sequence[str]) -> Shown:
        shown, twins = list[Evidence](), list[Evidence]()
        for name in names:
            new, old = read_new(name), older(name)
            if new:
                shown.append(new)
                twins += [old] if old else []
            elif old:
                shown.append({**old, "checkpoint": old["checkpoint"] + OLD})
        return Shown(shown, twins)

    def only(self, wanted: Callable[[Evidence], bool]) -> Shown:
        return Shown([e for e in self.shown if wanted(e)], [e for e in self.twins if wanted(e)])

    def told(self) -> Iterator[str]:
        """What is old, in words."""
        if any(e["checkpoint"].endswith(OLD) for e in self.shown):
            yield (
                "Checkpoints marked “(old)” are those of the testbed before this one, measured before the present "
                "plan: they stand here until `make evidence` has measured the new ones."
            )
        if self.twins:
            yield "In italics, below the new figure: the old one, of the testbed before this one."

    def table(self, head: Sequence[str], make: Callable[[Evidence], Rows], keys: int = 1) -> str:
        """A table whose cells have the old figure, in italics, below the new one where the same row is in both.

        Args:
            make: The rows of one run.
            keys: Of how many cells a row is known.
        """
        rows = [row for e in self.shown for row in make(e)]
        before = {tuple(row[:keys]): row for e in self.twins for row in make(e)}
        for row in rows:
            old = before.get(tuple(row[:keys]), row)
            for n in range(keys, len(row)):
                if old[n] not in (row[n], "-"):
                    row[n] += f"<br>*{old[n]}*"
        return table(head, rows)
