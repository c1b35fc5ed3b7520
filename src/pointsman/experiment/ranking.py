"""The ranking stage of the audit: RoSais on the discovery split, and how far it can be believed."""

from __future__ import annotations

from typing import Any

from pointsman.experiment.findings import rosais_section
from pointsman.experiment.work import Asked, Work
from pointsman.methods.rosais import RoSais, RoSaisResult


def rank(work: Work, asked: Asked) -> tuple[RoSaisResult, dict[str, Any]]:
    """Rank the routers.

    Returns:
        The scores that later stages rank by, and the sections ``rosais`` and ``rosais_settings``.
    """
    method = RoSais(samples=work.audit.samples, seed=work.audit.seed)
    with work.stage("rosais", "RoSais", len(asked.discovery)) as steps:
        ranked = method.rank(work.engine, asked.discovery, steps=steps)
    return ranked, rosais_section(ranked, method, work.engine)
