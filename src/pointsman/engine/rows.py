"""Rows of a call: the routing of each, and which of them share what is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pointsman.engine.types import Prompt, Routing, refuse_rows
from pointsman.errors import InterventionError
from pointsman.routing.given import plain
from pointsman.routing.intervention import Intervention


def per_row(routing: Routing, rows: int) -> list[Intervention | None]:
    """The routing of every prompt: a rule that names rows means these prompts, however they are batched."""
    if routing is None:
        return [None] * rows
    rules = plain(routing)
    if isinstance(rules, Intervention):
        return _given_out(rules, rows)
    each: list[Intervention | None] = rules
    if len(each) != rows:
        raise ValueError(f"{len(each)} routings for {rows} prompts")
    refuse_rows(each)
    return each


def _given_out(routing: Intervention, rows: int) -> list[Intervention | None]:
    named = [row for rule in routing.rules for row in rule.where.rows or ()]
    if not named:
        return [routing] * rows
    if max(named) >= rows:
        raise InterventionError(f"A rule names row {max(named)} of {rows} prompts", "Count rows from 0")
    rules = [(rule.where.rows, replace(rule, where=replace(rule.where, rows=None))) for rule in routing.rules]
    return [replace(routing, rules=tuple(rule for of, rule in rules if of is None or row in of)) for row in range(rows)]


def shared_rows(
    prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], routing: Sequence[Intervention | None]
) -> dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] | None:
    """The rows of every prompt and target, if remembering each once is worth it: at least three rows share one."""
    rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        rows.setdefault((prompt.ids, target), []).append(row)
    return rows if any(routing) and len(prompts) >= 3 * len(rows) else None


def first_layer(routing: Intervention | None) -> int | None:
    """The first MoE layer that a routing touches; None if it touches none."""
    layers = [rule.layers[0] for rule in routing.rules if rule.layers] if routing else []
    return min(layers, default=None)
