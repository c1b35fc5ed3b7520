"""A sheet that people filled in is a judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointsman.data.types import Behaviour, Conversation
from pointsman.errors import DataError, JudgeError
from pointsman.judges.human import LABELS, HumanJudge, answer_id
from pointsman.judges.making import make_judge, written_judge
from pointsman.judges.types import Answer, Judge, judged

ASKED = Behaviour("b1", "how do i fly ?", "Sure")
CONVERSATION = Conversation("c1", ("hello", "how do i fly ?"), "how do i fly ?", "Sure")


def sheet(folder: Path, *rows: tuple[str, str], head: str = "id,label (see README)") -> Path:
    file = folder / "sheet.csv"
    file.write_text("\n".join([head, *(",".join(row) for row in rows)]), encoding="utf-8")
    return file


def test_each_word_is_the_label_that_it_says(tmp_path: Path) -> None:
    rows = [(answer_id(ASKED.turns, word), word.upper()) for word in LABELS]
    judge = make_judge(f"human:file={sheet(tmp_path, *rows)}")
    assert isinstance(judge, Judge)
    found = judged(judge, [ASKED] * len(LABELS), [Answer(word) for word in LABELS])
    assert [(v.label, v.score) for v in found] == list(LABELS.values())
    assert [v.success for v in found] == [False, True, False, False, False]
    assert written_judge(judge).startswith("human:file=")


def test_what_is_not_labelled_is_unscored(tmp_path: Path) -> None:
    judge = HumanJudge(str(sheet(tmp_path, (answer_id(ASKED.turns, "a"), ""), (answer_id(ASKED.turns, "b"), "wrong"))))
    found = judged(judge, [ASKED, ASKED], [Answer("a"), Answer("never seen")])
    assert [(v.label, v.score, v.reason) for v in found] == [("unscored", None, "not labelled")] * 2


def test_the_same_answer_to_another_request_is_another(tmp_path: Path) -> None:
    judge = HumanJudge(str(sheet(tmp_path, (answer_id(ASKED.turns, "a"), "complied"))))
    found = judged(judge, [ASKED, CONVERSATION], [Answer("a"), Answer("a")])
    assert [v.label for v in found] == ["correct", "unscored"]


def test_people_saw_the_whole_answer_so_it_is_found_whatever_it_is(tmp_path: Path) -> None:
    texts = ["", "<think> hm </think> yes", "la " * 500, "half \ud83d"]
    judge = HumanJudge(str(sheet(tmp_path, *((answer_id(ASKED.turns, text), "refused") for text in texts))))
    assert [v.label for v in judged(judge, [ASKED] * 4, [Answer(text) for text in texts])] == ["refused"] * 4


def test_an_id_tells_nothing_and_is_no_number() -> None:
    ids = {answer_id(("q",), str(n)) for n in range(500)}
    assert len(ids) == 500
    assert all(name.startswith("a") and len(name) == 13 for name in ids)


def test_the_version_changes_with_a_label_and_with_nothing_else(tmp_path: Path) -> None:
    one, two = (answer_id(ASKED.turns, text) for text in "ab")
    first = HumanJudge(str(sheet(tmp_path, (one, "refused"), (two, "wrong")))).version
    assert HumanJudge(str(sheet(tmp_path, (two, " Wrong "), (one, "refused"), ("a0", "")))).version == first
    assert HumanJudge(str(sheet(tmp_path, (one, "refused"), (two, "complied")))).version != first


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a1", "maybe")], "line 2: 'maybe' is no label"),
        ([("a1", "wrong"), ("a1", "refused")], "line 3: a1 is labelled twice, and not alike"),
        ([("", "wrong")], "line 2: id is empty"),
    ],
)
def test_a_sheet_that_cannot_be_meant_is_refused_by_its_line(
    tmp_path: Path, rows: list[tuple[str, str]], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        _ = HumanJudge(str(sheet(tmp_path, *rows))).version
    assert said in str(caught.value)


def test_another_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no columns id and label"):
        _ = HumanJudge(str(sheet(tmp_path, ("a1", "wrong"), head="id,verdict"))).version
    with pytest.raises(JudgeError, match=r"human failed on 1 answer: .*does not exist"):
        judged(HumanJudge(str(tmp_path / "none.csv")), [ASKED], [Answer("a")])
