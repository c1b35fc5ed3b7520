"""The answers of a run, read to be judged again; the folder may be damaged, or a stranger's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from judged_runs import runs
from pointsman.data.types import Conversation
from pointsman.errors import RunError
from pointsman.judges.refusal import RefusalJudge
from pointsman.judges.types import Verdict
from pointsman.runs.answers import (
    COMPLETIONS,
    EARLIER_TURN,
    UNREADABLE,
    KeptAnswer,
    kept_name,
    read_answers,
    read_verdicts,
    written_verdicts,
)
from pointsman.runs.run import Run

__all__ = ["runs"]


def change(folder: Path, change: Callable[[list[dict[str, Any]]], list[Any]]) -> None:
    """Rewrite the completions of a run, as its owner could."""
    rows = [json.loads(line) for line in (folder / COMPLETIONS).read_text().splitlines()]
    lines = (row if isinstance(row, str) else json.dumps(row) for row in change(rows))
    with Run.open(folder) as run:
        run.write_text(COMPLETIONS, "".join(f"{line}\n" for line in lines))


def test_all_that_a_judge_may_read_is_found(runs: Path) -> None:
    kept = read_answers(runs / "audit")
    assert len(kept.answers) == 204
    assert kept.left_out == {}
    assert kept.stages[:3] == ("base", "benign", "borderline")
    single = [a for a in kept.answers if not isinstance(a.asked, Conversation)]
    assert all(a.end_known and a.asked.source not in ("", a.asked.id) for a in single)
    many = [a for a in kept.answers if isinstance(a.asked, Conversation)]
    assert len(many) == 12
    assert all(len(a.asked.turns) > 1 and a.asked.goal == a.asked.turns[-1] for a in many)
    assert "Of 12 conversations the run keeps the turns, and not the request" in kept.notes()[0]
    assert "Of 12 answers the run does not know whether they reached the token limit" in kept.notes()[1]


def test_a_run_judges_its_answers_again_as_it_did(runs: Path) -> None:
    """What the judge of the run is handed is what it was handed then, but for the goals of conversations."""
    import golden_world

    for name in ("audit", "evaluate"):
        kept = read_answers(runs / name)
        found = golden_world.GoldenJudge().judge([a.asked for a in kept.answers], [a.answer for a in kept.answers])
        for answer, verdict in zip(kept.answers, found, strict=True):
            if isinstance(answer.asked, Conversation):
                assert verdict in (answer.verdict, Verdict("unscored", None, "no answer to this request is known"))
            else:
                assert verdict == answer.verdict, name


def test_without_the_journal_the_file_alone_speaks(runs: Path) -> None:
    folder = runs / "audit"
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(line for line in lines if line.startswith('{"key": "pointsman:')))
    kept = read_answers(folder)
    assert kept.left_out == {EARLIER_TURN: 12}  # nothing says how many turns a conversation has
    assert len(kept.answers) == 192
    assert not any(a.end_known for a in kept.answers)
    assert all(a.asked.source == a.asked.id for a in kept.answers)
    correct = next(a for a in kept.answers if a.verdict.label == "correct")
    assert correct.verdict.success


def test_a_conversation_that_fell_before_its_request_is_left_out(runs: Path) -> None:
    def shorten(rows: list[dict[str, Any]]) -> list[Any]:
        row = next(row for row in rows if "tactic" in row)
        row["prompt"] = row["prompt"].split(" / ")[0]
        return rows

    change(runs / "audit", shorten)
    kept = read_answers(runs / "audit")
    assert kept.left_out == {EARLIER_TURN: 1}
    assert f"Not judged again: 1 {EARLIER_TURN}." in kept.notes()


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        '{"stage": 1}',
        '{"stage":"base","id":"x","category":"","prompt":"p","response":"r","label":"?"}',
    ],
)
def test_a_line_that_is_no_answer_is_counted(runs: Path, line: str) -> None:
    change(runs / "audit", lambda rows: [*rows, line])
    assert read_answers(runs / "audit").left_out == {UNREADABLE: 1}


def test_an_answer_that_stands_twice_is_read_once(runs: Path) -> None:
    change(runs / "audit", lambda rows: [*rows, rows[0]])
    kept = read_answers(runs / "audit")
    assert len(kept.answers) == 204
    assert kept.left_out == {UNREADABLE: 1}


def test_what_is_no_finished_run_is_refused(runs: Path) -> None:
    with pytest.raises(RunError, match="is not a folder"):
        read_answers(runs / "none")
    (runs / "audit/results.json").unlink()
    with pytest.raises(RunError, match="has no results yet"):
        read_answers(runs / "audit")
    (runs / "evaluate" / COMPLETIONS).unlink()
    with pytest.raises(RunError, match=r"completions\.jsonl cannot be read"):
        read_answers(runs / "evaluate")


def test_nothing_in_the_folder_is_followed(runs: Path) -> None:
    secret = runs / "secret.jsonl"
    secret.write_text('{"stage": "s"}\n')
    (runs / "audit" / COMPLETIONS).unlink()
    (runs / "audit" / COMPLETIONS).symlink_to(secret)
    with pytest.raises(RunError, match="symbolic link"):
        read_answers(runs / "audit")


def test_verdicts_are_read_as_they_were_written(runs: Path) -> None:
    kept = read_answers(runs / "audit")
    judge = RefusalJudge()
    said = judge.judge([a.asked for a in kept.answers], [a.answer for a in kept.answers])
    with Run.open(runs / "audit") as run:
        run.write_text(kept_name(judge), written_verdicts(judge, kept.answers, said))
    assert read_verdicts(runs / "audit", kept_name(judge), kept) == ("refusal", said)


def test_verdicts_on_other_answers_are_none(runs: Path) -> None:
    kept = read_answers(runs / "audit")
    first, *rest = kept.answers
    other = KeptAnswer(first.stage, first.asked, type(first.answer)("something else"), True, first.verdict)
    said = [Verdict("refused", 0.0)] * len(kept.answers)
    name = kept_name(RefusalJudge())
    with Run.open(runs / "audit") as run:
        run.write_text(name, written_verdicts(RefusalJudge(), [other, *rest], said))
    found = read_verdicts(runs / "audit", name, kept)[1]
    assert found[0] is None
    assert None not in found[1:]
    with pytest.raises(RunError, match="holds no verdicts on the answers of"):
        read_verdicts(runs / "audit", name, read_answers(runs / "evaluate"))
