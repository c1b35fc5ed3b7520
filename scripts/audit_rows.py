"""What the model did with every prompt of an audit, from its journal, as `rows.Row`: labels and numbers, no texts.

Columns are named as the journal names what was done: ``base``; ``masking/prefill/8-11`` (routers 8 and 11 masked),
``frozen/...`` (one mask for all), ``noise/both/0.3``; ``utility/...``, the same asked of benign prompts; ``fsour/0``,
``fsour/1`` (restarts) and ``fsour/best``; ``random-routes/0`` and on, ``natural-routes``; ``transfer/ID`` (the route
that was found for ID); the same of Guided as ``guided/0``, ``guided/best``, ``guided/random-routes/0`` and so on. Of a
best route also ``pairs#`` and ``log-prob#``, and ``forwards#`` and ``seconds#``, which all restarts took. One route for
all prompts: ``universal/routed``, ``universal/natural``, ``universal/random/0`` and on; ``universal/log-prob#`` is of
the discovery prompts that it was found on. ``rosais/first_token/0/layer-8#`` (the rise under the best mask on router 8;
of the discovery split), ``screen/free/first_token/layer-8#`` (its estimate). Before a name stands ``seed-1/``,
``target-1/``, ``min-gain-0.1/`` and ``placebo/`` where it was done in another way.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rows
from rows import Row

from pointsman.cli.manifest import plan_of
from pointsman.data.splits import take
from pointsman.data.types import Behaviour, Conversation
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import Taking, choose_prompts
from pointsman.jobs.audit.question import ask_again
from pointsman.jobs.audit.ranking import checked_prompts
from pointsman.judges.types import Verdict
from pointsman.runs.run import Run

Found = Mapping[str, Any]
_UNIT = re.compile(r"(?P<name>.+)/\d+")
_ROUTES = re.compile(r"(?P<search>(.*/)?(fsour|guided))/\d+/(?P<restart>base|\d+)")
_RANKING = re.compile(r"(?P<name>.*(rosais|screen)/.+)/\d+")
_UNIVERSAL = re.compile(r"universal/(start|\d+|prune)")


class _Table:
    """Rows under way: the prompts of one list and split, and their cells."""

    def __init__(self, name: str, split: str, items: Sequence[Behaviour | Conversation]) -> None:
        self.name, self.split, self.items = name, split, items
        self._cells: dict[str, dict[str, str]] = {item.id: {} for item in items}

    def put(self, column: str, id: str, cell: str) -> None:
        if id not in self._cells:
            raise ValueError(f"{column} was asked of {id}, which is not among the prompts of {self.name}")
        self._cells[id][column] = cell

    def rows(self) -> Iterator[Row]:
        for item in self.items:
            tactic = item.tactic if isinstance(item, Conversation) else ""
            yield Row(self.name, item.id, item.row_cluster, self.split, item.category, tactic, self._cells[item.id])


def rows_of(folder: Path) -> list[Row]:
    """All rows of a finished audit.

    Raises:
        ValueError: The journal speaks of prompts that the run did not ask.
    """
    with Run.open(folder, read_only=True) as run:
        plan: Audit = plan_of(run, Audit)
        suite, left_out = ask_again(run, plan, note=lambda text: None).suite, run.read_results().get("left_out", ())
        prompts = choose_prompts(suite, plan, taking_others(left_out))
        steps = {key: run.recall(key) for key in run.keys()}  # noqa: SIM118 (they are not all that it contains)
    tables = {
        "restricted": _Table("restricted", "test", prompts.test),
        "benign": _Table("benign", "test", prompts.benign),
        "borderline": _Table("borderline", "test", prompts.borderline),
        "conversations": _Table("conversations", "test", prompts.conversations),
        "discovery": _Table("restricted", "discovery", prompts.discovery),
        "benign_discovery": _Table("benign", "discovery", prompts.benign_discovery),
    }
    done = {key: value for key, value in steps.items() if isinstance(value, dict)}
    for key, value in done.items():
        _take_answers(tables, _name(key), value)
    _take_searches(tables["restricted"], done)
    _take_rankings(tables, done, plan)
    if plan.universal:
        _take_universal(tables["discovery"], done, plan.universal)
    return [row for table in tables.values() for row in table.rows()]


def taking_others(left_out: Collection[str]) -> Taking:
    """How a run took prompts that did not take these, for want of room in the model's context (`Room.take`)."""

    def taken(items: Sequence[Behaviour], n: int, seed: int) -> tuple[Behaviour, ...]:
        return tuple(item for item in take(items, len(items), seed) if item.id not in left_out)[:n]

    return taken


def _name(key: str) -> str:
    """The column of a step: its key without the number of its first row."""
    if routes := _ROUTES.fullmatch(key):
        return f"{routes['search']}/{routes['restart']}"
    if key.startswith("transfer/"):
        return key
    unit = _UNIT.fullmatch(key)
    return (unit["name"] if unit else key).replace("random-routes/every/", "random-routes/")


def _take_answers(tables: Mapping[str, _Table], name: str, value: Found) -> None:
    """Answers to single requests, and to the turns of conversations."""
    for played in value.get("played", ()):
        tables["conversations"].put(name, played["id"], rows.verdicts(played["verdicts"]))
    kind = "benign" if name.startswith("utility/") else name if name in tables else "restricted"
    for attempt in value.get("attempts", ()):
        tables[kind].put(name, attempt["id"], rows.verdict(attempt["verdict"]))


def _take_searches(table: _Table, done: Mapping[str, Found]) -> None:
    """Every restart of every behaviour, and the best of them as `RouteResult.best` has it."""
    found: dict[tuple[str, str], list[Found]] = {}
    for key, value in done.items():
        for search in value.get("searches", ()):
            name, id = _name(key), search["attempt"]["id"]
            table.put(name, id, rows.verdict(search["attempt"]["verdict"]))
            found.setdefault((f"{name.rpartition('/')[0]}/best", id), []).append(search)
    for (name, id), searches in found.items():
        best = max(searches, key=_worth)
        table.put(name, id, rows.verdict(best["attempt"]["verdict"]))
        table.put(f"{name}/pairs#", id, str(len(best["steps"])))
        table.put(f"{name}/log-prob#", id, repr(_log_prob(best)))
        forwards = round(sum(search["cost"]["rows"] for search in searches), 1)
        table.put(f"{name}/forwards#", id, str(forwards).removesuffix(".0"))
        table.put(f"{name}/seconds#", id, repr(sum(search["cost"]["seconds"] for search in searches)))


def _worth(search: Found) -> tuple[float, bool, float]:
    verdict = Verdict(**search["attempt"]["verdict"])
    return verdict.score or 0.0, verdict.any_compliance, _log_prob(search)


def _log_prob(search: Found) -> float:
    """log p(target) under the whole route."""
    steps = search["steps"]
    return float(steps[-1][3] if steps else search["before"])


def _take_rankings(tables: Mapping[str, _Table], done: Mapping[str, Found], plan: Audit) -> None:
    """Rises of every prompt and router. The journal has them in the order of the prompts, without ids.

    Beside the screen RoSais is measured on some of the prompts only.
    """
    found: dict[str, list[Sequence[float]]] = {}
    for key, value in done.items():
        if unit := _RANKING.fullmatch(key):
            found.setdefault(unit["name"], []).extend(value["scores"])
    for name, scores in found.items():
        table = tables["benign_discovery" if name.startswith("placebo/") else "discovery"]
        asked = table.items
        if plan.rank == "screen" and name.startswith("rosais/"):
            asked = [asked[n] for n in checked_prompts(plan, len(asked))]
        for item, rises in zip(asked, scores, strict=True):
            for layer, rise in enumerate(rises):
                table.put(f"{name}/layer-{layer}#", item.id, f"{rise:.8g}")


def _take_universal(table: _Table, done: Mapping[str, Found], many: int) -> None:
    """What log p(target) is of the prompts that the universal route was found on, where its search ended."""
    last = [value for key, value in done.items() if _UNIVERSAL.fullmatch(key)][-1]
    for item, total in zip(table.items[:many], last["totals"], strict=True):
        table.put("universal/log-prob#", item.id, repr(total))
