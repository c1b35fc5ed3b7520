"""Measure what a steering moves: which experts are selected without it and under it, for the same prompt tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.types import Engine
from pointsman.jobs.steer.candidates import digest_of
from pointsman.jobs.steer.moved import GROUPS, Group, GroupMoved, Moved, SwappedAt, TokensSwapped
from pointsman.jobs.steer.outcome import Outcome
from pointsman.jobs.steer.prompts import SteerPrompts
from pointsman.jobs.steer.question import ScenarioQuestion
from pointsman.jobs.steer.traces import Reading, together, user_span
from pointsman.methods.play import Played
from pointsman.methods.steps import stream
from pointsman.routing.intervention import Intervention
from pointsman.routing.trace import LayerTrace
from pointsman.runs.bench import Bench
from pointsman.stats.rates import Mean

Sums = dict[str, list[float]]
"""By name: how many tokens, and the sum of their shares."""
PLACES = ("first third", "middle third", "last third")
MOST, LEAST = 12, 4  # words that are kept
FEWEST = 3  # times that a word stands in the scenario's prompts, if it is kept


@dataclass(frozen=True)
class _Traced:
    """A prompt whose routing is read, with the source question that it counts for."""

    reading: Reading
    source: str


def trace_moves(
    bench: Bench[ScenarioQuestion],
    prompts: SteerPrompts,
    before: Outcome,
    routing: Intervention,
    most: int,
    seed: int,
) -> Moved | None:
    """Trace prompts of every group without the routing and under it, in stored units.

    Conversations are read with the answers that the unsteered model gave, so that both readings are of the same tokens.

    Args:
        prompts: Of a split.
        before: What the unsteered model said to them.
        most: Prompts of each group, drawn by `seed` where there are more.

    Returns:
        None if no prompts are asked for, or there are none.

    Raises:
        DataError: A user message cannot be located in the chat template.
    """
    engine = bench.engine
    asked = {group: chosen for group in GROUPS if (chosen := _choose(bench, prompts, before, group, most, seed))}
    if not asked:
        return None
    found: dict[Group, list[dict[str, Any]]] = {}
    with bench.stage("moved", "What the steering moves", sum(map(len, asked.values()))) as steps:
        for group, traced in asked.items():
            key = f"moved/{digest_of(routing)}/{group}"
            found[group] = steps.units(key, engine, traced, lambda some: _compare(engine, some, routing))
    words = _texts([t.reading for traced in asked.values() for t in traced])
    by_word = {group: _sums(units, "words") for group, units in found.items()}
    by_place = {group: _sums(units, "places") for group, units in found.items()}
    most_at, least_at = _extremes(by_word.get("scenario", {}))
    return Moved(
        top_k=tuple(router.top_k for router in engine.routers),
        groups=tuple(_group(group, units, [t.source for t in asked[group]]) for group, units in found.items()),
        places=tuple(_at(place, place, by_place) for place in PLACES),
        most=tuple(_at(words[int(word)], word, by_word) for word in most_at),
        least=tuple(_at(words[int(word)], word, by_word) for word in least_at),
    )


# ---------------------------------------------------------------------- which prompts


def _choose(
    bench: Bench[ScenarioQuestion], prompts: SteerPrompts, before: Outcome, group: Group, most: int, seed: int
) -> list[_Traced]:
    """At most so many prompts of a group, in their order."""
    items: Sequence[Behaviour | Conversation] = getattr(prompts, group)
    played: Sequence[Played | None] = [None] * len(items)
    if group == "scenario" and before.objective == "defend":
        items, played = prompts.conversations, before.played
    pairs = list(zip(items, played, strict=True))
    if len(pairs) > most:
        places = stream(seed, "moved", group).choice(len(pairs), most, replace=False)
        pairs = [pairs[place] for place in sorted(places.tolist())]
    return [_traced(bench, item, one) for item, one in pairs]


def _traced(bench: Bench[ScenarioQuestion], item: Behaviour | Conversation, played: Played | None) -> _Traced:
    engine, answers = bench.engine, played.responses if played else ()
    turns = item.turns[: len(answers)] if played else item.turns
    prompt = engine.encode(turns, answers=answers[: len(turns) - 1], system=bench.question.scenario.system)
    return _Traced(Reading(item.id, prompt, user_span(prompt, engine.info.name)), item.row_cluster)


def _texts(readings: Sequence[Reading]) -> dict[int, str]:
    """The text of every token that is read, by its id."""
    return {
        reading.prompt.ids[place]: reading.prompt.tokens[place]
        for reading in readings
        for place in reading.span.tolist()
    }


# ---------------------------------------------------------------------- one unit


def _compare(engine: Engine, traced: Sequence[_Traced], routing: Intervention) -> dict[str, Any]:
    """Selections without a routing and under it, and how many of them it swaps: by prompt, by word and by place."""
    counts = {name: [np.zeros(r.experts, dtype=np.int64) for r in engine.routers] for name in ("without", "under")}
    swapped: list[float] = []
    words: Sums = {}
    places: Sums = {}
    for part in together(engine, [t.reading for t in traced]):
        prompts = [reading.prompt for reading in part]
        plain, steered = engine.trace(prompts), engine.trace(prompts, routing=routing)
        for row, reading in enumerate(part):
            shares = np.zeros(len(reading.span))  # shape: [T], of the message
            for layer, (one, other) in enumerate(zip(plain.layers, steered.layers, strict=True)):
                experts = engine.routers[layer].experts
                without, under = (_selected(side, row, reading.span, experts) for side in (one, other))
                counts["without"][layer] += without.sum(axis=0)
                counts["under"][layer] += under.sum(axis=0)
                shares += (without & ~under).sum(axis=1) / (without.sum(axis=1) * len(engine.routers))
            swapped.append(float(shares.mean()))
            for n, (place, share) in enumerate(zip(reading.span.tolist(), shares.tolist(), strict=True)):
                _add(words, str(reading.prompt.ids[place]), 1, share)
                _add(places, PLACES[3 * n // len(shares)], 1, share)
    return {
        **{name: [row.tolist() for row in rows] for name, rows in counts.items()},
        "swapped": swapped, "words": words, "places": places,
    }  # fmt: skip


def _selected(layer: LayerTrace, row: int, span: np.ndarray, experts: int) -> np.ndarray:
    """Which experts a layer selects at some tokens of a row. Shape: [T, E], bool."""
    here = layer.select(row=row)
    chosen = here.experts[np.isin(here.position, span)]  # shape: [T, k]
    found = np.zeros((len(chosen), experts), dtype=bool)
    np.put_along_axis(found, chosen.astype(np.int64), True, axis=1)
    return found


def _add(sums: Sums, name: str, tokens: int, share: float) -> None:
    entry = sums.setdefault(name, [0, 0.0])
    entry[0] += tokens
    entry[1] += share


# ---------------------------------------------------------------------- all units


def _sums(units: Sequence[Mapping[str, Any]], kind: str) -> dict[str, TokensSwapped]:
    total: Sums = {}
    for unit in units:
        for name, (tokens, share) in unit[kind].items():
            _add(total, name, tokens, share)
    return {name: TokensSwapped(int(n), share / n) for name, (n, share) in total.items()}


def _group(group: Group, units: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> GroupMoved:
    without, under = (
        [np.sum(layers, axis=0) for layers in zip(*(unit[name] for unit in units), strict=True)]
        for name in ("without", "under")
    )
    return GroupMoved(
        group=group,
        tokens=sum(int(n) for unit in units for n, _ in unit["places"].values()),
        swapped=Mean.of([share for unit in units for share in unit["swapped"]], sources),
        without=tuple(tuple(row.tolist()) for row in without),
        under=tuple(tuple(row.tolist()) for row in under),
    )


def _extremes(words: Mapping[str, TokensSwapped]) -> tuple[list[str], list[str]]:
    """The words at which most, and at which fewest experts are swapped, of those that are frequent enough to tell."""
    told = {word: (found.share or 0.0, found.n) for word, found in words.items() if found.n >= FEWEST}
    order = sorted(told, key=lambda word: (-told[word][0], -told[word][1], int(word)))
    return order[:MOST], order[MOST:][-LEAST:]


def _at(at: str, name: str, by_group: Mapping[Group, Mapping[str, TokensSwapped]]) -> SwappedAt:
    return SwappedAt(at, {group: found.get(name, TokensSwapped(0, None)) for group, found in by_group.items()})
