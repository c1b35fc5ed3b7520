"""Do the findings stand? The claims of a run, which its job made, each with what could refute it."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.report.blocks import Claims, Details, Finding, Section, Text
from pointsman.runs.results import Claim, Results


def section(results: Results, against: str, rules: str, *, held: str = "") -> Section:
    """All claims, and how many hold.

    Args:
        against: What claims are held against, such as ``what could refute it``.
        rules: What makes a claim hold.
        held: Behind "hold" in the finding.
    """
    return Section(
        "checks",
        "Do the findings stand?",
        [f"Each claim against {against}. Threat model {results.threat_model}."],
        [
            Finding(_finding(results.claims, held)),
            Claims(results.claims),
            Details("The rules behind these words", [Text(rules)]),
        ],
    )


def _finding(claims: Sequence[Claim], held: str) -> str:
    hold, doubted, failed, unknown = (
        sum(claim.verdict == verdict for claim in claims) for verdict in ("holds", "in doubt", "fails", "not measured")
    )
    said = f"Of {len(claims)} claims that one would doubt first, {hold} hold{'s' if hold == 1 else ''}{held}"
    said += f", {doubted} {'is' if doubted == 1 else 'are'} in doubt" if doubted else ""
    said += f", {failed} fail{'s' if failed == 1 else ''}" if failed else ""
    said += f", {unknown} {'was' if unknown == 1 else 'were'} not measured" if unknown else ""
    return f"{said}."
