"""Behaviour files: CSV, JSONL or a JSON list, in the schemas of the field's public data sets.

Columns are found by name, whatever their case:

| data set | columns read |
|---|---|
| JailbreakBench | `Index`, `Goal`, `Target`, `Category` |
| AdvBench | `goal`, `target`, and `Category` where there is one |
| HarmBench | `BehaviorID`, `Behavior`, `SemanticCategory`, and a `target` that you add |
| StrongREJECT | `forbidden_prompt`, `category`, and a `target` that you add |
| XSTest | `id`, `prompt`, `type`, `label`: for benign and borderline files only |

Any of them may have a column `targets`: other beginnings of an answer that gives in, such as one that begins with
content instead of "Sure". A cell holds one text, or several as a JSON list: ``["First, take", "Step 1:"]``.

Another cell is text and nothing else: markup and formulas in it mean nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pointsman.data.records import Records, read_records, refuse_missing, text_of, texts_of
from pointsman.data.splits import join_sources, spoken
from pointsman.data.types import Behaviour, Suite
from pointsman.errors import DataError

GOAL_COLUMNS = ("goal", "forbidden_prompt", "prompt", "behavior", "behaviour")
TARGET_COLUMNS = ("target",)
OTHER_TARGETS_COLUMNS = ("targets",)
CATEGORY_COLUMNS = ("category", "semanticcategory", "semantic_category", "type")
ID_COLUMNS = ("id", "behaviorid", "behavior_id", "index")
SOURCE_COLUMNS = ("source_question", "cluster")
"""JailbreakBench's `Source` is not among them: it names the data set of a row, not its question."""


def load_behaviours(path: Path, *, target_optional: bool = False) -> tuple[Behaviour, ...]:
    """Read a behaviour file.

    Rows without an id column are called ``row-1``, ``row-2`` ... in file order. The cluster of a row
    (`source`) is its `source_question` or `cluster` column, else its id; rows with the same prompt are one
    cluster. Space around a cell is dropped.

    Args:
        path: A ``.csv``, ``.jsonl`` or ``.json`` (list of objects) file in UTF-8.
        target_optional: For benign and borderline files, where nobody attacks: `target` may be missing or
            empty, and the unsafe contrasts of an XSTest file (`label` ``unsafe``) are left out, since
            refusing them is right.

    Raises:
        DataError: The file cannot be used; the message says where and what to do.
    """
    return _one_cluster_per_prompt(read_behaviours(path, targets=not target_optional, harmless=target_optional).rows)


def load_suite(path: Path, *, benign: Path | None = None, borderline: Path | None = None) -> Suite:
    """Read what an audit asks: restricted behaviours, and benign and borderline requests if there are any.

    Ids of the benign and borderline files get the prefix ``benign:`` and ``borderline:``, so that files which
    number their rows alike (JailbreakBench does) can be used together. What was left out or merged is said in
    `notes`.

    Raises:
        DataError: One of the files cannot be used, or a harmless request is also a restricted one.
    """
    files = {"behaviors": path, "benign": benign, "borderline": borderline}
    given = {name: file for name, file in files.items() if file is not None}
    refuse_missing(given)
    restricted = read_behaviours(path)
    harmless = {
        name: read_behaviours(file, targets=False, harmless=True, prefix=f"{name}:")
        for name, file in given.items()
        if name != "behaviors"
    }
    parts = {"restricted": restricted, **harmless}
    everything = [b for part in parts.values() for b in part.rows]
    notes = notes_on(parts, [b.goal for b in everything])
    merged = iter(_one_cluster_per_prompt(everything))
    rows = {name: tuple(next(merged) for _ in part.rows) for name, part in parts.items()}
    suite = Suite(
        name=path.name,
        restricted=rows["restricted"],
        benign=rows.get("benign", ()),
        borderline=rows.get("borderline", ()),
        notes=notes,
    )
    refuse_shared(suite, {"restricted": f"{path}", **{name: f"{file}" for name, file in given.items()}})
    return suite


def refuse_shared(suite: Suite, labels: Mapping[str, str]) -> None:
    """Raise if a harmless request is also one that must be refused, or that a scenario is about.

    Args:
        suite: What is asked.
        labels: What messages call its lists.
    """
    for name in ("benign", "borderline"):
        said = {spoken(b.goal): b for b in getattr(suite, name)}
        for other in ("restricted", "scenario"):
            both = [(said[spoken(b.goal)], b) for b in getattr(suite, other) if spoken(b.goal) in said]
            if both:
                harmless, restricted = both[0]
                more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
                raise DataError(
                    f"{harmless.id} of {labels[name]} is also {restricted.id} of {labels[other]}{more}",
                    f"Keep a request in one of them: {name} requests are those that shall go on being answered",
                )


@dataclass(frozen=True)
class BehaviourFile:
    """What one file holds, before its clusters are joined with those of other files.

    Attributes:
        rows: Its behaviours.
        left_out: How many unsafe contrasts were left out.
    """

    rows: tuple[Behaviour, ...]
    left_out: int


def read_behaviours(path: Path, *, targets: bool = True, harmless: bool = False, prefix: str = "") -> BehaviourFile:
    """Parse, check and name the rows of one file.

    Args:
        path: As for `load_behaviours`.
        targets: Whether every row must have a target.
        harmless: Leave out the unsafe contrasts of an XSTest file.
        prefix: Goes before ids, also where they are sources.

    Raises:
        DataError: The file cannot be used.
    """
    records = read_records(path, noun="behaviour", example='{"goal": ..., "target": ...}')
    goal, target = records.column(GOAL_COLUMNS), records.column(TARGET_COLUMNS)
    _require(records, goal, target, targets)
    assert goal is not None
    ids = records.column(ID_COLUMNS)
    category, source = records.column(CATEGORY_COLUMNS), records.column(SOURCE_COLUMNS)
    others = records.column(OTHER_TARGETS_COLUMNS)

    behaviours: list[Behaviour] = []
    seen: dict[str, str] = {}
    left_out = 0
    for number, row in enumerate(records.rows, start=1):
        if harmless and _is_unsafe_contrast(row.cells):
            left_out += 1
            continue
        name = text_of(path, row, ids, required=True) if ids else f"row-{number}"
        if name in seen:
            raise DataError(
                f"{path} uses the id {name!r} twice ({seen[name]} and {row.place})",
                "Give every row an id of its own",
            )
        seen[name] = row.place
        aim = text_of(path, row, target, required=targets)
        behaviours.append(
            Behaviour(
                id=prefix + name,
                goal=text_of(path, row, goal, required=True),
                target=aim,
                category=text_of(path, row, category),
                source=text_of(path, row, source) or prefix + name,
                targets=tuple(t for t in texts_of(path, row, others) if t != aim),
            )
        )
    if not behaviours:
        raise DataError(
            f"{path} holds only unsafe prompts",
            "Give benign requests here; attacks belong to the restricted behaviours",
        )
    return BehaviourFile(tuple(behaviours), left_out)


def notes_on(parts: Mapping[str, BehaviourFile], prompts: Sequence[str]) -> tuple[str, ...]:
    """What was left out of the files, by name, and how many of all `prompts` are repeated."""
    notes = [
        f"{part.left_out} unsafe contrast rows of the {name} file are left out: refusing them is right"
        for name, part in parts.items()
        if part.left_out
    ]
    repeated = len(prompts) - len({spoken(prompt) for prompt in prompts})
    if repeated:
        notes.append(f"{repeated} rows repeat the prompt of another row: they are kept, as one cluster")
    return tuple(notes)


def _require(records: Records, goal: str | None, target: str | None, targets: bool) -> None:
    """Raise unless the columns that are needed are there."""
    missing = [] if goal else [f"goal (or {', '.join(GOAL_COLUMNS[1:-1])})"]
    if target is None and targets:
        missing.append("target")
    if not missing:
        return
    why = " with the start of an affirmative answer, for example 'Sure, here is how to'" if not target else ""
    what = "target" if goal else "goal"
    raise DataError(
        f"{records.path} has no column {' and no column '.join(missing)}; found: {records.found()}",
        f"Add a column {what}{why if goal else ' with the request'}",
    )


def _is_unsafe_contrast(cells: Mapping[str, Any]) -> bool:
    """A row of XSTest that a model should refuse: `label` says so, or, in its first version, `type`."""
    label = cells.get("label")
    if label is not None:
        return str(label).strip().lower() == "unsafe"
    return "prompt" in cells and str(cells.get("type") or "").strip().lower().startswith("contrast_")


def _one_cluster_per_prompt(behaviours: Sequence[Behaviour]) -> tuple[Behaviour, ...]:
    """Join the clusters of rows with the same prompt. A joined cluster has the least of its names."""
    sources = join_sources([(b.source, b.goal) for b in behaviours])
    return tuple(replace(b, source=source) for b, source in zip(behaviours, sources, strict=True))
