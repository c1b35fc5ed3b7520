"""Splits by source: no leak between them, no dependence on the order of a file."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.data.splits import SPLITS, assign_balanced, assign_splits, by_split, cluster, take
from pointsman.data.types import Behaviour, Conversation
from pointsman.errors import DataError, UsageError


def rows(sources: int, each: int = 1) -> list[Behaviour]:
    return [Behaviour(f"{s}-{i}", "g", "t", source=f"q{s}") for s in range(sources) for i in range(each)]


def by_id(items: tuple[Behaviour, ...]) -> dict[str, str | None]:
    return {b.id: b.split for b in items}


@settings(deadline=None)
@given(sources=st.integers(3, 30), each=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_sources_stay_whole_and_no_split_is_empty(sources: int, each: int, seed: int) -> None:
    behaviours = rows(sources, each)
    out = assign_splits(behaviours, seed)
    assert [b.id for b in out] == [b.id for b in behaviours]
    for source in {b.source for b in out}:
        assert len({b.split for b in out if b.source == source}) == 1
    assert {b.split for b in out} == set(SPLITS)
    shuffled = behaviours.copy()
    random.Random(seed).shuffle(shuffled)
    assert by_id(assign_splits(shuffled, seed)) == by_id(out)


def test_more_rows_move_nothing_and_fractions_are_met() -> None:
    small, large = by_id(assign_splits(rows(200), 1)), by_id(assign_splits(rows(2000), 1))
    assert all(large[name] == split for name, split in small.items())
    counts = Counter(large.values())
    for split, share in zip(SPLITS, (0.3, 0.2, 0.5), strict=True):
        assert abs(counts[split] / 2000 - share) < 0.04
    assert by_id(assign_splits(rows(200), 2)) != small


def test_known_assignment() -> None:
    """Pinned: a change here silently moves test prompts into discovery for everybody."""
    out = assign_splits(rows(8), 0)
    assert "".join((b.split or "?")[0] for b in out) == PINNED


PINNED = "dttvdtvt"


def test_conversations_follow_behaviours() -> None:
    talks = [Conversation(f"c{i}", ("a", "b"), "g", "t", source=f"q{i}") for i in range(50)]
    splits = {b.source: b.split for b in assign_splits(rows(50), 3)}
    assert all(splits[c.source] == c.split for c in assign_splits(talks, 3))


def test_given_splits_are_kept_and_lead_their_source() -> None:
    behaviours = rows(10, 2)
    behaviours[0] = replace(behaviours[0], split="validation")
    out = assign_splits(behaviours, 0)
    assert out[0].split == out[1].split == "validation"
    done = tuple(replace(b, split="test") for b in behaviours)
    assert assign_splits(done, 0) == done, "a file that is split already is left alone"


def test_a_source_in_two_splits_is_a_leak() -> None:
    a, b = rows(1, 2)
    with pytest.raises(DataError, match="'q0' is both in the discovery and in the test"):
        assign_splits([replace(a, split="discovery"), replace(b, split="test"), *rows(9)[1:]], 0)


@pytest.mark.parametrize("sources", [1, 2])
def test_too_few_sources(sources: int) -> None:
    with pytest.raises(DataError, match=rf"Too few source questions \({sources}\) for 3 splits"):
        assign_splits(rows(sources, 10), 0)


def test_fractions() -> None:
    assert {b.split for b in assign_splits(rows(1, 5), 0, (0.0, 0.0, 1.0))} == {"test"}
    assert {b.split for b in assign_splits(rows(2), 0, (0.5, 0.0, 0.5))} == {"discovery", "test"}
    for wrong in [(0.5, 0.5, 0.5), (1.5, -0.5, 0.0), (0.0, 0.0, 0.0)]:
        with pytest.raises(UsageError, match="sum to 1"):
            assign_splits(rows(5), 0, wrong)


def test_by_split_and_cluster() -> None:
    out = assign_splits(rows(20), 0)
    assert sum(len(by_split(out, s)) for s in SPLITS) == 20
    assert all(b.split == "test" for b in by_split(out, "test"))
    assert cluster(Behaviour("x", "g", "t")) == "x"


@settings(deadline=None)
@given(sources=st.integers(1, 12), each=st.integers(1, 5), n=st.integers(0, 40), seed=st.integers(0, 99))
def test_take_covers_sources_and_nests(sources: int, each: int, n: int, seed: int) -> None:
    behaviours = rows(sources, each)
    got = take(behaviours, n, seed)
    assert len(got) == min(n, len(behaviours))
    assert len({b.id for b in got}) == len(got)
    assert take(behaviours, n + 7, seed)[: len(got)] == got
    assert take(behaviours[::-1], n, seed) == got
    sizes = Counter(b.source for b in got)
    assert len(sizes) == min(n, sources)
    if sizes:
        assert max(sizes.values()) - min(sizes.values()) <= 1


def test_take_is_seeded() -> None:
    assert take(rows(20), 5, 0) != take(rows(20), 5, 1)
    with pytest.raises(UsageError, match="0 or more"):
        take(rows(3), -1, 0)


# ---------------------------------------------------------------------- balanced


@settings(deadline=None)
@given(sources=st.integers(2, 60), kinds=st.integers(1, 9), each=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_balanced_splits_spread_every_category(sources: int, kinds: int, each: int, seed: int) -> None:
    behaviours = [replace(b, category=f"c{int(b.source[1:]) % kinds}") for b in rows(sources, each)]
    out = assign_balanced(behaviours, seed, 0.3)
    assert [b.id for b in out] == [b.id for b in behaviours]
    shuffled = behaviours.copy()
    random.Random(seed).shuffle(shuffled)
    assert by_id(assign_balanced(shuffled, seed, 0.3)) == by_id(out)
    split = {b.source: b.split for b in out}
    assert all(b.split == split[b.source] for b in out)
    assert sum(s == "discovery" for s in split.values()) == int(sources * 0.3 + 0.5)
    for kind in range(kinds):
        own = [split[f"q{n}"] for n in range(sources) if n % kinds == kind]
        assert abs(own.count("discovery") - 0.3 * len(own)) < 1 + 1e-9


def test_a_hundred_rows_are_used_well() -> None:
    hundred = [replace(b, category=f"c{n % 10}") for n, b in enumerate(rows(100))]
    out = assign_balanced(hundred, 0, 0.3)
    assert Counter((b.category, b.split) for b in out) == {
        (f"c{n}", split): count for n in range(10) for split, count in (("discovery", 3), ("test", 7))
    }
    assert by_id(assign_balanced(hundred, 1, 0.3)) != by_id(out)
    first = [replace(b, split="validation") if n < 5 else b for n, b in enumerate(hundred)]
    assert [b.split for b in assign_balanced(first, 0, 0.3)[:5]] == ["validation"] * 5


def test_one_source_cannot_be_balanced() -> None:
    with pytest.raises(DataError, match=r"Too few source questions \(1\) for 2 splits: discovery stays empty"):
        assign_balanced(rows(1, 9), 0, 0.3)
