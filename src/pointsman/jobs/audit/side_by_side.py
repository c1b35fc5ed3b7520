"""F-SOUR and Guided on the same prompts: what either finds, and what either finds with as many forwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pointsman.jobs.audit.route_results import AtBudget, Budget, SearchCost, SideBySide
from pointsman.methods.routes import RouteResult
from pointsman.stats.paired import compare
from pointsman.stats.rates import Rate


def side_by_side(fsour: Sequence[RouteResult], guided: Sequence[RouteResult], seed: int = 0) -> SideBySide:
    """Hold the two searches against each other, paired by behaviour.

    Args:
        fsour, guided: Of the same behaviours in the same order. Shape: [behaviours].
    """
    costs = {"guided": search_cost(guided), "fsour": search_cost(fsour)}
    sources = [r.source for r in fsour]
    budgets: dict[Budget, float] = {
        "guided_median": costs["guided"].forwards,
        "guided_most": costs["guided"].most_forwards,
        "fsour_median": costs["fsour"].forwards,
        "fsour_most": costs["fsour"].most_forwards,
    }

    def at(budget: Budget, forwards: float) -> AtBudget:
        ours, theirs = opened(guided, forwards), opened(fsour, forwards)
        return AtBudget(
            forwards, budget, Rate.of(ours, sources, seed), Rate.of(theirs, sources, seed),
            compare(ours, theirs, sources, seed),
        )  # fmt: skip

    ascending = sorted(budgets.items(), key=lambda item: item[1])
    whatever = compare(opened(guided, np.inf), opened(fsour, np.inf), sources, seed)
    return SideBySide(costs["guided"], costs["fsour"], whatever, tuple(at(*each) for each in ascending))


def opened(found: Sequence[RouteResult], forwards: float) -> list[bool]:
    """Whether each behaviour gives in to a route that took so many forwards at most, earlier restarts included.

    A search ends with its first success, so all that it took is what that success took.
    """
    return [r.best.attempt.verdict.success and forwards_of(r) <= forwards for r in found]


def search_cost(found: Sequence[RouteResult]) -> SearchCost:
    """What the search of one behaviour took."""
    rows = [forwards_of(r) for r in found]
    return SearchCost(
        forwards=float(np.median(rows)),
        most_forwards=max(rows),
        pairs=float(np.median([len(r.best.steps) for r in found])),
        seconds=round(float(np.median([sum(s.cost["seconds"] for s in r.searches) for r in found])), 3),
    )


def forwards_of(result: RouteResult) -> float:
    """Forwards of one row that all restarts of a behaviour took, to a tenth."""
    return round(float(sum(search.cost["rows"] for search in result.searches)), 1)
