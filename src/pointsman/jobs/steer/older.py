"""Results of steering runs and evaluations as earlier versions wrote them."""

from __future__ import annotations

from typing import Any


def from_steer_1(data: dict[str, Any]) -> dict[str, Any]:
    """Both jobs wrote ``pointsman.steer/1``; an evaluation tried no candidates, and said `broken` of no arm.

    The first of them knew no weight of what should stay as it is (`hold`).
    """
    job = "steer" if "candidates" in data else "evaluate"
    after = {"broken": data["broken_on_test"], **data["test"]["after"]}
    gap = [{"hold": None, **row} for row in data.get("gap", ())]
    return {**data, "job": job, "gap": gap, "test": {**data["test"], "after": after}}
