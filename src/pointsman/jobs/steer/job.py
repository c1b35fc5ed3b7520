"""What a steering run does, in the shape of `jobs.job.Work`."""

from typing import Any

from pointsman.jobs.steer.claims import conclude
from pointsman.jobs.steer.page import page, summary
from pointsman.jobs.steer.perform import perform
from pointsman.jobs.steer.question import ask, ask_again, config, local
from pointsman.jobs.steer.results import SteerResults

__all__ = ["ask", "ask_again", "conclude", "config", "local", "older", "page", "perform", "results", "summary"]

results = SteerResults


def from_steer_1(data: dict[str, Any]) -> dict[str, Any]:
    """Both jobs wrote ``pointsman.steer/1``; an evaluation tried no candidates, and said `broken` of no arm.

    The first of them knew no weight of what should stay as it is (`hold`).
    """
    job = "steer" if "candidates" in data else "evaluate"
    after = {"broken": data["broken_on_test"], **data["test"]["after"]}
    gap = [{"hold": None, **row} for row in data.get("gap", ())]
    return {**data, "job": job, "gap": gap, "test": {**data["test"], "after": after}}


older = {"pointsman.steer/1": from_steer_1}
