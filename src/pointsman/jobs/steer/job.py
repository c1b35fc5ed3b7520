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
    lists = {name: [_named(row) for row in data.get(name) or ()] or data.get(name) for name in ("candidates", "seeds")}
    named = {name: rows for name, rows in lists.items() if name in data} | {"chosen": _named(data["chosen"])}
    return {**data, "job": job, "gap": gap, "test": {**data["test"], "after": after}, **named}


def _named(mask: dict[str, Any]) -> dict[str, Any]:
    """A mask by its own method: what was learnt through the model was filed under MASCing.

    Of pins, n+ and n- were not kept beside their sum.
    """
    mask = {**mask, "id": mask["id"].removeprefix("mascing/") if "/through_model/" in mask["id"] else mask["id"]}
    if mask.get("refinement") == "through_model":
        mask["method"] = "through_model"
    if mask.get("pinned"):
        n = mask["entries"] // (2 if mask["pinned"] == "both" else 1)
        mask |= {"on": n * (mask["pinned"] != "off"), "off": n * (mask["pinned"] != "on")}
    return mask


older = {"pointsman.steer/1": from_steer_1}
