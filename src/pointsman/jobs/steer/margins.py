"""The margin with which limits are kept on validation (METHODS section 0, evidence).

A loss that lies within its limit on some validation prompts may lie beyond it on others, and the best of many
candidates is likely one that was lucky there. So a limit is kept with margin if the one-sided confidence bound of the
paired loss (`most_lost`) lies within it. On few prompts it cannot, though nothing is lost at all: then rows count as if
they were independent, or the point estimate counts alone, and the results say so of each limit (`enough.margin_of`).
"""

from __future__ import annotations

from pointsman.data.scenario import Limits
from pointsman.jobs.steer.enough import margin_of
from pointsman.jobs.steer.limits import KINDS
from pointsman.jobs.steer.outcome import MEASURES, Outcome
from pointsman.stats.bounds import exceeds, most_lost


def without_margin(outcome: Outcome, base: Outcome, limits: Limits, confidence: float) -> tuple[str, ...]:
    """Of the limits that a margin can be shown of, those beyond which the bound of the loss lies.

    Args:
        outcome, base: Of a candidate and of the unsteered model on the same prompts.
        confidence: Of the bound, as a share.
    """
    found = []
    for measure, kind in KINDS.items():
        (now, clusters), (before, _) = MEASURES[measure](outcome), MEASURES[measure](base)
        limit = getattr(limits, measure)
        margin = margin_of(measure, limit, clusters, confidence)
        if margin.of is None:
            continue
        if kind == "share":
            before = [False] * len(now)  # it is limited by itself
        rose = [is_ and not was for is_, was in zip(now, before, strict=True)]
        fell = [was and not is_ for is_, was in zip(now, before, strict=True)]
        lost, regained = (fell, rose) if kind == "loss" else (rose, fell)
        bound = most_lost(lost, regained, clusters if margin.of == "clusters" else None, confidence)
        if exceeds(bound, limit):
            found.append(measure)
    return tuple(found)
