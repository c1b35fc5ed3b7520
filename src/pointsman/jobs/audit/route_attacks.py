"""Which searches of unsafe routes an audit runs, known before it asks anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.data.types import Behaviour
from pointsman.engine.abilities import that_guides
from pointsman.engine.types import Engine
from pointsman.errors import BadLogits, PointsmanError
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.runs.bench import Bench
from pointsman.runs.run import ABLE


@dataclass(frozen=True)
class RouteAttacks:
    """The searches that are run.

    Attributes:
        fsour: Whether F-SOUR is.
        gradient: What one route gradient takes, in forwards of its row; None where Guided is not run.
        notes: Why Guided is not run, in a sentence, where nobody said that it should not be.
    """

    fsour: bool
    gradient: float | None
    notes: tuple[str, ...] = ()


def refuse_unguided(engine: Engine, plan: Audit) -> None:
    """Refuse an engine without gradients where Guided is asked for by name.

    Raises:
        UsageError: It has none.
    """
    if "guided" in plan.route_attacks:
        that_guides(engine)


def choose_route_attacks(bench: Bench[AuditQuestion], plan: Audit, behaviours: Sequence[Behaviour]) -> RouteAttacks:
    """Those that the plan asks for; of those that it leaves open, what the model is able to.

    One route gradient shows that: of the longest behaviour, since memory is one of the things that it may lack.

    Args:
        behaviours: Whose routes are searched.

    Raises:
        PointsmanError: Guided is asked for by name, and the model passes no gradient to its experts, or has no room.
    """
    fsour = not plan.route_attacks or "fsour" in plan.route_attacks
    if plan.route_attacks and "guided" not in plan.route_attacks:
        return RouteAttacks(fsour, None)

    def able() -> dict[str, Any]:
        try:
            return {"forwards": _forwards_of_gradient(bench.engine, behaviours)}
        except BadLogits:
            raise  # F-SOUR would fare no better
        except PointsmanError as error:
            if plan.route_attacks:
                raise
            return {"why_not": error.problem}

    found = bench.run.remember(ABLE, able)
    if "why_not" in found:
        return RouteAttacks(True, None, (f"Routes are searched with F-SOUR alone: {found['why_not']}",))
    return RouteAttacks(fsour, float(found["forwards"]))


def _forwards_of_gradient(engine: Engine, behaviours: Sequence[Behaviour]) -> float:
    """What a route gradient takes, in forwards of its row, seen on the longest."""
    guides = that_guides(engine)
    rows = [(engine.encode(b.turns), engine.encode_target(b.target)) for b in behaviours]
    prompt, target = max(rows, key=lambda row: len(row[0]) + len(row[1]))
    (gradient,) = guides.route_gradients([prompt], [target])
    return gradient.forwards
