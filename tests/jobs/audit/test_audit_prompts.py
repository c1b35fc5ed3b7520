"""Which prompts an audit uses for what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pointsman.data.splits import assign_splits
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import AFFIRMATIVE, choose_prompts, with_targets
from pointsman.testbed.plugin import load_suite
from works import asked


@pytest.mark.parametrize(("number", "split"), [(20, True), (19, False)])
def test_benign_requests_without_splits_are_split_for_the_placebo(number: int, split: bool) -> None:
    suite = load_suite()
    own = Suite(
        "file",
        tuple(Behaviour(f"b{n}", b.goal, b.target) for n, b in enumerate(suite.restricted[:12])),
        benign=tuple(Behaviour(f"benign:{n}", b.goal, b.target) for n, b in enumerate(suite.benign[:number])),
    )
    asked = choose_prompts(own, Audit())
    tested, ranked_on = {b.id for b in asked.benign}, {b.id for b in asked.benign_discovery}
    assert not tested & ranked_on
    assert bool(ranked_on) == split
    assert len(tested) == number if not split else number > len(tested) > 0


def test_benign_requests_keep_splits_of_their_own() -> None:
    suite = load_suite()
    asked = choose_prompts(suite, Audit(limit=None))
    assert {b.id for b in asked.benign} == {b.id for b in suite.benign if b.split == "test"}
    assert {b.split for b in asked.benign_discovery} == {"discovery"}


def test_requests_without_a_target_get_one() -> None:
    lacking = [replace(b, target="") for b in asked().benign]
    assert {b.target for b in with_targets(lacking)} == {AFFIRMATIVE}
    assert with_targets(asked().benign) == list(asked().benign)


def bare(number: int) -> Suite:
    """Behaviours without splits, and conversations about the first ten of them and about another one."""
    named = tuple(Behaviour(f"b{n}", f"goal {n}", "Sure", category=f"c{n % 4}", source=f"q{n}") for n in range(number))
    talks = tuple(Conversation(f"t{n}", ("a", "b"), "b", "", source=f"q{n}") for n in (*range(10), number))
    return Suite("file", named, conversations=talks)


def test_all_that_routers_are_not_ranked_on_is_tested() -> None:
    chosen = choose_prompts(bare(100), Audit(limit=None))
    assert (len(chosen.discovery), len(chosen.test)) == (30, 70)
    assert chosen.sizes["validation"] == 0
    ranked_on = {b.source for b in chosen.discovery}
    assert {c.source for c in chosen.conversations} == {f"q{n}" for n in (*range(10), 100)} - ranked_on
    left_out = 11 - len(chosen.conversations)
    assert chosen.notes == (
        f"{left_out} conversations are left out: routers are ranked on their source questions",
    )  # fmt: skip


def test_a_run_that_began_with_the_lot_goes_on_with_it() -> None:
    chosen = choose_prompts(bare(100), Audit(limit=None, splits="drawn"))
    drawn = {b.id: b.split for b in assign_splits(bare(100).restricted, 0)}
    assert {b.id for b in chosen.discovery} == {name for name, split in drawn.items() if split == "discovery"}
    assert {b.id for b in chosen.test} == {name for name, split in drawn.items() if split == "test"}
    assert len(chosen.conversations) == 11
    assert chosen.notes == ()


def test_clusters_that_are_ranked_on_and_tested_are_said() -> None:
    """Splits are by source question: where intervals cluster by something larger, it may lie on both sides."""
    suite = bare(40)
    wide = tuple(replace(b, cluster_by=f"noun {n % 5}") for n, b in enumerate(suite.restricted))
    chosen = choose_prompts(replace(suite, restricted=wide, conversations=()), Audit(limit=None))
    shared = {b.cluster_by for b in chosen.discovery} & {b.cluster_by for b in chosen.test}
    (note,) = chosen.notes
    assert shared
    assert note.startswith(
        f"{len(shared)} of 5 clusters of the test prompts (cluster_by) are among the discovery prompts"
    )
    apart = tuple(replace(b, cluster_by=f"only of {b.source}") for b in wide)
    assert choose_prompts(replace(suite, restricted=apart, conversations=()), Audit(limit=None)).notes == ()
    assert choose_prompts(load_suite(), Audit()).notes == (), "the testbed splits by what it clusters by"
