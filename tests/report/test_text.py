"""Numbers as they are written."""

from __future__ import annotations

import math

import pytest

from pointsman.report import text
from pointsman.stats.auroc import Auroc
from pointsman.stats.paired import AboveDraws, Comparison
from pointsman.stats.rates import Mean, Rate


def spaced(said: str) -> str:
    return said.replace("\u202f", " ")


def rate(value: float | None, low: float = 0.0, high: float = 1.0, n: int = 62) -> Rate:
    return Rate(0, 0 if value is None else n, value, low, high, "Wilson")


def difference(value: float | None, low: float = -1.0, high: float = 1.0, p: float = 1.0) -> Comparison:
    return Comparison(value, low, high, 0.5, p, 0, 0, 10, "")


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0"), (1, "100"), (0.785, "79"), (0.025, "3"), (0.004, "0.4"), (0.996, "99.6"), (0.5, "50"), (1e-9, "0")],
)
def test_percent_never_claims_none_or_all_by_rounding(share: float, said: str) -> None:
    assert text.number(rate(share)) == said


def test_rates() -> None:
    found = rate(0.79, 0.68, 0.87)
    assert spaced(text.full(found)) == "79 % [68, 87] (n = 62)"
    assert spaced(text.full(rate(None))) == "nothing scored (n = 0)"
    assert (text.number(rate(None)), text.value(rate(None)), text.interval(rate(None))) == ("–", "–", "")
    assert spaced(f"{text.value(found, fine=True)} {text.interval(found, fine=True)}") == "79.0 % [68.0, 87.0]"


def test_means_and_aurocs() -> None:
    assert text.full(Mean(-0.2, -0.31, 0.004, 8, "t")) == "−0.20 [−0.31, 0.00]"
    assert text.full(Mean(0.2, None, None, 1, "one row")) == "0.20 [no interval]"
    assert spaced(text.full(Auroc(0.97, 0.32, 1.0, 14))) == "0.97 [0.32, 1.00] (n = 14)"
    assert spaced(text.full(Auroc(None, 0.0, 1.0, 14))) == "nothing scored (n = 14)"


def test_numbers() -> None:
    assert (text.signed(59.4), text.signed(-3), text.signed(0.2), text.signed(None)) == ("+59", "−3", "0", "–")
    assert (text.plain(-1.234, 2), text.plain(-0.001, 2), text.plain(None, 2)) == ("−1.23", "0.00", "–")
    assert (text.plain(-math.inf, 2), text.plain(math.nan, 2)) == ("–", "–")
    assert [spaced(text.count(n)) for n in (48_211, 1_532_004, 999, 4e15)] == ["48 211", "1.53 M", "999", "4e+03 T"]
    said = [spaced(text.duration(s)) for s in (1.26, 59.4, 402.6, 3600, 119.6)]
    assert said == ["1.3 s", "59 s", "6 min 43 s", "1 h 0 min", "2 min"]
    assert (text.many(1, "set"), text.many(3, "set"), text.many(2, "entry", "entries")) == (
        "1 set", "3 sets", "2 entries"
    )  # fmt: skip
    assert text.experts(range(20)) == f"{', '.join(map(str, range(16)))}, …"


def test_differences_and_p_values() -> None:
    found = difference(0.594, 0.45, 1.0, 0.0123)
    assert text.change_full(found) == "+59 [+45, +100]"
    assert text.change_full(found, 1) == "+59.4 [+45.0, +100.0]"
    assert spaced(text.chance(found)) == "p = 0.012"  # of whole clusters, not McNemar's 0.5
    assert text.change_full(difference(None)) == "–"
    assert text.change_full(difference(0.9, 0.5, 1.2)) == "+90 [+50, +100]"
    assert text.chance(AboveDraws(0.1, 0.0, 0.2, 2, 0, 1 / 3)) == ""
    assert [spaced(text.p_value(p)) for p in (0.0004, 0.05, None)] == ["< 0.001", "0.050", "–"]


def test_settings_are_shown_as_they_are() -> None:
    assert [spaced(text.show(v)) for v in (None, "", (), [], True, 12, 12_345, -0.25, (8, 8), {"a": 1, "b": None})] == [
        "–", "–", "–", "–", "yes", "12", "12 345", "−0.25", "8, 8", "a 1, b –"
    ]  # fmt: skip


def test_what_garbles_is_replaced() -> None:
    said = text.clean_text("a\x00b\x1b[31mc\u202ed\ud800e\u2066\r\nf\tg")
    assert said == "a\ufffdb\ufffd[31mc\ufffdd\ufffde\ufffd\nf\tg"
