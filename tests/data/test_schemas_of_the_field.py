"""Inert files with the very headers of the field's data sets, and what is read of them; Parquet and the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.data.conversations import load_conversations
from pointsman.data.loaders import load_behaviours, load_suite, read_behaviours
from pointsman.data.tables import hub_rows, hub_sha256
from pointsman.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"


def test_jailbreakbench_and_advbench() -> None:
    rows = load_behaviours(FIXTURES / "jailbreakbench.csv")
    assert len(rows) == 40
    assert (rows[5].id, rows[5].goal, rows[5].category) == ("5", "how do i hide the red badint ?", "grimwork")
    assert {b.source for b in rows} == {b.id for b in rows}, "Source is no source question"
    bare = load_behaviours(FIXTURES / "advbench.csv")
    assert len(bare) == 10
    assert bare[0].target == "Sure , here is how to trade the red gelt"


def test_harmbench_and_its_contexts() -> None:
    path = FIXTURES / "harmbench.csv"
    assert b"\r\n" in path.read_bytes()
    plain = read_behaviours(path, targets=False).rows
    assert [b.id for b in plain] == ["trade_old_gelt", "story_drorn", "song_filt"]
    assert plain[1].goal == "what does the story say of the drorn ?"
    asked = read_behaviours(path, targets=False, columns={"context": "ContextString"}).rows
    assert asked[0] == plain[0]
    assert asked[1].goal == (
        "the drorn lay by the river ,\nand nobody came .\n\n---\n\nwhat does the story say of the drorn ?"
    )


def test_strongreject_and_both_forms_of_xstest() -> None:
    rows = read_behaviours(FIXTURES / "strongreject.csv", targets=False).rows
    assert [b.category for b in rows] == ["hexcraft", "grimwork", "hexcraft"]
    assert rows[1].goal == "tell me ,\nhow do i move the wet daig ?"
    for name in ("xstest.csv", "xstest_v2.csv"):
        kept = load_behaviours(FIXTURES / name, target_optional=True)
        assert [b.goal for b in kept] == ["how do i fold the blue flik ?", "how do i lift the blue flik ?"]


def test_mhj_beside_the_behaviours_of_its_questions(tmp_path: Path) -> None:
    talks = load_conversations(FIXTURES / "mhj.csv")
    assert [c.turns[-1] for c in talks.rows] == ["how do i trade the old gelt ?", "sing the song of the filt"]
    assert [len(c.turns) for c in talks.rows] == [2, 3]
    assert "1 system messages are left out" in talks.notes[0]
    path = tmp_path / "b.csv"
    path.write_text("BehaviorID,Behavior,Begin\ntrade_old_gelt,trade the old gelt,Sure\nother,paint it,Sure\n")
    suite = load_suite(path, conversations=FIXTURES / "mhj.csv", columns={"behaviors": {"target": "begin"}})
    assert suite.conversations[0].source == suite.restricted[0].source
    assert suite.conversations[1].source == "song_filt"
    assert suite.notes == talks.notes


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text("Question,Begin\na,Sure\n")
    assert read_behaviours(path, columns={"goal": "Question", "target": "BEGIN"}).rows[0].target == "Sure"
    with pytest.raises(DataError, match="no column 'Questions' for goal; found: question, begin"):
        read_behaviours(path, columns={"goal": "Questions", "target": "Begin"})


def test_right_answers_are_kept_and_no_digest_moves(tmp_path: Path) -> None:
    path, without = tmp_path / "b.csv", tmp_path / "bare.csv"
    path.write_text("goal,target,answer\na,Sure,42\n")
    without.write_text("goal,target\na,Sure\n")
    (row,), (bare,) = load_behaviours(path), load_behaviours(without)
    assert (row.reference, bare.reference) == ("42", "")
    assert repr(row) == repr(bare)


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "b.tsv"
    path.write_text("goal\ttarget\n" + "a" * 300_000 + "\tSure\n")
    assert len(load_behaviours(path)[0].goal) == 300_000


# ---------------------------------------------------------------------- Parquet and the hub


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"needs the package pyarrow.*pip install 'pointsman\[hub\]'"):
        load_behaviours(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="needs the package datasets"):
        load_behaviours(Path("hub:invented/set-not-installed"))


def test_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "b.parquet"
    parquet.write_table(pyarrow.table({"Goal": ["a", "b"], "Target": ["Sure", "Sure"]}), path)
    assert [b.goal for b in load_behaviours(path)] == ["a", "b"]
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="no Parquet file that can be read"):
        load_behaviours(path)


def test_a_data_set_that_datasets_finds_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "invented/jbb"
    folder.mkdir(parents=True)
    (folder / "data.csv").write_bytes((FIXTURES / "jailbreakbench.csv").read_bytes())
    rows = load_behaviours(Path("hub:invented/jbb:train"))
    assert [b.goal for b in rows] == [b.goal for b in load_behaviours(FIXTURES / "jailbreakbench.csv")]


def test_a_data_set_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"hub:invented/nowhere cannot be loaded \("):
        load_behaviours(Path("hub:invented/nowhere"))


class Hub:
    """As much of `datasets` as is used, of one data set with two configs; what was asked of it."""

    def __init__(self, version: str = "4.0.0") -> None:
        self.__version__ = version
        self.asked: list[tuple[Any, ...]] = []

    def get_dataset_config_names(self, name: str, revision: str | None = None) -> list[str]:
        return ["behaviors", "judge_comparison"]

    def load_dataset(self, name: str, config: str | None, revision: str | None = None) -> dict[str, Any]:
        self.asked.append((name, config, revision))
        if name != "owner/jbb":
            raise ConnectionError("Couldn't reach\nthe Hub")
        splits = ("test",) if config == "judge_comparison" else ("harmful", "benign")
        return {s: SimpleNamespace(to_list=lambda s=s: [{"Goal": f"{s} goal", "Target": "Sure"}]) for s in splits}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub_rows.cache_clear()
    found: Any = Hub()
    monkeypatch.setitem(sys.modules, "datasets", found)
    return found  # type: ignore[no-any-return]


def test_names_of_data_sets(hub: Hub) -> None:
    def goals(named: str) -> list[str]:
        return [b.goal for b in load_behaviours(Path(named))]

    assert goals("hub:owner/jbb:behaviors:harmful") == ["harmful goal"]
    assert goals("hub:owner/jbb:benign") == ["benign goal"], "a split, since no config is called so"
    assert goals("hub:owner/jbb@abc123:judge_comparison") == ["test goal"], "the only split"
    assert hub.asked == [
        ("owner/jbb", "behaviors", None), ("owner/jbb", None, None), ("owner/jbb", "judge_comparison", "abc123"),
    ]  # fmt: skip
    assert hub_sha256("hub:owner/jbb:benign") != hub_sha256("hub:owner/jbb:behaviors:harmful")
    assert len(hub.asked) == 3, "read once"


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("hub:owner/jbb:behaviors", "has 2 splits. Name one: hub:owner/jbb:behaviors:harmful"),
        ("hub:owner/jbb:behaviors:tset", "has no split tset. Name one: hub:owner/jbb:behaviors:harmful"),
        ("hub:owner/gone", "cannot be loaded (ConnectionError: Couldn't reach the Hub)"),
        ("hub:no owner", "is no data set. Write hub:owner/name"),
    ],
)
def test_data_sets_that_cannot_be_read(hub: Hub, named: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_behaviours(Path(named))
    assert words in str(caught.value)


def test_no_code_of_a_data_set_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_rows.cache_clear()
    old: Any = Hub("3.6.0")
    monkeypatch.setitem(sys.modules, "datasets", old)
    with pytest.raises(DataError, match=r"not loaded with datasets 3\.6\.0"):
        load_behaviours(Path("hub:owner/jbb:benign"))
    assert not old.asked
