"""Every block as HTML: self-contained, labelled, and deaf to what names and answers try to say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from markupsafe import Markup

from pointsman.report import plot
from pointsman.report.answers import Kept
from pointsman.report.blocks import (
    Bar,
    Beside,
    Block,
    Card,
    Cell,
    Chart,
    Claims,
    Column,
    Definitions,
    Details,
    Finding,
    Heading,
    Legend,
    Page,
    Reading,
    Row,
    Section,
    Table,
    Text,
)
from pointsman.report.html import render
from pointsman.report.sections.answers import with_answers
from pointsman.runs.results import Claim, Figure
from pointsman.stats.auroc import Auroc
from pointsman.stats.paired import AboveDraws, Comparison
from pointsman.stats.rates import Rate
from reader import ATTACK, Reader

RATE = Rate(3, 4, 0.75, 0.3, 0.95, "Wilson")
NONE = Rate(0, 0, None, 0.0, 1.0, "no rows")
LESS = Comparison(0.5, 0.1, 0.8, 0.1, 0.02, 0, 2, 4, "")
DRAWS = AboveDraws(0.5, 0.1, 0.8, 3, 1, 0.5)
MARK = plot.mark(plot.element("circle", r=1))


def page(*blocks: Block, tag: str = "small n", **changes: Any) -> Page:
    made = Page("kind", "title", "headline", [], tag, [], [], [Section("x", "Section", ["remark"], blocks)])
    return replace(made, **changes)


def read(*blocks: Block, **changes: Any) -> Reader:
    return Reader(render(page(*blocks, **changes)))


def everything(said: str) -> Page:
    """A page of every block in which all that is said is `said`."""
    claim = Claim("id", said, "in doubt", said, Figure(said, RATE), Figure(said), DRAWS)
    columns = [Column(said, kind, beneath=said) for kind in ("text", "number", "bar", "rate", "words")]
    cells = [Cell(said, beside=said, beneath=said, title=said), said, Bar.of(RATE), RATE, said]
    drawing = plot.drawing(9, plot.element("text", said), label=said)
    blocks: list[Block] = [
        Finding(said), Text(said), Heading(said, tag=True), Reading(said, said), Legend([(MARK, said)]),
        Table(columns, [Row(cells, group=said)], said), Chart(drawing, said, [(MARK, said)], scroll=said),
        Definitions([(said, said)]), Claims([claim, Claim.not_measured("id", said, said)]),
        Details(said, [Text(said)]), Beside([Text(said)], [Text(said)], "heat"),
    ]  # fmt: skip
    made = Page(
        said, said, said, [(said, said, said)], said, [(said, said)],
        [Card(said, said, RATE, beside=said), Card(said, said, absent=said), Card(said, said, value=said)],
        [Section("x", said, [said, Definitions([(said, said)])], blocks)],
        show_text=True, description=said, stages={name: name for name in (said, f"{said} alone")},
    )  # fmt: skip
    record = dict.fromkeys(("stage", "id", "category", "tactic", "prompt", "response", "label", "reason"), said)
    again = {**record, "response": f"{said} again"}
    about = {"stage": said, "id": said, "source": f"{said} too", "score": 0.5, "finished": False}
    turn = {"asked": said, "said": said, "label": said, "score": 0.5, "reason": said}
    played = {**about, "fallen": 0, "turns": [turn]}
    pair = {"layer": 0, "position": 0, "experts": [1], "log_prob": -1.0}
    route = {**about, "layers": 1, "tokens": [said, said], "roles": [said, said], "pairs": [pair]}
    other = {**about, "judge": f"{said} other", "label": said, "reason": said}
    kept = Kept([record, again, {**record, "tactic": said}], [about], [played], [route], {said: [other]}, judge=said)
    alone = {key: value for key, value in record.items() if key != "tactic"}
    return with_answers(made, replace(kept, completions=[*kept.completions, {**alone, "stage": f"{said} alone"}]))


def test_everything_from_outside_is_escaped_and_cleaned() -> None:
    plain, html = Reader(render(everything("said"))), render(everything(ATTACK))
    hostile = Reader(html)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [set(found) for _, found in hostile.tags] == [set(found) for _, found in plain.tags]
    assert "".join(hostile.text).count(ATTACK) == "".join(plain.text).count("said") > 50
    cleaned = render(everything("a\x00b\x1b[31mc\u202ed\ud800e\u2066"))
    assert "a\ufffdb\ufffd[31mc\ufffdd\ufffde\ufffd" in cleaned
    cleaned.encode("utf-8")


def test_nothing_is_loaded_and_nothing_runs() -> None:
    html = render(replace(everything("said"), show_text=False))
    tags = Reader(html).tags
    policy = [found["content"] for _, found in tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    ]
    for name, found in tags:
        assert name not in {"script", "iframe", "object", "embed", "base", "form", "img"}
        assert not any(attribute.startswith("on") for attribute in found)
        assert not {"src", "srcset", "xlink:href", "action", "style"} & set(found)
        assert "href" not in found or found["href"].startswith("#") or (name, found["href"]) == ("link", "data:,")
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_drawings_are_labelled_or_decorative() -> None:
    drawings = [found for name, found in Reader(render(everything("said"))).tags if name == "svg"]
    assert len(drawings) == 5
    assert all(d.get("aria-hidden") == "true" or (d.get("role") == "img" and d.get("aria-label")) for d in drawings)
    heads = [found for name, found in Reader(render(everything("said"))).tags if name == "th"]
    assert all(found.get("scope") in ("col", "row", "rowgroup") for found in heads)
    scrolls = [found for _, found in Reader(render(everything("said"))).tags if found.get("role") == "region"]
    assert [(found["tabindex"], found["aria-label"]) for found in scrolls] == [("0", "said")]


def test_warnings_stand_beside_every_figure() -> None:
    html = render(everything("said"))
    assert html.count('<span class="tag">') == 1 + 3 + 2 + 1 + 1  # brand, cards, sections, table, heading
    bare = page(Table([Column()], [Row(["x"])], "caption", tag=False), Heading("part"), tag="small n")
    assert render(bare).count('<span class="tag">') == 2  # brand and section
    assert "tag" not in {found.get("class") for _, found in read(Heading("part", tag=True), tag="").tags}


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (RATE, "rate", "75 % [30, 95] (n = 4)"),
        (NONE, "rate", "nothing scored (n = 0)"),
        (None, "rate", "–"),
        (None, "bar", ""),
        (LESS, "rate", "+50 [+10, +80] p = 0.020"),
        (DRAWS, "rate", "+50 [+10, +80]"),
        (replace(LESS, difference=None), "rate", "–"),
        (Auroc(0.9, 0.8, 1.0, 5), "rate", "0.90 [0.80, 1.00] (n = 5)"),
        (Cell(RATE, bare=True), "rate", "75 % [30, 95]"),
        (Cell(RATE, fine=True), "rate", "75.0 % [30.0, 95.0] (n = 4)"),
        (Cell(LESS, fine=True), "rate", "+50.0 [+10.0, +80.0]"),
        (Cell(LESS, bare=True), "rate", "+50 [+10, +80]"),
        (Cell(NONE, bare=True), "rate", "nothing scored"),
        (Cell("a", beside="b", beneath="c"), "text", "a b c"),
        (0, "number", "0"),
        (Markup("<b>x</b>"), "text", "x"),
    ],
)
def test_cells(value: Any, kind: Any, said: str) -> None:
    found = read(Table([Column("A"), Column("B", kind)], [Row(["row", value])])).words
    assert " ".join(found.split("B row")[1].split("Responsible")[0].split()) == said


def test_a_table_may_have_groups_and_no_heads() -> None:
    rows = [Row(["a"], "first"), Row(["b"]), Row(["c"], "second", top=True, classes="broken")]
    found = read(Table([Column()], rows))
    assert [name for name, _ in found.tags].count("tbody") == 2
    assert "thead" not in [name for name, _ in found.tags]
    classes = [attributes.get("class") for name, attributes in found.tags if name == "tr"]
    assert classes == ["group", None, None, "group", "top broken"]


def test_what_phones_leave_out_is_marked_in_head_and_rows() -> None:
    found = read(Table([Column("A"), Column("B", "bar", optional=True)], [Row(["row", Bar.of(RATE)])]))
    classes = [attributes.get("class") for name, attributes in found.tags if name in ("th", "td")]
    assert classes == [None, "cell optional", None, "cell optional"]


def claims(*found: Claim) -> str:
    return read(Claims(found)).words


def test_claims_say_why_they_do_not_hold() -> None:
    sure = Claim("id", "It works", "holds", "above zero", Figure("F-SOUR", RATE), Figure("none", RATE), LESS)
    said = claims(sure)
    assert (
        "It works holds F-SOUR 75 % [30, 95] (n = 4) against none 75 % [30, 95] (n = 4) +50 [+10, +80], p = 0" in said
    )
    assert "above zero" not in said
    assert "above zero" in claims(replace(sure, verdict="fails"))
    assert "above zero" in claims(replace(sure, difference=None))
    assert "+50 [+10, +80] above zero" in claims(replace(sure, difference=DRAWS))
    assert "It works not measured nobody asked" in claims(Claim.not_measured("id", "It works", "nobody asked"))


def test_a_card_without_a_rate_says_why() -> None:
    cards = [Card("A", "note", absent="not run"), Card("B", "note", NONE), Card("C", "note", value="3 of 5")]
    said = read(cards=cards).words
    for part in ("not run", "nothing could be scored (n = 0)", "3 of 5"):
        assert part in said


def test_a_page_leads_to_its_sections() -> None:
    tags = read(Text("x")).tags
    leads = {found["href"] for name, found in tags if name == "a"}
    assert leads == {"#h-x"} <= {f"#{found.get('id')}" for _, found in tags}
