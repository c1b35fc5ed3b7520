"""Numbers as written, marks as placed, and the table in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from pointsman.errors import RunError
from pointsman.report import summary_table
from pointsman.report.geometry import Scale, bar, bar_scale, grid, heat, steps, ticks, trajectory
from pointsman.report.values import Difference, Rate, count, duration, p_value, plain, signed

Json = dict[str, Any]


def written(table: object, width: int = 100) -> str:
    out = StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0"), (1, "1e2"), (0.785, "79"), (0.025, "3"), (0.004, "0.4"), (0.996, "99.6"), (0.5, "50")],
)
def test_percent_never_claims_none_or_all_by_rounding(share: float, said: str) -> None:
    assert Rate(1, 10, share, 0, 1).number == ("100" if said == "1e2" else said)


def test_rate_in_full() -> None:
    assert Rate(49, 62, 0.79, 0.68, 0.87).full.replace("\u202f", " ") == "79 % [68, 87] (n = 62)"
    assert Rate(0, 0, None, None, None).full.replace("\u202f", " ") == "nothing scored (n = 0)"


def test_numbers() -> None:
    assert (signed(59.4), signed(-3), signed(0.2), signed(None)) == ("+59", "−3", "0", "–")
    assert (plain(-1.234, 2), plain(-0.001, 2), plain(None, 2)) == ("−1.23", "0.00", "–")
    assert [count(n).replace("\u202f", " ") for n in (48_211, 1_532_004, 999)] == ["48 211", "1.53 M", "999"]
    said = [duration(s).replace("\u202f", " ") for s in (1.26, 59.4, 402.6, 3600, 119.6)]
    assert said == ["1.3 s", "59 s", "6 min 43 s", "1 h 0 min", "2 min"]


def test_differences_and_p_values() -> None:
    found = Difference(0.594, 0.45, 1.0, 0.0123)
    assert (found.short, found.above) == ("+59 [+45, +100]", True)
    assert found.chance.replace("\u202f", " ") == "p = 0.012"
    assert Difference(0.5, 0.0, 1.0).above is False
    assert Difference(None, None, None).short == "–"
    assert [p_value(p).replace("\u202f", " ") for p in (0.0004, 0.05, None)] == ["< 0.001", "0.050", "–"]


def test_heat_map_marks_the_diagonal() -> None:
    placed = heat([[True, False], [False, False]], ["a", "b"])
    assert [(c.hit, c.own) for c in placed.cells] == [(True, True), (False, False), (False, False), (False, True)]
    assert placed.cells[3].x == placed.cells[1].x > placed.cells[0].x
    assert placed.cells[1].title == "route of 1 (a) on 2 (b): no success"
    assert [text for _, text in heat([[False] * 60] * 60, ["x"] * 60).labels] == [str(i) for i in range(5, 61, 5)]


def test_scale_clamps_and_ticks_are_round() -> None:
    scale = Scale(0, 0.6)
    assert (scale(-1), scale(0.3), scale(9)) == (0, 50, 100)
    assert [tick.value for tick in ticks(scale, 3)] == pytest.approx([0, 0.2, 0.4, 0.6])
    assert Scale(1, 1)(5) == 0


def test_bars_start_at_zero_on_both_sides() -> None:
    scale = bar_scale([-0.2, 0.5])
    left, right = bar(scale, -0.2, -0.2, 0.1), bar(scale, 0.5, 0.4, 0.5)
    assert left.x + left.width == pytest.approx(scale(0), abs=0.02)
    assert right.x == scale(0)
    assert right.low < right.end <= right.high < 100
    assert bar_scale([]).end > 0


def test_steps_hold_until_the_next_value() -> None:
    assert steps([(0, 9), (5, 4)]) == "M0 9 L5 9 L5 4"


def test_grid_puts_layer_zero_at_the_bottom() -> None:
    placed = grid(["a", "b"], ["template", "content"], 3, [(0, 1, 0.5, "x"), (2, 0, 2.0, "y")])
    low, high = placed.cells
    assert low.y + placed.cell_height == placed.bottom
    assert high.y == placed.top
    assert low.x == placed.left + placed.cell_width
    assert 0 < low.shade < high.shade == 1
    assert [span.name for span in placed.roles] == ["template", "content"]


def test_trajectory_rises_to_the_threshold() -> None:
    course = trajectory([-9.0, -4.0, -0.2], -0.22)
    assert course.threshold is not None
    assert course.end.y <= course.threshold
    assert [tick.value for tick in course.x_ticks] == [0, 1, 2]


def test_summary_table(results: Json) -> None:
    said = written(summary_table(results), width=80)
    for part in ("testbed:olmoe", "threat model T1", "testbed · small n", "base ASR", "masked top 3 ASR"):
        assert part in said
    for part in (
        "F-SOUR ASR",
        "utility",
        "over-refusal",
        "[83, 99]",
        "random routers",  # random routers
        "+82 [+68, +96]",
        "natural top-k forced",
        "under masks on top 3",
        "Top router 3: RoSais 0.46, p < 0.001, placebo 0.01.",
        "says nothing of a real model",
    ):
        assert part in " ".join(said.split())


def test_summary_table_fits_a_small_screen(results: Json) -> None:
    results["masking"] += [{**row, "phase": "both"} for row in results["masking"][1:]]
    said = written(summary_table(results), width=80)
    assert "masked top 3 ASR, both" in said
    assert len(said.splitlines()) <= 20  # with headline and path 24
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "…" not in said


def test_summary_table_fits_eighty_columns(build: Callable[..., Json]) -> None:
    results = build(n=200, testbed=False, layers=26)
    results.update(utility=None, over_refusal=None, multi_turn=None, fsour=None)
    said = written(summary_table(results), width=80)
    assert "no benign file" in said
    assert "not run" in said
    assert "testbed" not in said
    assert "masked top 5 ASR, prefill" in said
    assert "…" not in said


def test_summary_table_without_controls(results: Json) -> None:
    for entry in results["masking"]:
        entry.update(controls={}, utility=None)
    del results["fsour"]["controls"]
    for row in results["rosais"]:
        row.update(p=0.4, placebo=None)
    said = written(summary_table(results), width=80)
    assert "random" not in said
    assert "p = 0.400 (may be luck), no placebo." in said
    results.update(rosais=[], masking=[])
    assert "Top router" not in written(summary_table(results))


def test_summary_table_takes_no_markup_and_no_escape_codes(results: Json) -> None:
    results["model"]["name"] = "testbed [red]x[/red] [/] \x1b]0;gotcha\x07"
    said = written(summary_table(results))
    assert "[red]x[/red] [/]" in said
    assert "\x1b" not in said


def test_summary_table_refuses_another_schema(results: Json) -> None:
    results["schema"] = "pointsman.audit/1"
    with pytest.raises(RunError, match=r"pointsman\.audit/1"):
        summary_table(results)
