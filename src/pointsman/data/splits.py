"""Splits by source question, so that nothing is ranked or chosen on the prompts it is then scored on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TypeVar, get_args

from pointsman.data.types import Behaviour, Conversation, Split
from pointsman.errors import DataError, UsageError

Item = TypeVar("Item", Behaviour, Conversation)

SPLITS: tuple[Split, ...] = get_args(Split)
DEFAULT_FRACTIONS = (0.3, 0.2, 0.5)
"""Shares of the sources: discovery, validation, test. Test reports, so it is the largest."""


def cluster(item: Behaviour | Conversation) -> str:
    """The source question of an item: rows that share it are one cluster. Its id if it names none."""
    return item.source or item.id


def note_on_clusters(known: Sequence[Behaviour | Conversation], tested: Sequence[Behaviour | Conversation]) -> str:
    """What to say where prompts name a cluster that is in the split that was learnt from, too; empty if none does.

    Splits are by source question; `cluster_by` says what a claim generalises over, which may be larger.
    """
    wide = {item.row_cluster for item in tested if item.row_cluster != cluster(item)}
    shared = wide & {item.row_cluster for item in known}
    if not shared:
        return ""
    return (
        f"{len(shared)} of {len(wide)} clusters of the test prompts (cluster_by) are among the discovery prompts too: "
        "figures are about new questions of known clusters. Name them as the source questions (--column source=...) "
        "to claim more"
    )


def assign_splits(
    behaviours: Sequence[Item], seed: int, fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
) -> tuple[Item, ...]:
    """Give every item without a split the split of its source.

    The split of a source is a pure function of (seed, source): it does not change with the order of the file,
    nor with what else is in it, so behaviours and conversations of one question agree, and a longer file
    moves nothing from discovery to test. The one exception: where a split would stay empty, the source that
    is nearest to it moves there from the largest split.

    Args:
        behaviours: Items of any split; assigned ones keep theirs, and their source follows them.
        seed: Seed of the assignment.
        fractions: Expected shares of the sources for discovery, validation and test; they sum to 1. A split
            with share 0 stays empty.

    Raises:
        UsageError: The fractions are not shares.
        DataError: There are too few sources, or one source is in two splits already.
    """
    _check_fractions(fractions)
    given = _given(behaviours)
    free = sorted({cluster(b) for b in behaviours} - given.keys())
    chosen = dict(given)
    for source in free:
        chosen[source] = _draw(seed, source, fractions)
    if free:
        _fill_empty(chosen, free, seed, [s for s, f in zip(SPLITS, fractions, strict=True) if f > 0])
    return tuple(replace(b, split=b.split or chosen[cluster(b)]) for b in behaviours)


def assign_balanced(items: Sequence[Item], seed: int, discovery: float) -> tuple[Item, ...]:
    """Give every item without a split discovery or test by its source, so that categories are spread evenly.

    Of all free sources, and of those of every category, the share in discovery is as asked to within one source,
    whatever the seed. The order of the file does not matter; what else is in the file does.

    Args:
        items: Items of any split; assigned ones keep theirs, and their source follows them.
        seed: Seed of the assignment.
        discovery: Share of the sources that goes there, between 0 and 1; the others are tested.

    Raises:
        DataError: There are too few sources, or one source is in two splits already.
    """
    chosen = _given(items)
    category: dict[str, str] = {}
    for item in items:
        category[cluster(item)] = min(category.get(cluster(item), item.category), item.category)

    def order(source: str) -> tuple[bytes, str, bytes]:
        own = category[source]
        return _hash(seed, "category", own), own, _hash(seed, "balanced", source)

    free = sorted(category.keys() - chosen.keys(), key=order)
    for n, source in enumerate(free):
        more = math.floor((n + 1) * discovery + 0.5) > math.floor(n * discovery + 0.5)
        chosen[source] = "discovery" if more else "test"
    for split in ("discovery", "test"):
        if free and split not in chosen.values():
            raise _too_few(len(chosen), 2, split)
    return tuple(replace(item, split=item.split or chosen[cluster(item)]) for item in items)


def by_split(items: Iterable[Item], split: Split) -> tuple[Item, ...]:
    """The items of one split, in their order."""
    return tuple(item for item in items if item.split == split)


def take(items: Sequence[Item], n: int, seed: int) -> tuple[Item, ...]:
    """A seeded subset of at most `n` items that covers as many sources as it can.

    Sources take turns, in an order drawn from the seed. The subset does not depend on the order of `items`,
    and a smaller one is a prefix of a larger one.

    Raises:
        UsageError: `n` is negative.
    """
    if n < 0:
        raise UsageError(f"Cannot take {n} items", "Give a limit of 0 or more")
    turns: Counter[str] = Counter()
    order: list[tuple[int, Item]] = []
    for item in sorted(items, key=lambda item: (_hash(seed, "item", item.id), item.id)):
        source = cluster(item)
        order.append((turns[source], item))
        turns[source] += 1
    return tuple(item for _, item in sorted(order, key=lambda entry: entry[0])[:n])


def spoken(prompt: str) -> str:
    """What two copies of a prompt have in common: everything but case and spacing."""
    return " ".join(prompt.split()).casefold()


def join_sources(rows: Sequence[tuple[str, str]]) -> list[str]:
    """The sources of rows (source, prompt) when rows with the same prompt are one cluster.

    A joined cluster has the least of its names, whatever the order of the rows.
    """
    parent: dict[str, str] = {}

    def root(source: str) -> str:
        while (above := parent.setdefault(source, source)) != source:
            parent[source] = parent[above]
            source = above
        return source

    first: dict[str, str] = {}
    for source, prompt in rows:
        low, high = sorted((root(source), root(first.setdefault(spoken(prompt), source))))
        parent[high] = low
    return [root(source) for source, _ in rows]


def split_together(
    parts: Mapping[str, Sequence[Behaviour | Conversation]],
    seed: int,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    *,
    least: int = 2,
) -> dict[str, Split]:
    """The split of every source of several lists, so that each list has enough sources in each split.

    Sources are drawn as in `assign_splits`: items of one source agree, in whatever list they are. Where a list
    would have fewer than `least` sources in a split, sources move there from the split where that list has most,
    as long as no other list is left with too few.

    Args:
        parts: Lists by the name that messages call them; empty ones are passed over.
        seed: Seed of the assignment.
        fractions: As in `assign_splits`; each above 0.
        least: Sources that every list needs in every split.

    Returns:
        The split by source (`cluster`).

    Raises:
        UsageError: The fractions are not shares.
        DataError: A list has too few sources, or one source is in two splits already.
    """
    _check_fractions(fractions)
    given = _given([item for items in parts.values() for item in items])
    sources = {name: {cluster(item) for item in items} for name, items in parts.items() if items}
    chosen = {s: given.get(s) or _draw(seed, s, fractions) for s in sorted(set().union(*sources.values()))}
    for name, own in sources.items():
        for split in SPLITS:
            while (there := sum(chosen[s] == split for s in own)) < least:
                source = _movable(own, sources, chosen, given, seed, split, least)
                if source is None:
                    raise DataError(
                        f"{name}: {_questions(there)} in the {split} split ({len(own)} in all), and {least} are needed",
                        f"Give more source questions there: {least} for each split, {least * len(SPLITS)} in all",
                    )
                chosen[source] = split
    return chosen


def _questions(number: int) -> str:
    return f"{number} source question{'' if number == 1 else 's'}"


def _movable(
    own: set[str],
    sources: Mapping[str, set[str]],
    chosen: Mapping[str, Split],
    given: Mapping[str, Split],
    seed: int,
    split: Split,
    least: int,
) -> str | None:
    """A source of `own` that can move to `split` and leave no list with fewer than `least` where it was."""
    sizes = {name: Counter(chosen[s] for s in each) for name, each in sources.items()}

    def spare(source: str) -> bool:
        home = chosen[source]
        if home == split or source in given:
            return False
        return all(sizes[name][home] > least for name, each in sources.items() if source in each)

    here = Counter(chosen[s] for s in own)
    able = [s for s in own if spare(s)]
    return min(able, key=lambda s: (-here[chosen[s]], _hash(seed, split, s)), default=None)


def _given(behaviours: Sequence[Behaviour | Conversation]) -> dict[str, Split]:
    """The splits that sources have already."""
    given: dict[str, Split] = {}
    for behaviour in behaviours:
        if behaviour.split is None:
            continue
        source = cluster(behaviour)
        if given.setdefault(source, behaviour.split) != behaviour.split:
            raise DataError(
                f"The source {source!r} is both in the {given[source]} and in the {behaviour.split} split",
                "Put all rows of one source question into one split",
            )
    return given


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    if len(fractions) != len(SPLITS) or not all(0 <= f <= 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(f"The split fractions {fractions} are not three shares of one", "Give three that sum to 1")


def _draw(seed: int, source: str, fractions: tuple[float, float, float]) -> Split:
    """The split of a source by its hash, read as a number in [0, 1)."""
    u = int.from_bytes(_hash(seed, "split", source)[:8], "big") / 2**64
    edge = 0.0
    for split, fraction in zip(SPLITS, fractions, strict=True):
        edge += fraction
        if u < edge:
            return split
    return [s for s, f in zip(SPLITS, fractions, strict=True) if f > 0][-1]


def _fill_empty(chosen: dict[str, Split], free: Sequence[str], seed: int, wanted: Sequence[Split]) -> None:
    """Move a free source into every wanted split that has none; in place."""
    for split in wanted:
        sizes = Counter(chosen.values())
        if sizes[split]:
            continue
        movable = [s for s in free if sizes[chosen[s]] > 1 or chosen[s] not in wanted]
        if not movable:
            raise _too_few(len(chosen), len(wanted), split)
        nearest = min(movable, key=lambda s: (-sizes[chosen[s]], SPLITS.index(chosen[s]), _hash(seed, split, s)))
        chosen[nearest] = split


def _too_few(sources: int, splits: int, empty: str) -> DataError:
    return DataError(
        f"Too few source questions ({sources}) for {splits} splits: {empty} stays empty",
        f"Give at least {splits} behaviours with different source questions",
    )


def _hash(seed: int, purpose: str, name: str) -> bytes:
    """32 bytes that depend on nothing but the arguments."""
    return sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()
