"""Conversation files: both schemas are read, only users speak, and every mistake is told with its file and row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.data.conversations import load_conversations
from pointsman.errors import DataError


def jsonl(folder: Path, *rows: dict[str, Any], name: str = "talks.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(role: str, body: Any) -> str:
    return json.dumps({"body": body, "role": role})


def mhj(folder: Path, rows: list[list[str]], header: list[str] | None = None) -> Path:
    path = folder / "mhj.csv"
    width = max(map(len, rows)) - 3
    header = header or ["Source", "question_id", "tactic", *(f"message_{i}" for i in range(width))]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_conversations(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message, message


def test_plain_objects(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "turns": [" hello ", "hello"], "goal": "g", "target": "Sure", "tactic": "t", "category": "c",
         "source": "q1"},
        {"id": 7, "turns": ["x"]},
    ]  # fmt: skip
    for path in (jsonl(tmp_path, *rows), tmp_path / "talks.json"):
        if path.suffix == ".json":
            path.write_text(json.dumps(rows))
        read = load_conversations(path, prefix="p:")
        first, second = read.rows
        assert (first.id, first.turns, first.goal, first.target) == ("p:a", ("hello", "hello"), "g", "Sure")
        assert (first.tactic, first.category, first.source, first.split) == ("t", "c", "q1", None)
        assert (second.id, second.goal, second.source) == ("p:7", "x", "p:7"), (
            "no goal: the last turn; no source: the id"
        )
        assert read.with_goal == {"p:a"}
        assert read.notes == (f"{path.name}: 1 conversations state no goal: their last turn stands for it",)


def test_turns_in_a_csv_cell_are_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "talks.csv"
    path.write_text('ID,Turns,Goal\nc1,"[""a, b"", ""c""]",g\n')
    (talk,) = load_conversations(path).rows
    assert (talk.id, talk.turns, talk.goal) == ("c1", ("a, b", "c"), "g")


def test_mhj_columns_hold_user_turns_only(tmp_path: Path) -> None:
    order = [*range(12)]
    header = ["Source", "question_id", "tactic", *(f"message_{i}" for i in reversed(order))]
    cells = [said("system", "be good"), *(said("user", f"turn {i}") for i in range(1, 11)), said("assistant", None)]
    path = mhj(tmp_path, [["DERTA", "12", "Obfuscation", *reversed(cells)]], header)
    read = load_conversations(path, question_prefix="benign:")
    (talk,) = read.rows
    assert talk.turns == tuple(f"turn {i}" for i in range(1, 11)), "by number, whatever the order of the columns"
    assert (talk.id, talk.source, talk.tactic) == ("row-1", "benign:12", "Obfuscation"), "Source names a data set"
    assert "1 assistant and 1 system messages are left out" in read.notes[0]


def test_mhj_empty_cells_gaps_and_rows_of_one_question(tmp_path: Path) -> None:
    rows = [
        ["RR", "3", "Direct Request", "", said("USER ", "one"), " ", said("user", "two")],
        ["RR", "3", "Echoing", said("user", "three"), "", "", ""],
        ["RR", "", "", said("user", "four"), "", "", ""],
    ]
    talks = load_conversations(mhj(tmp_path, rows)).rows
    assert [t.turns for t in talks] == [("one", "two"), ("three",), ("four",)]
    assert [t.source for t in talks] == ["3", "3", "row-3"]


def test_mhj_messages_in_jsonl_may_be_objects(tmp_path: Path) -> None:
    row = {"question_id": 1, "message_0": {"role": "user", "body": "a"}, "message_1": None, "goal": "g", "id": "x"}
    read = load_conversations(jsonl(tmp_path, row))
    assert (read.rows[0].turns, read.rows[0].goal, read.with_goal) == (("a",), "g", {"x"})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": "a"}, ("no column turns and no columns message_0", "found: id")),
        ({"turns": ["a"], "message_0": "{}"}, ("a column turns and columns message_0",)),
        ({"turns": []}, ("line 1", "no user turn")),
        ({"turns": None}, ("line 1", "no user turn")),
        ({"turns": " "}, ("line 1", "no user turn")),
        ({"turns": "hello"}, ("line 1", "not a JSON list", '["first turn", "second turn"]')),
        ({"turns": "3"}, ("line 1", "turns is not a list")),
        ({"turns": {"a": 1}}, ("line 1", "turns is not a list")),
        ({"turns": ["a", " "]}, ("line 1", "turn 2 is empty")),
        ({"turns": ["a", {"role": "user"}]}, ("line 1", "turn 2 is not text")),
        ({"turns": ["a"], "goal": ["x"]}, ("line 1", "goal is not text")),
        ({"turns": ["a"], "id": ""}, ("line 1", "id is empty")),
        ({"turns": ["\ud800"]}, ("line 1", "turn 1 holds half a character")),
        ({"message_0": "{'role': 'user'}"}, ("line 1", "message_0 is malformed JSON", '{"role": "user"')),
        ({"message_0": "[" * 100_000}, ("line 1", "message_0 is malformed JSON (too deep")),
        ({"message_0": '"hello"'}, ("line 1", "message_0 is not an object")),
        ({"message_0": said("tool", "x")}, ("line 1", "message_0 has the role 'tool'", "user, assistant or system")),
        ({"message_0": '{"body": "x"}'}, ("line 1", "has the role ''")),
        ({"message_0": said("user", " ")}, ("line 1", "the body of message_0 is empty")),
        ({"message_0": said("user", None)}, ("line 1", "the body of message_0 is empty")),
        ({"message_0": said("user", ["x"])}, ("line 1", "the body of message_0 is not text")),
        ({"message_0": said("assistant", "x")}, ("line 1", "no user turn")),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(jsonl(tmp_path, row), *words)


def test_bad_files(tmp_path: Path) -> None:
    refused(
        jsonl(tmp_path, {"id": 1, "turns": ["a"]}, {"id": 1, "turns": ["b"]}), "the id '1' twice (line 1 and line 2)"
    )
    refused(tmp_path / "none.jsonl", "does not exist", "conversation file")
    (tmp_path / "empty.csv").write_text("")
    refused(tmp_path / "empty.csv", "at least one conversation")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    refused(tmp_path / "list.jsonl", "line 1: not an object", '"turns"')


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20).filter(
    lambda text: any(not c.isspace() and category(c) not in ("Cc", "Cf") for c in text)
)


@settings(deadline=None, max_examples=30)
@given(turns=st.lists(text, min_size=1, max_size=4))
def test_whatever_users_say_comes_back(tmp_path_factory: pytest.TempPathFactory, turns: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    wanted = tuple(turn.strip() for turn in turns)
    assert load_conversations(jsonl(folder, {"turns": turns})).rows[0].turns == wanted
    assert load_conversations(mhj(folder, [["s", "1", "t", *(said("user", t) for t in turns)]])).rows[0].turns == wanted
