"""Which source questions an audit ranks routers on, and which it tests, where prompts have no splits of their own."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.data.splits import assign_balanced, assign_splits, cluster
from pointsman.data.types import Behaviour
from pointsman.jobs.audit.plan import DISCOVERY, Audit

FEWEST_BENIGN = 20  # sources; fewer are all tested, and there is no placebo


def divided(behaviours: Sequence[Behaviour], plan: Audit) -> tuple[Behaviour, ...]:
    """Behaviours with splits, as the plan wants them; those that have all their own keep them.

    Raises:
        DataError: There are too few source questions.
    """
    if all(b.split for b in behaviours):
        return tuple(behaviours)
    if plan.splits == "drawn":
        return assign_splits(behaviours, plan.seed)
    return assign_balanced(behaviours, plan.seed, DISCOVERY)


def divided_benign(benign: tuple[Behaviour, ...], plan: Audit) -> tuple[Behaviour, ...]:
    """Benign requests with splits, since the placebo ranks on some: unless they have their own, or are few."""
    if any(b.split for b in benign) or len({cluster(b) for b in benign}) < FEWEST_BENIGN:
        return benign
    return divided(benign, plan)
