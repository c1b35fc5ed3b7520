"""Scoring many rows of few prompts: what rows of one prompt share is computed once. METHODS section 3."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pointsman.engine.batching import in_batches
from pointsman.engine.resume import Resume
from pointsman.engine.scorer import Targets, read_scores
from pointsman.engine.types import EngineInfo, Prompt, Score
from pointsman.routing.control import Controller
from pointsman.routing.intervention import Intervention

SharedRows = dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]]
"""The numbers of the rows that have the same prompt and target, by the ids of these."""


class SharedScoring:
    """One full forward of every prompt and target; each row again from the first layer that its routing touches.

    Args:
        resume, controller: Attached.
        rows_that_fit: Rows of a number of tokens that one forward may hold.
        count: Counts forwards, tokens, the time since a start, and decoder layers.
        layers: Decoder layers of the model (D).
        device: Of ids.
        info: Of the engine.
    """

    def __init__(
        self,
        resume: Resume,
        controller: Controller,
        *,
        rows_that_fit: Callable[[int], int],
        count: Callable[[int, int, float, int], None],
        layers: int,
        device: Any,
        info: EngineInfo,
    ) -> None:
        self._resume, self._controller = resume, controller
        self._rows_that_fit, self._count, self._device = rows_that_fit, count, device
        self._layers, self._name, self._opening = layers, info.name, info.opening

    def scores(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        routing: list[Intervention | None],
        first_tokens: Sequence[int] | None,
        shared: SharedRows,
    ) -> list[Score]:
        """As `Engine.score`, of rows of which these share a prompt and target."""
        results: dict[int, Score] = {}
        kinds = list(shared.values())  # rows of each prompt and target
        kinds.sort(key=lambda rows: (-len(prompts[rows[0]]), rows[0]))

        def group(part: Sequence[list[int]]) -> list[None]:
            asked = Targets([prompts[r[0]] for r in part], [targets[r[0]] for r in part], self._device, self._opening)
            self._score_group(asked, part, routing, targets, first_tokens, results)
            return [None] * len(part)

        longest = max(len(prompts[rows[0]]) + len(targets[rows[0]]) for rows in kinds)
        list(in_batches(kinds, self._rows_that_fit(longest), group))
        return [results[row] for row in range(len(prompts))]

    def _score_group(
        self,
        asked: Targets,
        part: Sequence[list[int]],
        routing: list[Intervention | None],
        targets: Sequence[tuple[int, ...]],
        first_tokens: Sequence[int] | None,
        results: dict[int, Score],
    ) -> None:
        """The results of some kinds of rows, of which the full forwards fit into memory together."""
        started = time.perf_counter()
        keep, end = asked.keep(range(len(part))), max(asked.length)
        self._controller.set(None)
        self._controller.recorder = None
        memory, logits = self._resume.remember(asked.ids, keep)
        begins = [prompt - 1 - keep.start for prompt in asked.prompt]
        wanted = [targets[rows[0]] for rows in part]
        plain = read_scores(logits, begins, wanted, first_tokens, self._name, self._opening)
        self._count(1, asked.ids.numel(), started, self._layers)
        by_layer: dict[int, list[tuple[int, int]]] = {}  # first decoder layer -> (place in the memory, row)
        for place, same in enumerate(part):
            for row in same:
                first = _first_layer(routing[row])
                if first is None:
                    results[row] = plain[place]
                else:
                    by_layer.setdefault(self._controller.routers[first].decoder_layer, []).append((place, row))

        for layer, rows in sorted(by_layer.items()):

            def batch(some: Sequence[tuple[int, int]], layer: int = layer) -> list[Score]:
                began = time.perf_counter()
                places = [place for place, _ in some]
                self._controller.set(
                    [routing[row] for _, row in some], prompt_lengths=[asked.prompt[place] for place in places]
                )
                of_row = torch.tensor(places, device=asked.ids.device)
                logits, _ = self._resume.run(memory, of_row, layer, 0, end, keep)
                scores = read_scores(
                    logits, [begins[p] for p in places], [wanted[p] for p in places], first_tokens, self._name,
                    self._opening,
                )  # fmt: skip
                self._count(1, len(some) * end, began, self._layers - layer)
                return scores

            for (_, row), score in zip(rows, in_batches(rows, self._rows_that_fit(end), batch), strict=True):
                results[row] = score


def shared_rows(
    prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], routing: Sequence[Intervention | None]
) -> SharedRows | None:
    """The rows of every prompt and target, if remembering each once is worth it: at least three rows share one."""
    rows: SharedRows = {}
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        rows.setdefault((prompt.ids, target), []).append(row)
    return rows if any(routing) and len(prompts) >= 3 * len(rows) else None


def _first_layer(routing: Intervention | None) -> int | None:
    """The first MoE layer that a routing touches; None if it touches none."""
    layers = [rule.layers[0] for rule in routing.rules if rule.layers] if routing else []
    return min(layers, default=None)
