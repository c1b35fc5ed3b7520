"""What is kept of a run of the plan: evidence/<name>.json, without texts, and the outcome of every row beside it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import audit_rows
import recompute_audit
import recompute_steer
import rows
import steer_rows
from clean import refuse_changes
from evidence_plan import Kind, Planned

Evidence = dict[str, Any]
EVIDENCE = Path(__file__).resolve().parent.parent / "evidence"

ROWS: Mapping[Kind, Callable[[Path], list[rows.Row]]] = {
    "audit": audit_rows.rows_of, "steer": steer_rows.rows_of, "evaluate": steer_rows.rows_of,
}  # fmt: skip
"""What reads the rows of a run, by kind."""


RECOUNT: Mapping[str, Callable[..., Iterable[Any]]] = {
    "audit": recompute_audit.recount, "steer": recompute_steer.recount, "evaluate": recompute_steer.recount,
}  # fmt: skip
"""What counts the numbers of a job again from its rows."""


class NotThisCommit(Exception):
    """Results that were not made on the commit that they are to stand for."""


def keep(planned: Planned, folder: Path, evidence: Path, commit: str, minutes: float) -> None:
    """Write what the tables need of a finished run, and its rows.

    Args:
        folder: Of the run.
        evidence: Where it is kept.
        commit: That everything is made on.
        minutes: That it took.

    Raises:
        NotThisCommit: The run says that it was made on another one, or beside changes.
        ValueError: Its rows do not give its numbers again. Nothing is kept.
    """
    results: Evidence = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    made_on = results["provenance"]["commit"]
    if made_on != commit:
        raise NotThisCommit(f"made on {made_on}, and not on {commit}")
    kept = {
        "name": planned.name,
        "checkpoint": planned.model.removeprefix("testbed:"),
        "made_by": planned.said(),
        "confirms": planned.confirms,
        "minutes": {"expected": planned.minutes, "took": round(minutes, 1)},
        **{key: value for key, value in results.items() if key != "provenance"},
        "provenance": {key: value for key, value in results["provenance"].items() if key != "command"},
    }
    if planned.kind == "audit":
        kept |= {name: without_texts(results[name]) for name in ("fsour", "guided") if results.get(name)}
    if planned.kind == "steer":
        kept["candidates"] = [c for c in results["candidates"] if c["stage"] == "fine"]
    if planned.kind in ROWS:
        outcomes = ROWS[planned.kind](folder)
        counted = kept["recounted"] = recounted(kept, outcomes)
        if counted["wrong"]:
            raise ValueError(f"{counted['wrong']} of {counted['numbers']} numbers are not those that its rows give")
        rows.write(evidence / "rows" / f"{planned.name}.csv.gz", outcomes)
    write(evidence / f"{planned.name}.json", kept, indent=None if planned.kind == "dominant" else 1)


def recounted(kept: Evidence, outcomes: Sequence[rows.Row]) -> Evidence:
    """How many numbers the rows give again, and how many of them otherwise."""
    agree = [one.agrees for one in RECOUNT[kept["job"]](kept, outcomes)]
    return {"numbers": len(agree), "wrong": agree.count(False)}


def without_texts(routes: Evidence) -> Evidence:
    """The routes' section without its example and its list of behaviours, of which there stays what they took in
    forwards, how many routes reach log tau, and how many open the model for a wrong answer.
    """
    kept = {key: value for key, value in routes.items() if key not in ("behaviours", "example")}
    kept["forwards"] = spread([searched["forwards"] for searched in routes["behaviours"]])
    tau = routes["settings"]["log_tau"]
    kept["reached"] = sum(searched["log_prob_after"] >= tau for searched in routes["behaviours"])
    kept["answered_wrongly"] = sum(searched["label"] == "wrong" for searched in routes["behaviours"])
    return kept


def spread(numbers: Sequence[float]) -> Evidence:
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers)}


def made_on(evidence: Path, name: str) -> str | None:
    """The commit of what is kept of a run; None if nothing is."""
    kept = read(evidence / f"{name}.json")
    return None if kept is None else (kept.get("provenance") or {}).get("commit")


def newest(name: str) -> Evidence | None:
    """What is kept of a run; else the old evidence of this name, of the testbed before; None if there is neither."""
    return read_new(name) or older(name)


def read_new(name: str) -> Evidence | None:
    """What is kept of a run, if it was made on one commit; ends with a line that says so if not."""
    found = read(EVIDENCE / f"{name}.json")
    if found is not None:
        refuse_changes(found, name)
    return found


def older(name: str) -> Evidence | None:
    """The old evidence of this name."""
    return read(EVIDENCE / "old" / f"{name}.json")


def read(file: Path) -> Evidence | None:
    """A JSON object; None if there is no such file, or it was cut off."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write(file: Path, value: Evidence, indent: int | None = None) -> None:
    """A JSON file, whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")
    new.replace(file)
