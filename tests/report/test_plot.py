"""Marks as they are placed."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from pointsman.report import plot
from pointsman.report.blocks import Bar
from pointsman.report.plot import Scale
from reader import ATTACK


def parsed(drawing: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)


def found(drawing: Markup, tag: str, style: str) -> list[dict[str, str]]:
    return [e.attrib for e in parsed(drawing).iter(tag) if e.attrib.get("class") == style]


def test_an_element_escapes_what_it_is_given() -> None:
    made = plot.element("text", ATTACK, plot.element("title", "a < b"), aria_label=ATTACK, class_="x", x=None, y=1 / 3)
    read = parsed(made)
    assert read.text == read.attrib["aria-label"] == ATTACK
    assert [child.text for child in read] == ["a < b"]
    assert set(read.attrib) == {"aria-label", "class", "y"}
    assert read.attrib["y"] == "0.333"


def test_scale_clamps_and_ticks_are_round() -> None:
    scale = Scale(0, 0.6)
    assert (scale(-1), scale(0.3), scale(9)) == (0, 50, 100)
    assert scale.ticks(3) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert Scale(1, 1)(5) == 0
    assert Scale(1, 1).ticks() == [1]


def test_bars_start_at_zero_on_both_sides() -> None:
    scale = Scale.of_bars([-0.2, 0.5])
    left, right = (
        found(plot.bar(Bar(value, value, value + 0.1, "plain", scale.start, scale.end)), "rect", "bar plain")[0]
        for value in (-0.2, 0.5)
    )
    zero = float(right["x"].rstrip("%"))
    assert zero == pytest.approx(scale(0.0), abs=0.01)
    assert float(left["x"].rstrip("%")) + float(left["width"].rstrip("%")) == pytest.approx(zero, abs=0.02)
    assert Scale.of_bars([]).end > 0


def test_a_bar_without_an_interval_has_no_whisker() -> None:
    assert found(plot.bar(Bar(0.5)), "line", "whisker") == []
    assert len(found(plot.bar(Bar(0.5, 0.4, 0.6)), "line", "whisker")) == 3


def test_steps_hold_until_the_next_value() -> None:
    assert plot.steps([(0, 9), (5, 4)]) == "M0 9 L5 9 L5 4"


def test_a_chart_begins_at_the_origin_and_spans_the_draws() -> None:
    lines = [
        plot.Line("random", "random", [plot.Point(2, 0.5, 0.4, 0.6, "r")], 0.0, [(2, 0.25, 0.75)], [(2, 0.25, "d")]),
        plot.Line("top", "attack", [plot.Point(0, 0.0, 0.0, 0.2, "a"), plot.Point(2, 1.0, 0.8, 1.0, "b")]),
    ]
    drawn = plot.line_chart(lines, [0, 2], of="of prompts", x_label="routers", label="said")
    read = parsed(drawn)
    assert read.attrib["aria-label"] == "said"
    (band,) = found(drawn, "path", "band random")
    assert band["d"] == "M10 284 L95 89 L95 219 L10 284 Z"
    marks = found(drawn, "circle", "mark")
    assert [mark["cx"] for mark in marks] == ["96.3%", "10%", "95%"]  # beside the attack, not on it
    assert [mark["cy"] for mark in marks] == ["154", "284", "24"]
    assert "100\u202f% of prompts" in drawn


def test_a_route_puts_layer_zero_at_the_bottom() -> None:
    pairs = [plot.Pair(0, 1, 0.5, "x"), plot.Pair(2, 0, 2.0, "y")]
    drawn = plot.route(["a", "b"], ["template", "content"], 3, pairs, label="route")
    low, high = found(drawn, "rect", "cellshade")
    (back,) = found(drawn, "rect", "gridback")
    top, bottom = float(back["y"]), float(back["y"]) + float(back["height"])
    assert float(low["y"]) + float(low["height"]) == bottom
    assert float(high["y"]) == top
    assert float(low["x"]) == float(back["x"]) + float(low["width"])
    assert 0 < float(low["fill-opacity"]) < float(high["fill-opacity"]) == 1
    assert len(found(drawn, "line", "role template")) == len(found(drawn, "line", "role content")) == 1


def test_a_role_that_is_unknown_has_the_style_of_none() -> None:
    drawn = plot.route([ATTACK], [ATTACK], 1, [], label="route")
    styles = {e.attrib["class"] for e in parsed(drawn).iter() if "class" in e.attrib}
    assert styles == {"fixed", "gridback", "role other", "token other"}


def test_a_trajectory_rises_to_the_threshold() -> None:
    drawn = plot.trajectory([-9.0, -4.0, -0.2], -0.22, x_label="pairs", label="rises")
    (stop,) = found(drawn, "line", "threshold")
    (end,) = found(drawn, "circle", "attack mark")
    assert float(end["cy"]) <= float(stop["y1"])
    assert re.findall(r'text-anchor="middle">([^<]*)<', drawn) == ["0", "1", "2", "pairs"]


def test_a_heat_map_marks_the_diagonal() -> None:
    drawn = plot.heat_map([[True, False], [False, False]], [["aa", "ab"], ["ba", "bb"]], label="transfer")
    assert [title.text for title in parsed(drawn).iter("title")] == ["aa", "ab", "ba", "bb"]
    (hit,), own = found(drawn, "rect", "heatcell hit"), found(drawn, "rect", "heatcell own")
    assert [float(o["x"]) - float(o["y"]) for o in own] == [float(hit["x"]) - float(hit["y"])] * 2
    many = plot.heat_map([[False] * 60] * 60, [["x"] * 60] * 60, label="transfer")
    numbers = [e.text for e in parsed(many).iter("text") if (e.text or "").isdigit()]
    assert numbers[::2] == [str(i) for i in range(5, 61, 5)]
