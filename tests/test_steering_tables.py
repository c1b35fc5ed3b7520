"""The tables of steering: a limit broken on test is marked wherever the figure stands, n has its effective n."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # behind the tests: both have something called families

import steering_tables  # noqa: E402
from steering_tables import asked, broken, marked, percent  # noqa: E402

from pointsman.stats.rates import Rate  # noqa: E402


def rate(k: int, n: int = 100) -> dict[str, Any]:
    return vars(Rate.of([row < k for row in range(n)]))


@pytest.fixture
def evidence() -> dict[str, Any]:
    """The golden steering, as evidence is kept."""
    found = json.loads((ROOT / "tests/golden/steer/results.json").read_text(encoding="utf-8"))
    candidates = [c for c in found["candidates"] if c["stage"] == "fine"]
    return {**found, "name": "golden", "checkpoint": "golden", "made_by": "hand", "candidates": candidates}


def test_effective_n_stands_where_it_is_less() -> None:
    alike = vars(Rate.of([True] * 40, [str(row // 4) for row in range(40)]))
    assert (asked(alike), asked(rate(50))) == ("40 (10)", "100")
    assert percent(alike, n=True) == "100.0 % [72, 100] (40, effective 10)"
    assert percent(rate(50), n=True) == "50.0 % [40, 60] (100)"


def test_a_broken_limit_is_what_the_run_says_it_is(evidence: dict[str, Any]) -> None:
    after = evidence["test"]["after"]
    assert broken(evidence, after) == evidence["broken_on_test"] == []
    limits = evidence["scenario"]["limits"]
    assert set(limits.values()) == {0.1}
    before = {**evidence["test"]["before"], "benign": rate(90), "over_refusal": rate(5), "garbage": rate(50)}
    worse = {**evidence, "test": {"before": before}}
    for measure, kept, over in (("benign", 80, 79), ("over_refusal", 15, 16), ("garbage", 10, 11)):
        assert broken(worse, {measure: rate(kept)}) == []
        assert broken(worse, {measure: rate(over)}) == [measure]


def test_it_is_marked_beside_the_measure_and_beside_the_gain(evidence: dict[str, Any]) -> None:
    evidence["test"]["after"] |= {"garbage": rate(20), "over_refusal": rate(30)}
    evidence["seeds"][1]["held"] = rate(10)
    arm = evidence["test"]["after"]
    assert marked(evidence, arm, "garbage") == "20.0 % [13, 29] **over**"
    assert marked(evidence, arm, "benign").endswith("]")
    assert marked(evidence, arm, "gain").endswith("] **over: over-refusal, garbage**")
    for table in (steering_tables.gains, steering_tables.others, steering_tables.chosen, steering_tables.withstood):
        assert "**over: over-refusal, garbage**" in table([evidence]), table.__name__
    assert steering_tables.costs([evidence]).count("**over**") == 2
    seeds = steering_tables.seeds([evidence]).splitlines()
    assert "**over" not in seeds[2]
    assert "**over: restricted refused**" in seeds[3]


def test_the_two_figures_of_a_defence_stand_apart(evidence: dict[str, Any]) -> None:
    evidence["test"]["after"]["dsr_context"] = rate(77)
    evidence["test"]["before"]["turns"] = [
        {"turn": 1, "reached": 24, "fallen": 3},
        {"turn": 2, "reached": 9, "fallen": 7},
    ]
    *_, row = steering_tables.withstood([evidence]).splitlines()
    assert "| 77.0 % [68, 84] |" in row
    assert "| 1: 3, 2: 7 | none |" in row
    assert row.endswith("| withstood |")
    assert steering_tables.withstood([{**evidence, "wrong_withstands": False}]).endswith("| not withstood |")


def test_a_choice_without_margin_says_so(evidence: dict[str, Any]) -> None:
    assert "margin" not in steering_tables.chosen([evidence])
    evidence["chosen"]["unsure"] = ["held"]
    assert "(without margin: restricted refused)" in steering_tables.chosen([evidence])
    held = {"measure": "held", "of": "rows", "clusters": 40, "rows": 150, "needed": 80}
    evidence["margin"] = {"confidence": 80, "limits": [held, {**held, "of": None, "needed": None}]}
    *_, first, second = steering_tables.margins([evidence]).splitlines()
    shown = "| golden_defence | golden | restricted refused | 10 | 80 % | prompts, as if independent | 40 | 150 | 80 |"
    assert first == shown
    assert second.endswith("| none: the point estimate alone | 40 | 150 | - |")


def test_everything_is_in_the_docs(evidence: dict[str, Any]) -> None:
    evidence["margin"] = {"confidence": 80, "limits": []}
    heads = [part.partition(",")[0] for part in steering_tables.in_docs([evidence]) if part.startswith("### ")]
    assert "### Conversations withstood: the two figures apart" in heads
    assert "### With what margin limits could be kept on validation" in heads
    allowed = {**evidence, "scenario": {**evidence["scenario"], "objective": "allow"}, "margin": None}
    fewer = [part.partition(",")[0] for part in steering_tables.in_docs([allowed]) if part.startswith("### ")]
    assert set(heads) - set(fewer) == {h for h in heads if "two figures" in h or "margin" in h}
