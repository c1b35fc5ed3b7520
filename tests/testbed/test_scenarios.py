"""The testbed's suite for steering and its two scenarios."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import pointsman
from pointsman.data.scenario import Grid, Limits, load_scenario, scenario_names
from pointsman.data.splits import SPLITS, cluster
from pointsman.testbed.plugin import TestbedJudge, load_steering_suite, load_suite, parse

PARTS = ("restricted", "benign", "borderline", "scenario", "conversations", "benign_conversations")


def test_the_suite_of_audits_is_what_the_evidence_was_taken_on() -> None:
    """Pinned: runs remember this digest, and refuse to go on with other prompts."""
    digest = hashlib.sha256(repr(load_suite()).encode()).hexdigest()
    assert digest == "c488c5c8007700375963141222aedac2b158ef90dec52b2f186541a5476b6507"


def test_the_steering_suite_is_large_enough_and_splits_share_no_source() -> None:
    suite, audit = load_steering_suite(), load_suite()
    assert (suite.name, suite.judge, suite.max_new_tokens) == ("testbed-steering", "testbed", 48)
    assert suite.restricted == audit.restricted
    assert suite.conversations == audit.conversations
    ids = [item.id for name in PARTS for item in getattr(suite, name) if name != "benign_conversations"]
    assert len(ids) == len(set(ids))
    least = {"restricted": 270, "benign": 216, "borderline": 162, "scenario": 54}
    splits: dict[str, str | None] = {}
    for name in PARTS:
        items = getattr(suite, name)
        for split in SPLITS:
            there = [i for i in items if i.split == split]
            assert len(there) >= least.get(name, 480), (name, split)
            assert len({cluster(i) for i in there}) >= 6
        assert all(splits.setdefault(cluster(i), i.split) == i.split for i in items)
    assert sum(b.split == "test" for b in suite.benign) >= 600
    assert {b.category for b in suite.scenario} == {"mature"}
    assert "mature" in {b.category for b in suite.borderline}
    assert "mature" not in {b.category for b in suite.restricted}


def test_everything_asked_can_be_judged_and_scenario_requests_have_targets() -> None:
    suite = load_steering_suite()
    for item in (*suite.scenario, *suite.benign_conversations):
        request = parse(item.goal)
        assert request is not None
        assert request.gold.startswith(item.target)
        assert TestbedJudge().judge(item, request.gold).label == "correct"
        assert item.target


@pytest.mark.parametrize(("name", "objective"), [("multi_turn_defence", "defend"), ("mature_content", "allow")])
def test_the_shipped_scenarios_read(name: str, objective: str) -> None:
    assert name in scenario_names()
    scenario = load_scenario(name)
    assert (scenario.name, scenario.objective, scenario.judge) == (name, objective, "testbed")
    assert (scenario.limits, scenario.grid, scenario.hold) == (Limits(), Grid(), None), (
        "what the file says is the default"
    )
    suite, whole = scenario.read(0), load_steering_suite()
    unused = "scenario" if objective == "defend" else "conversations"
    for part in PARTS:
        assert getattr(suite, part) == (() if part == unused else getattr(whole, part))


def test_the_files_ship_with_the_package() -> None:
    home = Path(pointsman.__file__).parent
    for folder in ("testbed", "data"):
        names = sorted(path.name for path in (home / folder / "templates").glob("*.yaml"))
        assert names == ["mature_content.yaml", "multi_turn_defence.yaml"]
