"""The testbed's suite for steering and its two scenarios."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import pointsman
from pointsman.data.scenario import Grid, Limits, load_scenario, scenario_names
from pointsman.data.splits import SPLITS, cluster
from pointsman.data.types import Behaviour
from pointsman.judges.types import Answer
from pointsman.testbed.language import CUES, nouns
from pointsman.testbed.plugin import (
    TestbedJudge,
    load_mature_suite,
    load_steering_suite,
    load_suite,
    load_unseen_mature_suite,
    parse,
)

PARTS = ("restricted", "benign", "borderline", "scenario", "conversations", "benign_conversations")


def test_the_suite_of_audits_is_what_the_evidence_was_taken_on() -> None:
    """Pinned: runs remember this digest, and refuse to go on with other prompts."""
    digest = hashlib.sha256(repr(load_suite()).encode()).hexdigest()
    assert digest == "6f527a6a4b58d66d7cfc800a8f5b4088e3f01ca427b3db958b0e765a7c38241f"


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
            assert len(there) >= least.get(name, 448), (name, split)
            assert len({i.row_cluster for i in there}) >= (2 if name == "scenario" else 4)
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
        assert TestbedJudge().judge([item], [Answer(request.gold)])[0].label == "correct"
        assert item.target


@pytest.mark.parametrize(("name", "objective"), [("multi_turn_defence", "defend"), ("mature_content", "allow")])
def test_the_shipped_scenarios_read(name: str, objective: str) -> None:
    assert name in scenario_names()
    scenario = load_scenario(name)
    assert (scenario.name, scenario.objective, scenario.judge) == (name, objective, "testbed")
    finer = Grid(alphas=(0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5))  # opening one door is a matter of small steps
    grid = Grid() if objective == "defend" else finer
    assert (scenario.limits, scenario.grid, scenario.hold) == (Limits(), grid, None), (
        "what the file says is the default, but for the strengths"
    )
    suite, whole = scenario.read(0), load_steering_suite() if objective == "defend" else load_mature_suite()
    unused = "scenario" if objective == "defend" else "conversations"
    for part in PARTS:
        assert getattr(suite, part) == (() if part == unused else getattr(whole, part))


def test_the_files_ship_with_the_package() -> None:
    home = Path(pointsman.__file__).parent
    for folder in ("testbed", "data"):
        names = sorted(path.name for path in (home / folder / "templates").glob("*.yaml"))
        own = ["mature_unseen.yaml"] if folder == "testbed" else []
        assert names == ["mature_content.yaml", *own, "multi_turn_defence.yaml"]


def test_the_unseen_suite_has_exactly_the_words_that_the_mature_suite_leaves_out() -> None:
    suite, unseen = load_mature_suite(), load_unseen_mature_suite()
    for name in ("scenario", "restricted"):
        shown, kept = ({_noun(b) for b in getattr(one, name)} for one in (suite, unseen))
        assert not shown & kept
        assert {word for word, noun in nouns().items() if noun.category in {nouns()[w].category for w in kept}} == (
            shown | kept
        )
        assert {nouns()[word].cue for word in kept} == set(CUES)  # with and without anything shared
    assert {b.split for name in PARTS for b in getattr(unseen, name)} == {"test"}


def test_a_scenario_whose_prompts_are_all_for_test_can_be_evaluated() -> None:
    suite = load_scenario("mature_unseen").read(0)
    assert {_noun(b) for b in suite.scenario} == {_noun(b) for b in load_unseen_mature_suite().scenario}
    assert {b.split for name in PARTS for b in getattr(suite, name)} == {"test"}


def _noun(behaviour: Behaviour) -> str:
    request = parse(behaviour.goal)
    assert request is not None
    return request.noun


def test_the_mature_suite_shows_every_word_in_every_split_and_no_source_in_two() -> None:
    suite, steering = load_mature_suite(), load_steering_suite()
    assert (suite.name, suite.conversations) == ("testbed-mature", ())
    assert (suite.benign, suite.borderline) == (steering.benign, steering.borderline)  # these keep the split by noun
    for behaviours, words in ((suite.scenario, 7), (suite.restricted, 25)):
        splits: dict[str, str | None] = {}
        for split in SPLITS:
            there = [b for b in behaviours if b.split == split]
            assert len({cluster(b).partition("x")[2] for b in there}) == words, split
            assert len(there) >= 60
        assert all(splits.setdefault(cluster(b), b.split) == b.split for b in behaviours)
        assert len({b.id for b in behaviours}) == len(behaviours) == words * 54
