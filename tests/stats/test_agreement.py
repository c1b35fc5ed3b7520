"""Kappa: reference values, undefined cases, and how often its interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest

from pointsman.stats.agreement import Agreement, Confusion, kappa_of


def pairs(table: list[list[int]]) -> tuple[list[bool], list[bool]]:
    """Answers that make this table, whose rows are the first judge's no and yes."""
    cells = [(bool(i), bool(j)) for i in (0, 1) for j in (0, 1) for _ in range(table[i][j])]
    return [a for a, _ in cells], [b for _, b in cells]


def test_kappa_and_its_standard_error_are_those_of_statsmodels() -> None:
    kappa, error = kappa_of([[20, 5], [10, 15]])
    assert kappa == pytest.approx(0.4)
    assert error == pytest.approx(0.12700, abs=5e-6)
    assert kappa - 1.959964 * error == pytest.approx(0.1511, abs=5e-5)
    assert kappa + 1.959964 * error == pytest.approx(0.6489, abs=5e-5)


def test_kappa_knows_more_than_two_labels() -> None:
    table = [[10, 2, 1], [3, 12, 0], [2, 1, 9]]
    n, same = 40, 31 / 40
    chance = (13 * 15 + 15 * 15 + 12 * 10) / n**2
    assert kappa_of(table)[0] == pytest.approx((same - chance) / (1 - chance))


def test_a_judge_agrees_with_itself_and_contradicts_its_opposite() -> None:
    says = [True, False] * 30
    assert Agreement.of(says, says).kappa == 1
    assert Agreement.of(says, [not yes for yes in says]).kappa == -1


def test_perfect_agreement_of_few_is_not_certain() -> None:
    says = [True, False] * 6
    found = Agreement.of(says, says)
    assert found.high == 1
    assert found.low is not None
    assert found.low < 0.7
    assert "Wilson" in found.method


@pytest.mark.parametrize("says", [[], [True] * 9, [False] * 9])
def test_where_all_have_one_label_there_is_no_kappa(says: list[bool]) -> None:
    found = Agreement.of(says, says)
    assert (found.kappa, found.low, found.high, found.standard_error) == (None, None, None, None)
    assert found.agreed.rate == (1 if says else None)


def test_one_judge_who_always_says_the_same_has_kappa_zero() -> None:
    found = Agreement.of([True] * 20, [True] * 15 + [False] * 5)
    assert found.kappa == 0
    assert found.agreed.k == 15


def test_the_interval_is_the_large_sample_one_where_rows_are_many_and_independent() -> None:
    found = Agreement.of(*pairs([[200, 50], [100, 150]]))
    assert found.kappa is not None
    assert found.standard_error is not None
    assert found.low == pytest.approx(found.kappa - 1.96 * found.standard_error, abs=0.01)
    assert found.high == pytest.approx(found.kappa + 1.96 * found.standard_error, abs=0.01)


def test_copies_of_an_answer_add_nothing() -> None:
    a, b = pairs([[40, 10], [20, 30]])
    once = Agreement.of(a, b)
    often = Agreement.of(a * 5, b * 5, [str(n) for n in range(100)] * 5)
    assert often.clusters == 100
    assert once.low is not None
    assert often.low == pytest.approx(once.low, abs=0.03)
    assert often.standard_error == pytest.approx((once.standard_error or 0) / 5**0.5)


def test_other_numbers_of_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="same answers: 1 and 2"):
        Agreement.of([True], [True, False])


@pytest.mark.parametrize(("clusters", "each", "rate"), [(30, 1, 0.5), (100, 1, 0.3), (40, 4, 0.5), (60, 3, 0.15)])
def test_the_interval_holds_the_truth_often_enough(clusters: int, each: int, rate: float) -> None:
    """Both judges report a truth that answers to one question share; each errs in one of ten."""
    rng, trials, held = np.random.default_rng(0), 200, 0
    error = 0.1
    said = rate * (1 - error) + (1 - rate) * error
    chance = said**2 + (1 - said) ** 2
    truth_kappa = ((1 - error) ** 2 + error**2 - chance) / (1 - chance)
    names = [str(n) for n in np.repeat(np.arange(clusters), each)]
    for trial in range(trials):
        truth = np.repeat(rng.random(clusters) < rate, each)
        a, b = (truth ^ (rng.random(truth.size) < error) for _ in range(2))
        found = Agreement.of(a.tolist(), b.tolist(), names, trial)
        held += found.low is not None and found.high is not None and found.low <= truth_kappa <= found.high
    assert held / trials >= 0.9, held / trials


def test_a_table_keeps_the_order_it_is_given_and_leaves_out_what_never_occurs() -> None:
    found = Confusion.of(["b", "a", "b"], ["a", "a", "z"], order=("b", "c", "a"))
    assert found.labels == ("b", "a", "z")
    assert found.counts == ((0, 1, 1), (0, 1, 0), (0, 0, 0))
