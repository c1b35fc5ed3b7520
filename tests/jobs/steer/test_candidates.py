"""How a candidate is chosen: within limits the largest gain, ties by room and weakness, else the smallest excess."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from engines import behaviours, small_engine
from pointsman.data.scenario import Limits
from pointsman.engine.hf import HFEngine
from pointsman.engine.learning import Lesson
from pointsman.jobs.steer.candidates import DECISION, Candidate, Screen, Tried, choose, screened_loss
from pointsman.jobs.steer.choosing import coarse, finalists, shuffle
from pointsman.jobs.steer.lessons import Fork
from pointsman.jobs.steer.limits import broken_limits, excesses
from pointsman.jobs.steer.outcome import Outcome
from pointsman.jobs.steer.results import OutcomeRates
from pointsman.jobs.steer.strengths import Strengths, StrengthSearch
from pointsman.judges.types import Label, Verdict
from pointsman.methods.attempts import Attempt
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Intervention, Phase
from pointsman.runs.results import dump
from pointsman.stats.rates import Rate

LIMITS = Limits(benign=0.02, benign_conversations=0.03, over_refusal=0.03, garbage=0.02, held=0.05)


def rate(k: int, n: int = 100) -> Rate:
    return Rate.of([i < k for i in range(n)], [str(i) for i in range(n)])


def rates(**counts: int | None) -> OutcomeRates:
    """Of 100 rows each; the unsteered model unless said otherwise."""
    usual: dict[str, int | None] = dict(
        gain=30, garbage=0, benign=90, benign_conversations=80, over_refusal=10, held=70
    )  # fmt: skip
    return OutcomeRates(**{name: None if k is None else rate(k) for name, k in {**usual, **counts}.items()})  # type: ignore[arg-type]


def candidate(name: str = "a", norm1: float | None = 1.0, entries: int = 5) -> Candidate:
    return Candidate(
        id=name, method="mascing", routing=Intervention(), alpha=1.0, phase="both", entries=entries, norm1=norm1
    )


def tried(name: str, *, norm1: float | None = 1.0, entries: int = 5, **counts: int | None) -> Tried:
    found, base = rates(**counts), rates()
    broken, excess = broken_limits(found, base, LIMITS), max(excesses(found, base, LIMITS).values())
    return Tried(candidate(name, norm1, entries), found, broken, excess)


@pytest.mark.parametrize(
    ("name", "kept", "broken"),
    [
        ("benign", 88, 87), ("benign_conversations", 77, 76), ("held", 65, 64), ("over_refusal", 13, 14),
        ("garbage", 2, 3),
    ],
)  # fmt: skip
def test_a_limit_holds_up_to_its_edge(name: str, kept: int, broken: int) -> None:
    assert broken_limits(rates(**{name: kept}), rates(), LIMITS) == ()
    assert broken_limits(rates(**{name: broken}), rates(), LIMITS) == (name,)
    found = excesses(rates(**{name: broken}), rates(), LIMITS)
    assert found[name] == pytest.approx(0.01)
    assert max(found.values()) == found[name]


def test_garbage_has_a_ceiling_and_the_others_are_against_the_unsteered_model() -> None:
    bad = rates(benign=20, held=10, over_refusal=70, benign_conversations=5, garbage=30)
    assert broken_limits(bad, bad, LIMITS) == ("garbage",)
    assert broken_limits(rates(benign=100, held=100, over_refusal=0), rates(), LIMITS) == ()


def test_several_limits_break_together() -> None:
    assert set(broken_limits(rates(benign=0, held=0, garbage=50), rates(), LIMITS)) == {"benign", "held", "garbage"}


def test_what_was_not_measured_breaks_nothing() -> None:
    assert broken_limits(rates(held=None, benign_conversations=None), rates(), LIMITS) == ()
    empty = replace(rates(), over_refusal=rate(0, 0), benign=rate(0, 0))
    assert broken_limits(empty, empty, LIMITS) == ()


def chosen(some: Sequence[Tried]) -> str:
    """Of every order of them: the choice must not depend on it."""
    names = {choose(list(order))[0].candidate.id for order in permutations(some)}
    assert len(names) == 1, names
    return names.pop()


def test_the_largest_gain_within_all_limits_is_chosen() -> None:
    some = [tried("greedy", gain=99, benign=50), tried("good", gain=60), tried("timid", gain=50, benign=95)]
    assert chosen(some) == "good"
    assert choose(some)[1] == "the largest gain of 2 candidates within all limits on validation"
    assert choose(some[1:2])[1] == "the largest gain of 1 candidate within all limits on validation"


def test_ties_go_to_room_below_the_limits_then_to_the_weaker_then_to_the_name() -> None:
    tight, roomy = tried("a", gain=60, benign=88), tried("b", gain=60, benign=90, norm1=9.0)
    assert chosen([tight, roomy]) == "b"
    assert chosen([tried("a", gain=61, benign=88), roomy]) == "b", "a point is no more than validation can tell"
    assert chosen([tried("a", gain=62, benign=88), roomy]) == "a"
    strong, weak = tried("a", gain=60, norm1=2.0), tried("b", gain=60, norm1=1.0)
    assert chosen([strong, weak]) == "b"
    many, few = tried("a", gain=60, norm1=None, entries=9), tried("b", gain=60, norm1=None, entries=4)
    assert chosen([many, few]) == "b"
    assert chosen([tried("b", gain=60), tried("a", gain=60), tried("c", gain=60)]) == "a"


def test_where_none_is_admissible_the_smallest_excess_is_chosen_and_said() -> None:
    some = [
        tried("far", gain=99, garbage=40), tried("near", gain=35, garbage=3), tried("nearer", gain=40, benign=87),
    ]  # fmt: skip
    assert chosen(some) == "nearer"  # as near as `near`, and gains more
    best, why = choose(some)
    assert best.broken == ("benign",)
    assert why == "none of 3 candidates is within all limits on validation; this one exceeds them least"


@pytest.mark.parametrize(("gain", "said"), [(30, "none of 1 candidate"), (29, "none of 1"), (31, "the largest gain")])
def test_a_choice_that_gains_nothing_says_so(gain: int, said: str) -> None:
    _, why = choose([tried("a", gain=gain)], before=0.3)
    assert why.startswith(said)
    assert ("gains anything" in why) == (gain <= 30)


def test_tried_is_judged_by_its_own_rows() -> None:
    def rows(*labels: Label) -> tuple[Attempt, ...]:
        return tuple(
            Attempt(str(n), "", str(n), "", True, Verdict(label, float(label == "correct")))
            for n, label in enumerate(labels)
        )

    def outcome(benign: tuple[Attempt, ...]) -> Outcome:
        return Outcome("allow", True, (), None, rows("correct", "refused"), rows("refused"), benign, (), ())

    base = outcome(rows("correct", "correct"))
    found = Tried.of(candidate(), outcome(rows("correct", "garbage")), base, LIMITS)
    assert found.broken == ("benign",)
    assert found.excess == pytest.approx(0.48)
    assert found.gain == 0.5
    assert Tried.of(candidate(), outcome(rows("correct", "correct")), base, LIMITS).broken == ()
    assert found.unsure is None, "nobody asked for a margin"


def surely(one: Tried, *unsure: str) -> Tried:
    """The same where a margin was asked for."""
    return replace(one, unsure=unsure)


def test_what_keeps_its_limits_with_margin_is_chosen_before_what_gains_more_without() -> None:
    some = [
        surely(tried("greedy", gain=99, benign=50), "benign"), surely(tried("edge", gain=80, benign=89), "benign"),
        surely(tried("safe", gain=60)), surely(tried("timid", gain=50)),
    ]  # fmt: skip
    assert chosen(some) == "safe"
    why = "the largest gain of 2 candidates within all limits on validation with the margin that it can show"
    assert choose(some)[1] == why


def test_where_no_limit_can_be_shown_with_margin_nobody_is_said_to_keep_one_with_it() -> None:
    best = surely(tried("gains", gain=90))
    why = choose([best], shown=False)[1]
    assert why.endswith("by point estimates, since no limit can be shown with margin")
    assert "with the margin that it can show" in choose([best])[1]


def test_where_none_has_a_margin_point_estimates_choose_and_it_is_said() -> None:
    some = [surely(tried("greedy", gain=99, benign=50), "benign"), surely(tried("edge", gain=80, benign=89), "benign")]
    assert chosen(some) == "edge"
    why = "the largest gain of 1 candidate within all limits on validation by point estimates, and none with margin"
    assert choose(some)[1] == why
    assert choose(some[:1])[1].startswith("none of 1 candidates is within all limits on validation")


def test_what_is_said_of_a_candidate() -> None:
    made = Candidate(
        id="x", method="mascing", routing=Intervention(), alpha=0.5, phase="prefill", entries=3, norm1=2.0,
        refinement="surrogate", lambda_=1e-3, matrix=(np.ones(2),),
    )  # fmt: skip
    data = json.loads(json.dumps(dump(made.facts)))
    assert data["lambda"] == 1e-3
    assert "matrix" not in data
    assert "routing" not in data


# ---------------------------------------------------------------------- the screen


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def lesson(engine: HFEngine, n: int, text: str) -> Lesson:
    b = behaviours(n + 1)[n]
    return Lesson(engine.encode(b.turns), engine.encode_target(text), b.source)


def test_the_screen_is_teacher_forced_literally(engine: HFEngine) -> None:
    texts = ["Sorry , i can not help with that .", "where what helps me with the the the"]
    forks = tuple(Fork(lesson(engine, n, texts[n % 2]), lesson(engine, n, texts[1 - n % 2])) for n in range(4))
    prompts = [lesson(engine, n, "x").prompt for n in range(3)]
    own = engine.generate(prompts, max_new_tokens=4)
    keeps = [Lesson(prompt, said.ids, str(n)) for n, (prompt, said) in enumerate(zip(prompts, own, strict=True))]
    screen = Screen(forks, {"benign": tuple(keeps), "also": (lesson(engine, 1, texts[1]),)})

    def total(some: Lesson, routing: Intervention | None) -> float:
        return engine.score([some.prompt], [some.answer], routing=routing)[0].total

    base, totals = screen.rates(engine, None, key="none", steps=Steps(), base=None)
    asked = [x for _, group in sorted(screen.keeps.items()) for x in group]
    assert totals == pytest.approx([total(x, None) for x in asked])
    assert all(base[name].rate == 1 for name in screen.keeps), "it keeps its own answers"
    shares = []
    for strength in (0.0, 0.3, 8.0):
        mask = Intervention.bias({0: [strength, -strength] * 4, 2: [strength] + [0.0] * 7})
        found, _ = screen.rates(engine, mask, key="k", steps=Steps(), base=totals)
        turned = [
            total(replace(f.wanted, answer=f.wanted.answer[:DECISION]), mask)
            > total(replace(f.unwanted, answer=f.unwanted.answer[:DECISION]), mask)
            for f in forks
        ]
        assert (found["gain"].k, found["gain"].n) == (sum(turned), 4)
        for name, group in screen.keeps.items():
            kept = [total(x, mask) >= total(x, None) + np.log(0.5) for x in group]
            assert (found[name].k, found[name].n) == (sum(kept), len(group))
        shares.append(found["benign"].rate)
    assert shares[0] == 1
    assert shares[-1] < 1
    assert 0 < base["gain"].k < 4


def test_the_loss_is_that_of_the_worst_group_and_not_of_the_gain() -> None:
    base = {"gain": rate(0), "benign": rate(60), "restricted": rate(90)}
    assert screened_loss(base, base) == 0
    assert screened_loss({**base, "benign": rate(50), "restricted": rate(60)}, base) == pytest.approx(0.3)
    assert screened_loss({**base, "gain": rate(99)}, {**base, "gain": rate(100)}) == 0
    assert screened_loss({"gain": rate(1)}, {"gain": rate(0)}) == 0


# ---------------------------------------------------------------------- choosing among many


def test_a_shuffled_mask_has_the_same_entries_elsewhere() -> None:
    matrix = (np.array([1.0, 0, 0, -2]), np.array([0.5, 0]), np.zeros(3))
    found = shuffle(matrix, stream(0, "random mask", 0))
    assert [row.shape for row in found] == [(4,), (2,), (3,)]
    assert sorted(np.concatenate(found)) == sorted(np.concatenate(matrix))
    assert not all(np.array_equal(a, b) for a, b in zip(found, matrix, strict=True))
    again = shuffle(matrix, stream(0, "random mask", 0))
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    other = shuffle(matrix, stream(0, "random mask", 1))
    assert not all(np.array_equal(a, b) for a, b in zip(found, other, strict=True))


def masked(name: str, alpha: float = 1.0, matrix: tuple[np.ndarray, ...] | None = None, **more: Any) -> Candidate:
    matrix = matrix if matrix is not None else (np.array([2.0, 0, -1]),)
    return Candidate(
        id=f"{name}/alpha={alpha:g}/both", method="mascing", routing=Intervention(), alpha=alpha, phase="both",
        entries=2, norm1=3 * alpha, matrix=matrix, **more,
    )  # fmt: skip


def test_finalists_gain_most_at_a_tolerable_loss_one_strength_of_each() -> None:
    base = {"gain": rate(0), "benign": rate(90)}

    def entry(made: Candidate, gain: int, benign: int) -> tuple[Candidate, dict[str, Rate]]:
        return made, {"gain": rate(gain), "benign": rate(benign)}

    gains, other = (np.array([1.0]),), (np.array([1.0]),)
    some = [
        entry(masked("wrecks"), 100, 10), entry(masked("gains", 1.0, gains), 60, 86),
        entry(masked("gains", 2.0, gains), 60, 86), entry(masked("same, stronger", 2.0, other), 60, 86),
        entry(masked("less"), 50, 90), entry(masked("hurts less"), 100, 70),
        entry(masked("less of it", 0.5, other), 10, 90),
    ]  # fmt: skip
    for order in permutations(some):
        best = [c.id.partition("/")[0] for c in finalists(order, base, 4)]
        assert best == ["gains", "same, stronger", "less", "hurts less"]
        assert len(finalists(order, base, 9)) == 5


def test_every_swept_proportion_of_pins_may_be_a_finalist() -> None:
    base = {"gain": rate(0), "benign": rate(90)}

    def pinned(method: Any, on: int, off: int, gain: int) -> tuple[Candidate, dict[str, Rate]]:
        made = Candidate(
            id=f"{method}/on={on}/off={off}", method=method, routing=Intervention(), phase="both", entries=on + off,
            pinned="both" if on and off else "on" if on else "off", on=on, off=off,
        )  # fmt: skip
        return made, {"gain": rate(gain), "benign": rate(90)}

    def found(method: Any) -> list[tuple[int | None, int | None]]:
        some = [(2, 2, 60), (8, 8, 70), (2, 8, 65), (8, 2, 50), (2, 0, 40), (8, 0, 30)]
        return [(c.on, c.off) for c in finalists([pinned(method, *one) for one in some], base, 9)]

    assert found("steermoe_paired") == [(8, 8), (2, 8), (8, 2), (2, 0)]
    assert found("steermoe") == [(8, 8), (2, 0)], "whose proportion is not swept"


def test_coarse_is_every_second_strength_where_there_are_many() -> None:
    assert coarse((2.0, 0.25, 0.5, 1.0, 1.5)) == (0.5, 1.0, 1.5)  # and 1, always
    assert coarse((2.0, 0.25, 1.0)) == (0.25, 1.0, 2.0)


def test_the_same_mask_at_another_strength() -> None:
    strengths, at_one = Strengths((1.5, 0.5, 1.0, 10.0), (0.5,), 48, no_pins), masked("m", 1.0)
    assert strengths.grid(at_one) == (0.5, 1.0, 1.5, 10.0)
    stronger = strengths.at(at_one, 1.5)
    assert stronger is not None
    assert (stronger.id, stronger.alpha, stronger.norm1) == ("m/alpha=1.5/both", 1.5, 4.5)
    assert stronger.routing == Intervention.bias({0: [1.5, 0, -0.75]})
    assert stronger.matrix is at_one.matrix
    middle = strengths.between(at_one, stronger)
    assert middle is not None
    assert (middle.id, middle.alpha) == ("m/alpha=1.25/both", 1.25)
    near = strengths.at(at_one, 1.02)
    assert near is not None
    assert strengths.between(at_one, near) is None


def test_pins_of_the_same_kind_with_more_or_fewer_experts() -> None:
    asked: list[tuple[int, int, str]] = []

    def pin(on: int, off: int, phase: Phase) -> Candidate:
        asked.append((on, off, phase))
        pinned = "both" if on and off else "on" if on else "off"
        return Candidate(
            id=f"{on} {off}", method="steermoe", routing=Intervention(), phase=phase, entries=on + off, pinned=pinned,
            on=on, off=off,
        )  # fmt: skip

    strengths = Strengths((1.0,), (0.5,), 48, pin)
    both = pin(4, 4, "prefill")
    assert strengths.grid(both) == (2, 4, 8)
    assert strengths.of(both) == 4
    for start, counts in (((4, 0), (8, 0)), ((0, 4), (0, 8)), ((4, 4), (8, 8)), ((4, 1), (8, 2)), ((2, 32), (1, 8))):
        strengths.at(pin(*start, "prefill"), 8)
        assert asked[-1] == (*counts, "prefill")
    two, eight = pin(2, 0, "both"), pin(8, 0, "both")
    middle = strengths.between(two, eight)
    assert middle is not None
    assert strengths.of(middle) == 5
    assert strengths.between(pin(3, 0, "both"), pin(4, 0, "both")) is None


def no_pins(on: int, off: int, phase: Phase) -> None:
    raise AssertionError


def search(
    finalists: Sequence[Candidate],
    alphas: Sequence[float],
    breaks: dict[str, float],
    gains: dict[str, float],
    unsure: float | None = None,
) -> list[tuple[str, float]]:
    """What is tried, where the mask `x` breaks a limit from `breaks[x]` on and gains `gains[x]` times alpha.

    Args:
        unsure: Alpha from which no mask has a margin; None where none is asked for.
    """
    walked: list[tuple[str, float]] = []

    def attempt(made: Candidate) -> Tried:
        name, alpha = made.id[0], made.alpha or 0.0
        walked.append((name, alpha))
        bad = alpha >= breaks[name]
        found = rates(gain=min(100, round(gains[name] * alpha)), garbage=50 if bad else 0)
        margin = None if unsure is None else ("garbage",) if alpha >= unsure else ()
        return Tried(made, found, ("garbage",) if bad else (), 0.48 if bad else -0.02, unsure=margin)

    found = StrengthSearch(Strengths(alphas, (0.5,), 48, no_pins), attempt)
    found.settle(finalists)
    found.sharpen()
    assert [(t.candidate.id[0], t.candidate.alpha) for t in found.tried] == walked
    assert len(set(walked)) == len(walked), "nothing is tried twice"
    return walked


GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@pytest.mark.parametrize("edge", [0.3, 0.5, 0.6, 0.75, 0.9, 1.0, 1.2, 1.5, 1.7, 2.0, 3.0])
@pytest.mark.parametrize("start", [0.25, 1.0, 2.0])
def test_the_edge_of_the_limits_is_found_in_few_tries(edge: float, start: float) -> None:
    walked = search([masked("a", start)], GRID, {"a": edge}, {"a": 30})
    kept, broken = [a for _, a in walked if a < edge], [a for _, a in walked if a >= edge]
    assert kept, "something that keeps the limits is always found, if the grid has it"
    assert max(kept) >= max(a for a in GRID if a < edge) or len(walked) == 3  # at most two steps stronger
    if broken and len(walked) > 3:
        assert min(broken) - max(kept) <= 0.25
    assert len(walked) <= 1 + 3 + 2


def test_the_strength_is_halved_between_what_holds_and_what_breaks() -> None:
    walked = search([masked("a", 0.75)], GRID, {"a": 0.7}, {"a": 90})
    assert walked == [("a", 0.75), ("a", 0.5), ("a", 0.625), ("a", 0.688)]


def test_a_mask_without_margin_is_made_weaker_like_one_that_breaks_a_limit() -> None:
    walked = search([masked("a", 0.75)], GRID, {"a": 9}, {"a": 90}, unsure=0.7)
    assert walked == search([masked("a", 0.75)], GRID, {"a": 0.7}, {"a": 90})
    assert search([masked("a", 0.75)], GRID, {"a": 9}, {"a": 90}, unsure=9)[0:2] == [("a", 0.75), ("a", 1.0)]


def test_a_finalist_that_cannot_win_is_not_made_weaker() -> None:
    some = [masked("a", 1.0), masked("b", 1.5), masked("c", 2.0)]
    walked = search(some, (0.5, 1.0, 1.5, 2.0), {"a": 1.1, "b": 0.0, "c": 1.6}, {"a": 50, "b": 20, "c": 45})
    assert walked[:2] == [("a", 1.0), ("b", 1.5)]  # b broke a limit, and gained less than a
    assert walked[2:5] == [("c", 2.0), ("c", 1.0), ("c", 1.5)]  # c might gain more, and does
    assert walked[5:] == [("c", 1.75), ("c", 1.625)]  # halved between 1.5 and 2


def test_nothing_is_made_stronger_that_turns_everything_already() -> None:
    assert search([masked("a", 1.0)], GRID, {"a": 9}, {"a": 100}) == [("a", 1.0)]


def test_where_everything_breaks_a_limit_the_weakest_is_tried_too() -> None:
    walked = search([masked("a", 2.0)], GRID, {"a": 0.0}, {"a": 40})
    assert walked == [("a", 2.0), ("a", 1.0), ("a", 0.5), ("a", 0.25)]


def test_the_best_of_two_masks_is_the_one_that_is_made_stronger() -> None:
    walked = search([masked("a", 1.0), masked("b", 1.0)], (1.0, 2.0), {"a": 9, "b": 9}, {"a": 20, "b": 30})
    assert walked == [("a", 1.0), ("b", 1.0), ("b", 2.0)]
    assert search([], GRID, {}, {}) == []
