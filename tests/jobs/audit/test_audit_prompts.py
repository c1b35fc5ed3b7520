"""Which prompts an audit uses for what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pointsman.data.types import Behaviour, Suite
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
    bare = [replace(b, target="") for b in asked().benign]
    assert {b.target for b in with_targets(bare)} == {AFFIRMATIVE}
    assert with_targets(asked().benign) == list(asked().benign)
