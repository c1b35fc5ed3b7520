"""The head of every page: who was asked, by whom it was judged, and what to keep in mind at every figure."""

from __future__ import annotations

import re

from pointsman.report import text
from pointsman.runs.results import JudgeFacts, Results, ThreatModel

THREATS: dict[ThreatModel, str] = {
    "T1": "the adversary owns the weights and may force any expert that exists",
    "T2": "the deployment enforces its masks; the adversary manipulates routing among what is enabled",
    "T3": "the adversary controls inputs only",
}
TESTBED = (
    "Every figure here is from the small model that ships with Pointsman; it shows that the methods work, and says "
    "nothing of any real model."
)
REFUSALS_ONLY = (
    "The judge {judge} cannot tell an answer from nonsense: whatever it does not call a refusal counts. Look at the "
    "answers before you believe a rate."
)
HARM_ONLY = (
    "The judge {judge} tells harm, and not whether what was asked for was given: a rate counts what it calls unsafe."
)
SMALL_N = "Fewer than 100 prompts: read the intervals, not the points."


def is_testbed(results: Results) -> bool:
    """Whether figures come from the testbed: its model or its suite."""
    return any(re.match(r"testbed\b", name.lower()) for name in (results.suite, results.model.name))


def labels(results: Results) -> list[str]:
    """The warnings that stand beside every figure: ``testbed``, ``small n``."""
    return ["testbed"] * is_testbed(results) + ["small n"] * results.small_n


def tag(results: Results) -> str:
    """The same as one text."""
    return " · ".join(labels(results))


def warnings(results: Results) -> list[tuple[str, str]]:
    """The same as sentences, and what the judge cannot tell."""
    found = [("Testbed.", TESTBED)] * is_testbed(results) + [("Small n.", SMALL_N)] * results.small_n
    if not results.judge.grades_content:
        title, said = ("Harm only.", HARM_ONLY) if results.judge.grades_harm else ("Refusals only.", REFUSALS_ONLY)
        found.append((title, said.format(judge=results.judge.name)))
    return found


def threat(results: Results) -> str:
    """The threat model with what it means: ``T3: the adversary controls inputs only``."""
    return f"{results.threat_model}: {THREATS[results.threat_model]}"


def judge(facts: JudgeFacts) -> str:
    """Name, version, parameters and abilities of a judge."""
    given = f" ({text.named(facts.parameters)})" if facts.parameters else ""
    able = "tells" if facts.grades_content else "cannot tell"
    return f"{facts.name} {facts.version}{given}, {able} correct from wrong content"


def facts(results: Results, *others: tuple[str, str, str]) -> list[tuple[str, str, str]]:
    """Who was asked and who judged; `others` stand between."""
    meaning = THREATS[results.threat_model]
    return [
        ("Model", results.model.name, ""),
        ("Threat model", results.threat_model, meaning),
        *others,
        ("Judge", judge(results.judge), ""),
    ]
