"""The masking stage of the audit: the most important routers masked, beside its controls."""

from __future__ import annotations

from typing import Any

import numpy as np

from pointsman.experiment.findings import masking_entry
from pointsman.experiment.work import Asked, Work
from pointsman.methods.attempts import Attempt
from pointsman.methods.masking import Masking, MaskingResult
from pointsman.methods.rosais import RoSaisResult
from pointsman.methods.steps import stream
from pointsman.routing.intervention import Phase


def mask(work: Work, asked: Asked, ranked: RoSaisResult, base: list[Attempt]) -> dict[str, Any]:
    """Mask the top 1, 2, ... routers, random ones outside them, and the lowest.

    Returns:
        The section ``masking``.
    """
    audit, behaviours = work.audit, asked.test
    layers = len(work.engine.routers)
    most = min(audit.routers or max(1, min(5, layers // 4)), layers)
    order = ranked.ranking
    entries = [masking_entry(MaskingResult((), tuple(base), (), ()), audit.phases[0])]
    plan: list[tuple[Phase, int, str, tuple[int, ...]]] = []
    for number in range(1, most + 1):
        for phase in audit.phases:
            plan.append((phase, number, "top", order[:number]))
        first, rest = audit.phases[0], order[number:]
        if len(rest) >= number:
            plan.append((first, number, "lowest", order[-number:]))
            for draw in range(audit.random_draws):
                rng = stream(audit.seed, "random routers", number, draw)
                chosen = rng.choice(np.array(rest), size=number, replace=False)
                plan.append((first, number, "random", tuple(sorted(int(c) for c in chosen))))
    done: dict[tuple[Phase, int, str], list[MaskingResult]] = {}
    with work.stage("masking", "Masking", len(plan) * len(behaviours)) as steps:
        for phase, number, role, chosen_layers in plan:
            method = Masking(audit.samples, phase, max_new_tokens=work.answer_tokens, seed=audit.seed)
            result = method.search(work.engine, behaviours, work.judge, chosen_layers, steps=steps)
            done.setdefault((phase, number, role), []).append(result)
    for number in range(1, most + 1):
        for phase in audit.phases:
            top = done[phase, number, "top"][0]
            random, lowest = done.get((phase, number, "random"), []), done.get((phase, number, "lowest"), [])
            entries.append(masking_entry(top, phase, random, lowest[0] if lowest else None, seed=audit.seed))
            work.note(f"masking-{number}-{phase}", behaviours, top.attempts)
    return {"masking": entries}
