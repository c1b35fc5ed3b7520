"""Rows of a call: the routing of each, which of them are refused, and how they stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pointsman.engine.types import EngineInfo, Prompt, Routing, refuse_no_prompts, refuse_rows
from pointsman.errors import InterventionError, PromptTooLong, UsageError
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


def refuse_targets(prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], info: EngineInfo) -> None:
    """Refuse what is no prompt with its target, or has no room in the context of a model."""
    refuse_no_prompts(prompts)
    if len(targets) != len(prompts):
        raise UsageError(f"There are {len(targets)} targets for {len(prompts)} prompts", "Give one for each")
    for number, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        if isinstance(target, str):
            raise UsageError(f"The target of prompt {number} is text", "Give engine.encode_target(text)")
        if not target:
            raise UsageError(f"The target of prompt {number} is empty", "Give a target of at least one token")
        refuse_length(len(prompt) + len(target), info)


def refuse_length(tokens: int, info: EngineInfo) -> None:
    """Refuse a row of so many tokens, where the context of a model is shorter."""
    if tokens > info.context:
        raise PromptTooLong(
            f"A prompt needs {tokens} tokens with its answer, and {info.name} has a context of {info.context}",
            "Shorten or remove it (the behaviours file is checked before anything is run)",
        )


def padded_left(rows: Sequence[tuple[int, ...]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Ids and attention mask. Shapes: [B, T] each."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for n, row in enumerate(rows):
        ids[n, longest - len(row) :] = torch.tensor(row)
        mask[n, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)
