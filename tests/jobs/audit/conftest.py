"""Results of the golden audit, to be varied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pointsman.jobs.audit.claims import conclude
from pointsman.jobs.audit.results import AuditResults
from pointsman.jobs.audit.route_results import AtBudget, Budget, GuidedRoutes, GuidedSettings, SearchCost, SideBySide
from pointsman.jobs.finished import read_results
from pointsman.stats.paired import compare
from pointsman.stats.rates import Rate

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture(scope="session")
def results() -> AuditResults:
    data = json.loads((GOLDEN / "audit" / "results.json").read_text(encoding="utf-8"))
    found = read_results(data)[1]
    assert isinstance(found, AuditResults)
    return found


@pytest.fixture(scope="session")
def both(results: AuditResults) -> AuditResults:
    """The golden audit with routes of Guided as well: those that F-SOUR found, in 31 to 57 forwards."""
    fsour = results.fsour
    assert fsour is not None
    assert fsour.example is not None
    kept = {name: value for name, value in vars(fsour).items() if name not in ("targets", "min_gain", "transfer")}
    example = replace(fsour.example, trajectory=())
    settings = GuidedSettings(12, 32, 16, 1, -0.223, 1e-6, True, "prefill")
    guided = GuidedRoutes(**{**kept, "settings": settings, "example": example})
    n, sources = len(fsour.behaviours), [b.id for b in fsour.behaviours]
    every, half, none = [True] * n, [b % 2 == 0 for b in range(n)], [False] * n

    def at(forwards: float, budget: Budget, ours: list[bool], theirs: list[bool]) -> AtBudget:
        rates = [Rate.of(flags, sources) for flags in (ours, theirs)]
        return AtBudget(forwards, budget, rates[0], rates[1], compare(ours, theirs, sources))

    side = SideBySide(
        SearchCost(31.4, 57.2, 8.0, 0.2),
        SearchCost(851.0, 2400.0, 71.0, 3.0),
        compare(every, every, sources),
        (
            at(31.4, "guided_median", half, none), at(57.2, "guided_most", every, none),
            at(851.0, "fsour_median", every, half), at(2400.0, "fsour_most", every, every),
        ),
    )  # fmt: skip
    return conclude(replace(results, guided=guided, side_by_side=side))
