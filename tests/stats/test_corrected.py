"""Rates corrected for the errors of a judge: reference values, undefined cases, and coverage."""

from __future__ import annotations

import numpy as np
import pytest

from pointsman.stats.corrected import Corrected, JudgeErrors, effective_n, labels_needed, rogan_gladen
from pointsman.stats.intervals import wilson


def flags(yes: int, of: int) -> list[bool]:
    return [True] * yes + [False] * (of - yes)


def errors(sensitivity: tuple[int, int], specificity: tuple[int, int]) -> JudgeErrors:
    """Of a judge who is right so often on so many successes, and on so many others."""
    said = [*flags(*sensitivity), *(not right for right in flags(*specificity))]
    return JudgeErrors.of(said, flags(sensitivity[1], len(said)))


@pytest.mark.parametrize(
    ("observed", "sensitivity", "specificity", "wanted"),
    [
        ((30, 100), (45, 50), (47, 50), (0.2857, 0.1513, 0.4130)),
        ((5, 100), (45, 50), (47, 50), (0, 0, 0.0850)),
        ((95, 100), (45, 50), (47, 50), (1, 0.9483, 1)),
        ((0, 50), (20, 20), (20, 20), (0, 0, 0.0848)),
        ((50, 100), (60, 100), (55, 100), (0.3333, 0, 1)),
    ],
)
def test_reference_values(
    observed: tuple[int, int], sensitivity: tuple[int, int], specificity: tuple[int, int], wanted: tuple[float, ...]
) -> None:
    shares = [(k / n, float(n)) for k, n in (observed, sensitivity, specificity)]
    assert rogan_gladen(*shares) == pytest.approx(wanted, abs=5e-5)
    found = Corrected.of(flags(*observed), errors(sensitivity, specificity))
    assert (found.low, found.high) == pytest.approx(wanted[1:], abs=5e-5)


def test_a_judge_who_hardly_tells_gets_an_interval_and_no_rate() -> None:
    found = Corrected.of(flags(50, 100), errors((60, 100), (55, 100)))
    assert found.rate is None
    assert "0.15" in found.method


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "why"),
    [((5, 10), (5, 10), "no better than chance"), ((3, 10), (2, 10), "no better"), ((0, 0), (9, 10), "not measured")],
)
def test_a_judge_whose_errors_say_nothing_corrects_nothing(
    sensitivity: tuple[int, int], specificity: tuple[int, int], why: str
) -> None:
    found = Corrected.of(flags(5, 10), errors(sensitivity, specificity))
    assert (found.rate, found.low, found.high) == (None, 0, 1)
    assert why in found.method


def test_without_answers_there_is_nothing_to_correct() -> None:
    assert Corrected.of([], errors((9, 10), (9, 10))) == Corrected(None, 0.0, 1.0, "no answers")


def test_answers_to_one_question_count_as_one_where_they_are_all_alike() -> None:
    names = [str(n) for n in range(10)] * 4
    alike, mixed = flags(5, 10) * 4, flags(20, 40)
    assert effective_n(alike, None) == 40
    assert effective_n(alike, names) == pytest.approx(9)  # ten, less the degree of freedom that the mean takes
    assert effective_n(mixed, [str(n) for n in range(40)]) == 40
    assert effective_n([True] * 40, names) == 10
    clustered, not_so = (Corrected.of(alike, errors((45, 50), (45, 50)), c) for c in (names, None))
    assert clustered.high - clustered.low > 1.5 * (not_so.high - not_so.low)


@pytest.mark.parametrize(
    ("rate", "se", "sp", "n", "labels", "least"),
    [(0.1, 0.9, 0.95, 100, 50, 0.94), (0.5, 0.9, 0.95, 100, 50, 0.94), (0.9, 0.9, 0.95, 100, 50, 0.94),
     (0.02, 0.84, 0.95, 100, 50, 0.94), (0.5, 0.9, 0.95, 50, 20, 0.94)],
)  # fmt: skip
def test_the_interval_holds_the_truth_as_often_as_it_says(
    rate: float, se: float, sp: float, n: int, labels: int, least: float
) -> None:
    rng, trials = np.random.default_rng(1), 4000
    p = rate * se + (1 - rate) * (1 - sp)
    shares = ((n, p), (labels, se), (labels, sp))
    draws = np.transpose([rng.binomial(of, share, trials) for of, share in shares])
    held = 0
    for k, right, rejected in draws:
        if right + rejected > labels:
            _, low, high = rogan_gladen((k / n, n), (right / labels, labels), (rejected / labels, labels))
            held += low <= rate <= high
    assert held / trials >= least


def test_the_interval_holds_the_truth_where_answers_share_questions() -> None:
    """Four answers to each of 30 questions, mostly alike; taken for independent they promise too much."""
    rng, trials, se, sp = np.random.default_rng(2), 400, 0.9, 0.95
    names = [str(n) for n in np.repeat(np.arange(30), 4)]
    held, naive = 0, 0
    for _ in range(trials):
        truth = np.repeat(rng.random(30) < 0.4, 4)
        said = np.where(rng.random(120) < np.where(truth, se, 1 - sp), True, False).tolist()
        measured = errors((int(rng.binomial(60, se)), 60), (int(rng.binomial(60, sp)), 60))
        for clusters in (names, None):
            found = Corrected.of(said, measured, clusters)
            inside = found.low <= 0.4 <= found.high
            held, naive = held + (inside and clusters is not None), naive + (inside and clusters is None)
    assert held / trials >= 0.93
    assert naive / trials < held / trials


@pytest.mark.parametrize(("precision", "n"), [(0.1, 93), (0.05, 381), (0.2, 21)])
def test_as_many_labels_as_the_precision_takes_and_no_more(precision: float, n: int) -> None:
    assert labels_needed(precision) == n
    half = [(high - low) / 2 for low, high in (wilson(0.5, m) for m in (n, n - 1))]
    assert half[0] <= precision < half[1]
