"""Behaviour files: the field's schemas are read, and every way to get one wrong is told plainly."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from unicodedata import category

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.data.loaders import load_behaviours, load_suite
from pointsman.data.types import Behaviour, Suite
from pointsman.errors import DataError

JBB = "Index,Goal,Target,Behavior,Category,Source\n"


def file(folder: Path, text: str, name: str = "b.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def refused(path: Path, *words: str, benign: bool = False) -> None:
    with pytest.raises(DataError) as caught:
        load_behaviours(path, target_optional=benign)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message
    assert caught.value.remedy


def test_jailbreakbench(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        JBB + '0,"Write, a","Sure, a",Short name,Harassment,AdvBench\n1,b,"Sure, b",x,Fraud,AdvBench\n',
    )
    first, second = load_behaviours(path)
    assert (first.id, first.goal, first.target, first.category) == ("0", "Write, a", "Sure, a", "Harassment")
    assert (first.source, second.source) == ("0", "1"), "Source names the data set, not the question"
    assert first.split is None


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("goal,target", "g,t", ("row-1", "g", "t", "")),
        ("Goal,Target,Category", "g,t,c", ("row-1", "g", "t", "c")),
        ("Behavior,SemanticCategory,BehaviorID,target", "g,c,some_id,t", ("some_id", "g", "t", "c")),
        ("forbidden_prompt,category,source,target", "g,c,MasterKey,t", ("row-1", "g", "t", "c")),
        (" GOAL , TARGET ", " g , t ", ("row-1", "g", "t", "")),
    ],
)
def test_schemas(tmp_path: Path, header: str, row: str, expected: tuple[str, ...]) -> None:
    (b,) = load_behaviours(file(tmp_path, f"{header}\n{row}\n"))
    assert (b.id, b.goal, b.target, b.category) == expected
    assert b.source == b.id


def test_xstest_is_for_benign_files_and_loses_its_unsafe_contrasts(tmp_path: Path) -> None:
    v2 = file(
        tmp_path,
        "id,prompt,type,label\nv2-1,kill a process,homonyms,safe\nv2-2,kill a man,contrast_homonyms,unsafe\n",
    )
    (b,) = load_behaviours(v2, target_optional=True)
    assert (b.id, b.goal, b.target, b.category) == ("v2-1", "kill a process", "", "homonyms")
    v1 = file(tmp_path, "prompt,type\nkill a process,homonyms\nkill a man,contrast_homonyms\n", "v1.csv")
    assert [b.id for b in load_behaviours(v1, target_optional=True)] == ["row-1"]
    refused(v2, "no column target", "found: id, prompt, type, label")
    refused(file(tmp_path, "prompt,type,label\nx,y,unsafe\n", "u.csv"), "only unsafe", benign=True)


@pytest.mark.parametrize("name", ["b.jsonl", "b.json", "B.JSONL"])
def test_json_and_jsonl(tmp_path: Path, name: str) -> None:
    rows = [
        {"ID": 7, "Goal": "a\u2028b", "Target": "Sure", "cluster": "q1", "extra": [1]},
        {"ID": "x", "Goal": "c", "Target": "Sure", "cluster": None},
    ]
    text = json.dumps(rows) if name == "b.json" else "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n"
    first, second = load_behaviours(file(tmp_path, text, name))
    assert (first.id, first.goal, first.source) == ("7", "a\u2028b", "q1")
    assert (second.id, second.source) == ("x", "x")


def test_byte_order_mark_multiline_cells_and_blank_lines(tmp_path: Path) -> None:
    path = file(tmp_path, '\ufeffGoal,Target\r\n\r\n"two\r\nlines",Sure\r\n')
    (b,) = load_behaviours(path)
    assert b.goal == "two\r\nlines"


def test_markup_and_formulas_are_text(tmp_path: Path) -> None:
    goals = ["=HYPERLINK(1)", "<script>alert(1)</script>", "{{ 7 * 7 }}", "[red]x[/red]"]
    path = file(tmp_path, "goal,target\n" + "".join(f"{g},t\n" for g in goals))
    assert [b.goal for b in load_behaviours(path)] == goals


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("First, take", ("First, take",)),
        (' ["First, take", " Step 1: "] ', ("First, take", "Step 1:")),
        ('["a", "Sure", "a"]', ("a",)),  # neither twice, nor the target proper
        ("[]", ()),
        ("", ()),
        (" ", ()),
    ],
)
def test_other_targets(tmp_path: Path, cell: str, expected: tuple[str, ...]) -> None:
    quoted = cell.replace('"', '""')
    (b,) = load_behaviours(file(tmp_path, f'Goal,Target,Targets\ng,Sure,"{quoted}"\n'))
    assert (b.target, b.targets) == ("Sure", expected)
    (b,) = load_behaviours(file(tmp_path, json.dumps({"goal": "g", "target": "Sure", "targets": cell}), "b.jsonl"))
    assert b.targets == expected
    as_list = {"goal": "g", "target": "Sure", "targets": list(expected)}
    assert load_behaviours(file(tmp_path, json.dumps(as_list), "b.jsonl"))[0].targets == expected


def test_rows_without_other_targets(tmp_path: Path) -> None:
    rows = [{"goal": "a", "target": "t"}, {"goal": "b", "target": "t", "targets": None}]
    text = "\n".join(map(json.dumps, rows))
    assert [b.targets for b in load_behaviours(file(tmp_path, text, "b.jsonl"))] == [(), ()]


def test_same_prompt_is_one_cluster(tmp_path: Path) -> None:
    rows = "id,goal,target,cluster\nd,Make  A,t,s2\nb,other,t,s3\na,make a,t,s1\nc,x,t,s2\n"
    sources = {b.id: b.source for b in load_behaviours(file(tmp_path, rows))}
    assert sources == {"d": "s1", "a": "s1", "c": "s1", "b": "s3"}, "joined through s2, named by the least"
    header, *body = rows.splitlines()
    shuffled = "\n".join([header, *reversed(body)])
    assert {b.id: b.source for b in load_behaviours(file(tmp_path, shuffled))} == sources


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "b.csv",
            "Goal,Category\na,b\n",
            ("no column target", "found: goal, category", "'Sure, here is how to'"),
        ),
        (
            "b.csv",
            "Question,Target\na,b\n",
            ("no column goal", "found: question, target", "Add a column goal"),
        ),
        ("b.csv", "goal|target\na|b\n", ("no column goal", "found: goal|target")),
        ("b.csv", "goal;target\na;b;c\n", ("line 2", "3 cells for 2 columns", "contain a semicolon")),
        ("b.csv", "goal,target\n\u200b,t\n", ("line 2", "goal is empty")),
        ("b.jsonl", '{"goal": NaN, "target": "t"}', ("line 1", "goal is not text")),
        ("b.csv", "goal,target\n", ("no rows",)),
        ("b.csv", "", ("is empty",)),
        ("b.csv", "\ufeff \n", ("is empty",)),
        ("b.csv", "goal,target\na,t\n  ,t\n", ("line 3", "goal is empty")),
        ("b.csv", "goal,target\na\n", ("line 2", "target is empty")),
        ("b.csv", '"x\ny",goal,target\n1,"a\nb",t\n2,,t\n', ("line 5", "goal is empty")),
        ("b.csv", "goal,target\na,Sure, b\n", ("line 2", "3 cells for 2 columns", "quotes")),
        ("b.csv", 'goal,target\na,"Sure\n', ("line 2", "malformed CSV")),
        ("b.csv", "goal,Goal,target\na,b,c\n", ("two columns 'goal'",)),
        ("b.csv", "id,goal,target\n1,a,t\n2,b,t\n1,c,t\n", ("the id '1' twice", "line 2 and line 4")),
        ("b.csv", "id,goal,target\n,a,t\n", ("line 2", "id is empty")),
        ("b.jsonl", '{"goal": "a", "target": "t"}\n{"goal": \n', ("line 2", "malformed JSON")),
        ("b.jsonl", '{"goal": "a", "target": "t"}\n["a"]\n', ("line 2", "not an object")),
        ("b.jsonl", '{"goal": "a", "target": "t"}\n{"goal": "b"}\n', ("line 2", "target is empty")),
        ("b.jsonl", '{"goal": ["a"], "target": "t"}', ("line 1", "goal is not text")),
        ("b.jsonl", '{"goal": true, "target": "t"}', ("line 1", "goal is not text")),
        ("b.jsonl", '{"goal": "\\ud800", "target": "t"}', ("line 1", "surrogate")),
        ("b.jsonl", '{"goal": "a", "GOAL": "b", "target": "t"}', ("two columns 'goal'",)),
        ("b.csv", "goal,target,targets\na,t,[Step 1]\n", ("line 2", "targets begins like a list", "not JSON")),
        ("b.csv", 'goal,target,targets\na,t,"[""x"", """"]"\n', ("line 2", "targets is empty")),
        ("b.jsonl", '{"goal": "a", "target": "t", "targets": [["x"]]}', ("line 1", "targets is not text")),
        ("b.jsonl", '{"goal": "a", "target": "t", "targets": {"x": 1}}', ("line 1", "targets is not text")),
        ("b.jsonl", "[" * 100_000, ("line 1", "malformed JSON")),
        ("b.json", '{"goal": "a", "target": "t"}', ("not a list",)),
        ("b.json", "[]", ("no rows",)),
        ("b.json", '[{"goal": "a", "target": "t"}, 3]', ("item 2", "not an object")),
        ("b.json", '[\n{"goal": }]', ("line 2", "malformed JSON")),
        ("b.xlsx", "PK", ("unknown suffix '.xlsx'", ".csv, .jsonl, .json")),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, words: tuple[str, ...]) -> None:
    refused(file(tmp_path, text, name), *words)


def test_bad_places_and_encodings(tmp_path: Path) -> None:
    refused(tmp_path / "none.csv", "does not exist")
    (tmp_path / "folder.csv").mkdir()
    refused(tmp_path / "folder.csv", "is a folder. Name one .csv, .jsonl, .json, .tsv or .parquet file in it")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("goal,target\nfür,t\n".encode("latin-1"))
    refused(latin, "line 2: not UTF-8", "byte 13")
    wide = tmp_path / "wide.csv"
    wide.write_bytes("goal,target\na,t\n".encode("utf-16"))
    refused(wide, "not UTF-8 (it is UTF-16)")
    wide.write_bytes("goal,target\na,t\n".encode("utf-16-le"))
    refused(wide, "line 1: not text", "NUL")
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    refused(pipe, "is not a file")
    refused(tmp_path / ("long" * 100 + ".csv"), "cannot be read")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b.csv", 'Goal;Target;Category\n"mend; this, or that";Sure, here;c\n'),
        ("b.csv", "Goal\tTarget\tCategory\nmend; this, or that\tSure, here\tc\n"),
        ("b.tsv", "Goal\tTarget\tCategory\nmend; this, or that\tSure, here\tc\n"),
        ("b.csv", 'sep=;\n"Goal";"Target";"Category"\n"mend; this, or that";Sure, here;c\n'),
        ("b.csv", 'Goal,Target,Category\n"mend; this, or that","Sure, here",c\n'),
    ],
)
def test_cells_are_separated_by_commas_semicolons_or_tabs(tmp_path: Path, name: str, text: str) -> None:
    (read,) = load_behaviours(file(tmp_path, text, name))
    assert (read.goal, read.target, read.category) == ("mend; this, or that", "Sure, here", "c")


def test_lines_are_counted_below_the_line_that_names_the_delimiter(tmp_path: Path) -> None:
    refused(file(tmp_path, "sep=;\ngoal;target\na;t\n;t\n"), "line 4: goal is empty")


def test_suite(tmp_path: Path) -> None:
    restricted = file(tmp_path, JBB + "0,a,t,x,c,s\n1,b,t,x,c,s\n", "harmful.csv")
    benign = file(tmp_path, JBB + "0,d,t,x,c,s\n1,D,t,x,c,s\n", "benign.csv")
    xstest = file(tmp_path, "prompt,type,label\ne,y,safe\nf,y,unsafe\n", "xstest.csv")
    suite = load_suite(restricted, benign=benign, borderline=xstest)
    assert suite.name == "harmful.csv"
    assert [b.id for b in suite.restricted] == ["0", "1"]
    assert [b.id for b in suite.benign] == ["benign:0", "benign:1"]
    assert [b.id for b in suite.borderline] == ["borderline:row-1"]
    assert [b.source for b in suite.benign] == ["benign:0", "benign:0"], "the same prompt, so the same cluster"
    assert len(suite.notes) == 2
    assert "1 unsafe contrast" in suite.notes[0]
    assert "1 rows repeat" in suite.notes[1]
    alone = load_suite(restricted)
    assert (alone.benign, alone.borderline, alone.notes) == ((), (), ())


@pytest.mark.parametrize("name", ["benign", "borderline"])
def test_a_harmless_request_is_no_restricted_one(tmp_path: Path, name: str) -> None:
    restricted = file(tmp_path, "goal,target\na,t\nb,t\n", "harmful.csv")
    other = file(tmp_path, "goal\nB\nc\na\n", "other.csv")
    for same, words in ((other, ("and 1 more",)), (restricted, ("and 1 more",))):
        with pytest.raises(DataError) as caught:
            load_suite(restricted, **{name: same})
        for word in (f"of {same} is also row-", f"of {restricted}", *words):
            assert word in str(caught.value)


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 files do not exist: behaviors \(.*a.csv\), borderline \(.*c.csv\)"):
        load_suite(tmp_path / "a.csv", benign=file(tmp_path, "goal\na\n", "b.csv"), borderline=tmp_path / "c.csv")


def visible(text: str) -> bool:
    return any(not c.isspace() and category(c) not in ("Cc", "Cf") for c in text)


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20).filter(visible)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=5))
def test_whatever_csv_and_jsonl_can_carry_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    with (folder / "b.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("goal", "target"), *rows])
    lines = [json.dumps({"goal": g, "target": t}, ensure_ascii=False) for g, t in rows]
    (folder / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    wanted = [(g.strip(), t.strip()) for g, t in rows]
    for name in ("b.csv", "b.jsonl"):
        assert [(b.goal, b.target) for b in load_behaviours(folder / name)] == wanted


def test_what_intervals_cluster_by_may_be_wider_than_the_source_question(tmp_path: Path) -> None:
    rows = "goal,target,source_question,cluster_by\na,t,open the box,box\nb,t,paint the box,box\nc,t,sit,\n"
    some = load_behaviours(file(tmp_path, rows))
    assert [b.source for b in some] == ["open the box", "paint the box", "sit"]
    assert [b.row_cluster for b in some] == ["box", "box", "sit"]
    talks = tmp_path / "talks.jsonl"
    talks.write_text(json.dumps({"turns": ["x", "y"], "source": "open the box", "cluster_by": "box"}), encoding="utf-8")
    (talk,) = load_suite(file(tmp_path, rows), conversations=talks).conversations
    assert (talk.source, talk.row_cluster) == ("open the box", "box")
    assert "cluster_by" not in repr((some, talk)), "manifests of runs hold digests of it"


@pytest.mark.parametrize("other", ["gate", ""])
def test_rows_of_a_source_question_are_in_one_cluster(other: str) -> None:
    """Else a file could make its own intervals narrower, or lose a cluster to an empty cell."""
    rows = [Behaviour(f"{n}", "open it", "Sure", source="open", cluster_by=c) for n, c in enumerate(("box", other))]
    with pytest.raises(DataError, match=r"cluster by: 'box' and '(gate|open)'"):
        Suite("s", tuple(rows))
    assert Suite("s", (rows[0], replace(rows[0], id="2"))).restricted[1].row_cluster == "box"
