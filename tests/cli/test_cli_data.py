"""``data check`` says what is understood of a prompt file; audits take conversations, columns and a system prompt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest_cli import EFFORT, Cli, testbed_rows, write_csv

from pointsman.jobs.audit.columns import mapped_columns

FIXTURES = Path(__file__).parents[1] / "data/fixtures"


@pytest.mark.parametrize(
    ("name", "kind", "options", "kept"),
    [
        ("jailbreakbench", "behaviors", (), 40), ("advbench", "behaviors", (), 10),
        ("harmbench", "benign", ("--as", "benign"), 3), ("strongreject", "benign", ("--as", "benign"), 3),
        ("xstest", "borderline", (), 2), ("xstest_v2", "borderline", (), 2), ("mhj", "conversations", (), 2),
    ],
)  # fmt: skip
def test_the_data_sets_of_the_field(cli: Cli, name: str, kind: str, options: tuple[str, ...], kept: int) -> None:
    done = cli("data", "check", FIXTURES / f"{name}.csv", "--json", *options)
    assert done.code == 0, done.err
    found = done.json
    assert found["schema"] == "pointsman.data-check/1"
    assert (found["ok"], found["kind"], found["kept"]) == (True, kind, kept)
    assert found["data_set"].lower().replace(" ", "") == name.removesuffix("_v2")
    assert len(found["each_row"]) == found["rows"] == kept + found["left_out"]
    said = cli("data", "check", FIXTURES / f"{name}.csv", *options)
    assert said.code == 0
    assert all(len(line) <= 80 for line in said.out.splitlines() if not line.startswith(("Note", "/")))
    for word in ("gelt ?", "flik ?", "song of"):
        assert word not in said.out + done.out, "no prompt is shown"


def test_splits_and_what_they_suffice_for(cli: Cli) -> None:
    splits = cli("data", "check", FIXTURES / "jailbreakbench.csv", "--json").json["splits"]
    assert splits["audit"]["discovery"] == {"prompts": 12, "sources": 12}
    assert splits["audit"]["test"] == {"prompts": 28, "sources": 28}
    assert splits["audit"]["enough"] == "28 tested: fewer than 100, so intervals are wide"
    assert sum(splits["steer"][s]["prompts"] for s in ("discovery", "validation", "test")) == 40
    few = cli("data", "check", FIXTURES / "mhj.csv", "--json").json["splits"]["steer"]
    assert few == {
        "enough": "too few: conversations: 0 source questions in the discovery split (2 in all), and 2 are needed"
    }


def test_every_row_that_an_audit_refuses_is_named(cli: Cli, here: Path) -> None:
    write_csv(
        here / "b.csv", [["a", "Sure", "x"], ["", "Sure", "x"], ["b", "", "x"], ["A ", "Sure", "y"], ["ж", "S", ""]]
    )
    done = cli("data", "check", "b.csv")
    assert done.code == 2
    for words in ("line 3: goal is empty", "line 4: target is empty", "repeats line 2: one cluster"):
        assert words in " ".join(done.out.split())
    assert done.err == "pointsman: an audit refuses b.csv: b.csv, line 3: goal is empty (and 1 more rows).\n"
    found = json.loads(cli("data", "check", "b.csv", "--json").out)
    assert [row["kept"] for row in found["each_row"]] == [True, False, False, True, True]
    assert found["scripts"] == {"latin": 2, "cyrillic": 1}
    assert (found["sources"], found["repeated"], found["refused"], found["categories"]) == (2, 1, 2, {"x": 1, "y": 1})
    assert not found["ok"]


def test_files_that_are_refused_whole(cli: Cli, here: Path) -> None:
    write_csv(here / "one.csv", [["a", "Sure", "x"]])
    done = cli("data", "check", "one.csv")
    assert done.code == 2
    assert "Too few source questions (1) for 2 splits" in done.err
    assert "no column target" in cli("data", "check", FIXTURES / "strongreject.csv").refusal()
    assert "nowhere.csv does not exist" in cli("data", "check", "nowhere.csv").refusal()
    (here / "u.csv").write_text("prompt,type,label,focus\nx,y,unsafe,z\n")
    assert "holds only unsafe prompts" in cli("data", "check", "u.csv").err


def test_columns_are_mapped(cli: Cli, here: Path) -> None:
    write_csv(here / "b.csv", testbed_rows("restricted", 12), header=("Question", "Begin", "Topic"))
    assert "no column goal" in cli("data", "check", "b.csv").refusal()
    options = ("--column", "goal=Question", "--column", "target=begin", "--column", "category=Topic")
    found = cli("data", "check", "b.csv", "--json", *options).json
    assert found["columns"] == {"question": "goal", "begin": "target", "topic": "category"}
    assert "no column 'Qestion'" in cli("data", "check", "b.csv", "--column", "goal=Qestion").refusal()
    assert "Did you mean goal?" in cli("data", "check", "b.csv", "--column", "gaol=Question").err
    contexts = cli("data", "check", FIXTURES / "harmbench.csv", "--as", "benign")
    assert "1 rows have a context (ContextString), which is not asked" in contexts.out


def test_what_is_said_of_columns() -> None:
    files = ("behaviors", "benign")
    assert mapped_columns(("goal=Q", " benign.goal = P", "target=a=b"), files) == {
        "behaviors": {"goal": "Q", "target": "a=b"}, "benign": {"goal": "P"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (("goal",), "names no column"), (("goal=",), "names no column"), (("aim=Q",), "unknown use 'aim'"),
        (("borderline.goal=Q",), "'borderline' that is not given"),
        (("goal=Q", "goal=P"), "names goal of behaviors twice"),
        (("conversations.goal=Q",), "'conversations' that is not given"),
    ],
)  # fmt: skip
def test_what_is_said_amiss_of_columns(cli: Cli, here: Path, said: tuple[str, ...], words: str) -> None:
    write_csv(here / "b.csv", testbed_rows("restricted", 12))
    options = [part for each in said for part in ("--column", each)]
    assert words in cli("audit", "testbed", "--behaviors", "b.csv", *options).refusal()


def test_an_audit_with_conversations_columns_and_a_system_prompt(cli: Cli, here: Path, model: Path) -> None:
    rows = testbed_rows("restricted", 30)
    write_csv(here / "b.csv", rows, header=("Question", "Target", "Category"))
    talks = [{"turns": ["hello", goal], "goal": goal, "target": target} for goal, target, _ in rows]
    (here / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (here / "system.txt").write_text("you are kind .\n")
    asked = (
        "audit", model, "--behaviors", "b.csv", "--column", "goal=Question", "--conversations", "talks.jsonl",
        "--system", "@system.txt", "--no-controls", *EFFORT,
    )  # fmt: skip
    done = cli(*asked, "--out", "run", "--json")
    assert done.code == 0, done.err
    results = done.json
    assert results["splits"]["discovery"] == 9
    assert results["splits"]["test"] == 21
    assert results["multi_turn"]["rate"]["n"] == 6 if "rate" in results["multi_turn"] else results["multi_turn"]
    assert "Every request is asked with a system prompt of 14 characters" in results["notes"]
    assert "9 conversations are left out: routers are ranked on their source questions" in results["notes"]
    prompts = json.loads((here / "run/manifest.json").read_text())["config"]["prompts"]
    assert prompts["system"] == "you are kind ."
    assert prompts["columns"] == ["goal=Question"]
    assert sorted(prompts["files"]) == ["behaviors", "conversations"]

    journal = here / "run/journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:8]))
    (here / "run/results.json").unlink()
    (here / "system.txt").unlink()
    again = cli("resume", "run", "--json")
    assert again.code == 0, again.err
    for part in ("splits", "notes", "multi_turn", "base"):
        assert again.json[part] == results[part]


def test_a_system_prompt_is_asked_once_and_only_where_it_is_given(cli: Cli, here: Path, model: Path) -> None:
    from pointsman.engine.load import load
    from pointsman.engine.with_system import with_system

    engine = load(str(model))
    asked = with_system(engine, "you are kind .")
    assert asked.encode(["hello"]) == engine.encode(["hello"], system="you are kind .")
    assert asked.encode(["hello"], system="no .") == engine.encode(["hello"], system="no .")
    assert with_system(engine, None) is engine
    assert asked.info is engine.info
    assert asked.cost is engine.cost
    assert "system prompt is empty" in cli("audit", "testbed", "--system", " ").refusal()
    assert "nowhere.txt cannot be read" in cli("audit", "testbed", "--system", "@nowhere.txt").refusal()


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from pathlib import Path; from pointsman.cli import data; "
        f"data.check(Path({str(FIXTURES / 'jailbreakbench.csv')!r})); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
