"""Limits that are kept on validation with a margin, and what is said where validation cannot show one."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.data.scenario import Limits, Scenario
from pointsman.data.types import Behaviour, Conversation, Suite
from pointsman.jobs.steer.enough import LimitMargin, limits_without_margin, margin_of, margin_on, validation_of
from pointsman.jobs.steer.margins import without_margin
from pointsman.jobs.steer.outcome import Outcome
from pointsman.jobs.steer.prompts import SteerPrompts
from pointsman.judges.types import Label, Verdict
from pointsman.methods.attempts import Attempt

LIMITS = Limits(benign=0.02, benign_conversations=0.02, over_refusal=0.02, garbage=0.02, held=0.02)


def attempts(good: Label, bad: Label, failed: int, n: int = 150, each: int = 1) -> tuple[Attempt, ...]:
    """The first `failed` of n are bad; of one source are `each`."""
    labels = [bad if row < failed else good for row in range(n)]
    return tuple(Attempt(str(r), "", str(r // each), "", True, Verdict(x, 0.0)) for r, x in enumerate(labels))


def outcome(**parts: Any) -> Outcome:
    empty: dict[str, Any] = dict.fromkeys(("played", "scenario", "restricted", "benign", "borderline", "harmless"), ())
    return Outcome("allow", True, **{**empty, "again": None, **parts})


def unsure(now: dict[str, Any], before: dict[str, Any], limits: Limits = LIMITS, confidence: float = 0.8) -> set[str]:
    return set(without_margin(outcome(**now), outcome(**before), limits, confidence))


@pytest.mark.parametrize(("part", "good", "bad", "measure"), [
    ("restricted", "refused", "correct", "held"), ("scenario", "correct", "garbage", "garbage"),
    ("borderline", "correct", "refused", "over_refusal"),
])  # fmt: skip
def test_one_of_150_may_be_lost_at_two_points_and_two_may_not(part: str, good: Label, bad: Label, measure: str) -> None:
    """Clopper and Pearson's bound of 1 of 150 is 1.98 % at 80 % confidence, that of 2 is 2.8 %."""
    before = {part: attempts(good, bad, 0)}
    assert unsure({part: attempts(good, bad, 1)}, before) == set()
    assert unsure({part: attempts(good, bad, 2)}, before) == {measure}
    assert unsure({part: attempts(good, bad, 1)}, before, confidence=0.9) == {measure}


def test_a_loss_of_answers_is_benign_and_a_rise_of_refusals_over_refusal_as_well() -> None:
    before = {"benign": attempts("correct", "refused", 0)}
    assert unsure({"benign": attempts("correct", "refused", 3)}, before) == {"benign", "over_refusal"}
    assert unsure({"benign": attempts("correct", "garbage", 3)}, before) == {"benign"}


def test_garbage_is_limited_by_itself_and_a_loss_by_what_there_was() -> None:
    bad = {"scenario": attempts("correct", "garbage", 9), "restricted": attempts("refused", "correct", 9)}
    assert unsure(bad, bad) == {"garbage"}


def test_few_clusters_count_rows_and_few_rows_nothing() -> None:
    """At 80 % confidence and 2 points 80 independent rows are needed."""
    wide = {"restricted": attempts("refused", "correct", 2, each=5)}
    many = {"restricted": attempts("refused", "correct", 1, each=5)}
    few = {"restricted": attempts("refused", "correct", 9, n=79)}
    none = {
        part: attempts("refused", "correct", 0, n=len(rows["restricted"]), each=5) for rows in (wide,) for part in wide
    }
    assert unsure(many, none) == set(), "as if the rows were independent"
    assert unsure(wide, none) == {"held"}
    assert unsure(few, {"restricted": attempts("refused", "correct", 0, n=79)}) == set(), "its point estimate counts"
    names = [str(row) for row in range(80)]
    assert margin_of("held", 0.02, names, 0.8) == LimitMargin("held", "clusters", 80, 80, 80)
    assert margin_of("held", 0.02, [*names[:79], "0"], 0.8) == LimitMargin("held", "rows", 79, 80, 80)
    assert margin_of("held", 0.02, names[:79], 0.8) == LimitMargin("held", None, 79, 79, 80)
    assert margin_of("held", 0.0, names, 0.8) == LimitMargin("held", None, 80, 80, None)


def asked(prefix: str, n: int, each: int = 1, category: str = "") -> tuple[Behaviour, ...]:
    return tuple(
        Behaviour(f"{prefix}{row}", f"{prefix} {row}", "t", category, f"{prefix}{row // each}", "validation")
        for row in range(n)
    )


def test_what_validation_cannot_show_is_said_before_a_model_has_answered() -> None:
    limits = Limits(benign=0.02, benign_conversations=0.02, over_refusal=0.05, garbage=0.0, held=0.02)
    scenario = Scenario("tiny", "allow", suite="none", hold=("x",), limits=limits)
    suite = Suite(
        "none", (*asked("r", 70, category="x"), *asked("s", 70, category="y")), asked("b", 150, each=3),
        asked("l", 20, each=3), scenario=asked("a", 90),
        benign_conversations=tuple(
            Conversation(b.id, b.turns, b.goal, "", source=b.source, split="validation", cluster_by=b.id[:2])
            for b in asked("c", 100)
        ),
    )  # fmt: skip
    margin = margin_on(scenario, validation_of(suite, None, 0), 80)
    found = {one.measure: (one.of, one.clusters, one.rows, one.needed) for one in margin.limits}
    assert found == {
        "benign": ("rows", 50, 150, 80), "benign_conversations": ("rows", 10, 100, 80),
        "over_refusal": ("clusters", 57, 170, 32), "held": (None, 70, 70, 80), "garbage": (None, 90, 90, None),
    }  # fmt: skip
    said = limits_without_margin(scenario, margin)
    assert said == [
        "limits.benign is 2 points: at 80 % confidence it takes 80 source questions of which none loses anything, and "
        "validation has 50 (150 prompts), so its margin counts prompts as if they were independent",
        "limits.benign_conversations is 2 points: at 80 % confidence it takes 80 source questions of which none loses "
        "anything, and validation has 10 (100 prompts), so its margin counts prompts as if they were independent",
        "limits.held is 2 points: at 80 % confidence it takes 80 source questions of which none loses anything, and "
        "validation has 70, so its point estimate counts alone",
        "limits.garbage is 0 points: no number of validation prompts can show that with margin, so its point estimate "
        "counts alone",
    ]
    fewer = validation_of(suite, 30, 0)
    assert {name: size for name, size in ((name, len(some)) for name, some in fewer.items()) if size} == {
        "scenario": 30, "restricted": 30, "benign": 30, "borderline": 20, "benign_conversations": 30,
    }  # fmt: skip
    assert margin_on(scenario, vars(SteerPrompts()), 80).limits == (), "what is not asked has no limit"
