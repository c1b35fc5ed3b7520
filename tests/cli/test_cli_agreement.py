"""`pointsman agree` and `pointsman label`: judges against each other, and against people."""

from __future__ import annotations

import csv
import io
import stat
from pathlib import Path

import pytest

from cli.conftest_cli import Cli, cli
from judged_runs import fill, rows_of, runs
from pointsman.data.types import Behaviour
from pointsman.jobs.judge.sheet import draw, written
from pointsman.judges.human import answer_id
from pointsman.judges.types import Answer, Verdict
from pointsman.runs.answers import KeptAnswer, read_answers

__all__ = ["cli", "runs"]


def right(row: dict[str, str]) -> str:
    """What a careful reader writes."""
    if row["answer"].startswith("Sorry , i can not help"):
        return "refused"
    return "complied" if row["answer"].startswith("Sure") else "garbage"


def kept(stage: str, name: str, text: str) -> KeptAnswer:
    return KeptAnswer(stage, Behaviour(name, name, "", "", name), Answer(text), True, Verdict("refused", 0.0))


# ---------------------------------------------------------------------- the sheet


def test_a_sheet_is_blind_shuffled_and_found_again(runs: Path, cli: Cli) -> None:
    done = cli("label", "audit", "--out", "sheet.csv", "--precision", "0.2")
    assert (done.code, done.out) == (0, "sheet.csv\n")
    assert "21 labels tell any rate to ±20 points" in done.err
    assert "Write refused, complied, wrong, garbage or unsure into the column label" in done.err
    sheet = rows_of(runs / "sheet.csv")
    assert len(sheet) == 21
    assert sheet[0].keys() == {"id", "request", "answer", "label", "remarks"}
    text = (runs / "sheet.csv").read_text(encoding="utf-8-sig")
    answers = read_answers(runs / "audit").answers
    hidden = {"golden", *(a.stage for a in answers if len(a.stage) > 9), *(a.asked.id for a in answers)}
    assert not [word for word in hidden if word in text]
    known = {a.id: a for a in answers}
    assert len({row["id"] for row in sheet} & known.keys()) == 21
    stages = [known[row["id"]].stage for row in sheet]
    assert len(set(stages)) > 5
    assert stages != sorted(stages, key=list(dict.fromkeys(a.stage for a in answers)).index)
    assert stat.S_IMODE((runs / "sheet.csv").stat().st_mode) == 0o600


def test_the_same_seed_draws_the_same_sheet_and_another_another() -> None:
    answers = [kept(f"s{n % 3}", f"q{n}", "text") for n in range(60)]
    assert draw(answers, 9, 0) == draw(answers, 9, 0) != draw(answers, 9, 1)
    assert [sum(a.stage == f"s{n}" for a in draw(answers, 9, 0)) for n in range(3)] == [3, 3, 3]


def test_an_answer_that_was_given_twice_is_labelled_once() -> None:
    answers = [kept(stage, f"q{n}", "text") for n in range(5) for stage in "ab"]
    assert len(draw(answers, 99, 0)) == 5


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_no_cell_is_a_formula(start: str) -> None:
    text = written([kept("s", f"{start}cmd", f'{start}HYPERLINK("http://x")')])
    _, (name, request, answer, *_) = csv.reader(io.StringIO(text, newline=""))
    assert name.startswith("a")
    for cell in (request, answer):
        assert cell[0] in "'\ufffd"  # a carriage return is shown as what nobody can show
        assert "cmd" in request
        assert "HYPERLINK" in answer


def test_a_sheet_is_never_written_over(runs: Path, cli: Cli) -> None:
    (runs / "sheet.csv").write_text("my labels")
    assert "exists already" in cli("label", "audit", "--out", "sheet.csv").refusal(notes=2)
    assert (runs / "sheet.csv").read_text() == "my labels"
    assert "does not end in .csv" in cli("label", "audit", "--out", "sheet").refusal(notes=2)
    assert "--precision is 0.9" in cli("label", "audit", "--out", "new.csv", "--precision", "0.9").refusal()


# ---------------------------------------------------------------------- agreement


def test_judges_and_people_are_held_against_each_other(runs: Path, cli: Cli) -> None:
    assert cli("judge", "audit", "--judge", "refusal", "--out", "again", "--no-keep").code == 0
    assert cli("label", "audit", "--out", "sheet.csv").code == 0
    fill(runs / "sheet.csv", runs / "filled.csv", right)
    done = cli("agree", "audit", "again", "filled.csv", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["judges"] == ["golden", "refusal", "human:file=filled.csv"]
    assert [(p["first"], p["second"]) for p in found["pairs"]] == [
        ("golden", "refusal"), ("golden", "human:file=filled.csv"), ("refusal", "human:file=filled.csv"),
    ]  # fmt: skip
    assert all(0 < p["agreement"]["kappa"] <= 1 for p in found["pairs"])
    assert [sum(map(sum, p["confusion"]["counts"])) for p in found["pairs"]] == [204, 204, 204]
    fsour = {r["judge"]: r for r in found["rates"] if r["stage"] == "fsour"}
    assert {r["rate"]["k"] for r in fsour.values()} == {12}
    assert found["truth"] is None
    assert found["measured"] == []


def test_what_was_kept_with_the_run_takes_part(runs: Path, cli: Cli) -> None:
    assert "Only one judge, golden, has judged audit" in cli("agree", "audit").refusal()
    assert cli("judge", "audit", "--judge", "refusal", "--out", "again").code == 0
    assert cli("agree", "audit", "--json").json["judges"] == ["golden", "refusal"]
    (runs / "audit/artefacts/verdicts/other.jsonl").write_text("[]\n{\n")
    done = cli("agree", "audit", "--json")
    assert done.json["judges"] == ["golden", "refusal"]
    assert "other.jsonl holds no verdicts" in done.err


def test_rates_are_corrected_for_measured_errors_and_say_so(runs: Path, cli: Cli) -> None:
    assert cli("judge", "audit", "--judge", "refusal", "--out", "again").code == 0
    assert cli("label", "audit", "--out", "sheet.csv").code == 0
    fill(runs / "sheet.csv", runs / "filled.csv", right)
    found = cli("agree", "audit", "filled.csv", "--truth", "filled.csv", "--json").json
    assert found["truth"] == "filled.csv"
    measured = {one["judge"]: one["errors"] for one in found["measured"]}
    assert measured.keys() == {"golden", "refusal"}  # the truth is not corrected by itself
    assert measured["refusal"]["sensitivity"]["n"] + measured["refusal"]["specificity"]["n"] == 76
    for rate in found["rates"]:
        if rate["judge"] in measured:
            assert 0 <= rate["corrected"]["low"] <= rate["corrected"]["rate"] <= rate["corrected"]["high"] <= 1
        else:
            assert rate["corrected"] is None
    done = cli("agree", "audit", "--truth", "filled.csv")
    assert "refusal: corrected for sensitivity" in done.out
    assert "they hold if each judge errs in every stage as it did on the labelled answers" in done.out


def test_tables_fit_eighty_columns(runs: Path, cli: Cli) -> None:
    assert cli("judge", "evaluate", "--judge", "refusal", "--out", "again").code == 0
    assert cli("label", "evaluate", "--out", "sheet.csv").code == 0
    fill(runs / "sheet.csv", runs / "filled.csv", lambda row: "unsure" if "a" in row["id"][3:] else right(row))
    done = cli("agree", "evaluate", "filled.csv", "--truth", "filled.csv")
    assert done.code == 0, done.err
    tables = done.out.partition("corrected for sensitivity")[0].splitlines()[:-1]
    assert len(tables) > 30
    assert max(len(line.rstrip()) for line in tables) <= 80
    assert "Not scored, and in no rate: human " in done.out


def test_verdicts_and_labels_of_other_answers_are_refused(runs: Path, cli: Cli) -> None:
    assert cli("judge", "evaluate", "--judge", "refusal", "--out", "again").code == 0
    assert "holds no verdicts on the answers of audit" in cli("agree", "audit", "again").refusal()
    assert cli("label", "audit", "--out", "sheet.csv").code == 0
    assert "labels no answer of audit" in cli("agree", "audit", "sheet.csv").refusal()
    other = runs / "other.csv"
    other.write_text(f"id,label\n{answer_id(('q',), 'never said')},refused\n")
    assert "labels no answer of audit" in cli("agree", "audit", "--truth", "other.csv").refusal()
    assert "does not exist" in cli("agree", "audit", "none.csv").refusal()
