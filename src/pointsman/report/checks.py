"""What the claims of a steer run are written in, until its page is made of blocks."""

from __future__ import annotations

from dataclasses import dataclass

HOLDS, DOUBT, UNKNOWN = "holds", "in doubt", "not measured"


@dataclass(frozen=True)
class Check:
    """A claim that one would doubt, and what was measured.

    Attributes:
        claim: In a few words.
        found, control: The finding, and what it is held against.
        difference: Between the two, if they are paired.
        verdict: `HOLDS`, `DOUBT` or `UNKNOWN`.
        why: Of `UNKNOWN`: why there is nothing to say.
    """

    claim: str
    found: str
    control: str
    difference: str
    verdict: str
    why: str = ""

    @property
    def style(self) -> str:
        return {HOLDS: "holds", DOUBT: "doubt"}.get(self.verdict, "unknown")
