"""The route stage of the audit: F-SOUR, its controls, and where its routes go."""

from __future__ import annotations

from typing import Any

from pointsman.experiment.findings import fsour_section
from pointsman.experiment.work import Asked, Work
from pointsman.methods.fsour import FSour


def search(work: Work, asked: Asked) -> dict[str, Any]:
    """Search unsafe routes.

    Returns:
        The section ``fsour``.
    """
    audit = work.audit
    method = FSour(
        candidates=audit.candidates, restarts=audit.restarts, min_gain=audit.min_gain,
        max_new_tokens=work.answer_tokens, together=audit.together, seed=audit.seed,
    )  # fmt: skip
    chosen = asked.test[: audit.searches]
    with work.stage("fsour", "F-SOUR", len(chosen)) as steps:
        searched = method.search(work.engine, chosen, work.judge, steps=steps)
    work.note("fsour", chosen, [r.best.attempt for r in searched])
    return {"fsour": fsour_section(searched, work.engine, method, {b.id: b for b in chosen})}
