"""`pointsman judge`: the answers of a run under another judge, without its model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.conftest_cli import Cli, cli
from judged_runs import fill, rows_of, runs
from pointsman.errors import JudgeError, RunError
from pointsman.jobs.finished import read_results
from pointsman.jobs.judge.claims import conclude
from pointsman.jobs.judge.results import JudgeResults
from pointsman.judges.making import make_judge
from pointsman.judges.refusal import RefusalJudge
from pointsman.judges.types import Answer, Verdict
from pointsman.runs.files import judge_again, judge_json
from pointsman.runs.likelihood import UNLIKELY
from pointsman.runs.run import Run

__all__ = ["cli", "runs"]


def results_of(folder: Path) -> JudgeResults:
    found = read_results(json.loads((folder / "results.json").read_text()))[1]
    assert isinstance(found, JudgeResults)
    return found


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_is_judged_again_and_keeps_the_verdicts(runs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("pointsman.cli.loading.ModelOptions.load", refuse)
    done = cli("judge", "audit", "--judge", "refusal", "--out", "again")
    assert done.code == 0, done.err
    assert "Judging 204 answers of audit (76 of them differ) with refusal" in done.err
    found = results_of(runs / "again")
    assert found.headline in done.out
    assert (found.judge.name, found.before.name, found.model.name) == ("refusal", "golden", "golden")
    assert [stage.stage for stage in found.stages][:2] == ["base", "benign"]
    assert sum(stage.now.n for stage in found.stages) + found.unscored == 204
    assert sum(map(sum, found.confusion.counts)) == 204

    verdicts = rows(runs / "again/artefacts/verdicts.jsonl")
    assert [row.keys() for row in verdicts[:1]] == [{"stage", "id", "answer", "judge", "label", "score", "reason"}]
    assert [(row["stage"], row["id"]) for row in verdicts] == [
        (row["stage"], row["id"]) for row in rows(runs / "audit/artefacts/completions.jsonl")
    ]
    (kept,) = (runs / "audit/artefacts/verdicts").iterdir()
    assert kept.read_bytes() == (runs / "again/artefacts/verdicts.jsonl").read_bytes()
    for name in ("audit", "again"):
        with Run.open(runs / name, read_only=True) as run:
            assert run.finished
            assert run.changes() == []
    kept.write_text("{}\n")
    with Run.open(runs / "audit", read_only=True) as run:
        assert [str(kept) in change for change in run.changes()] == [True]


def test_the_judged_run_is_left_alone_where_one_says_so_or_it_is_in_use(runs: Path, cli: Cli) -> None:
    journal = (runs / "audit/journal.jsonl").read_bytes()
    assert cli("judge", "audit", "--judge", "refusal", "--no-keep", "--out", "one").code == 0
    with Run.open(runs / "audit"):  # another process writes it
        done = cli("judge", "audit", "--judge", "refusal", "--out", "two")
    assert done.code == 0
    assert "note: the verdicts are not kept with the judged run" in done.err
    assert not (runs / "audit/artefacts/verdicts").exists()
    assert (runs / "audit/journal.jsonl").read_bytes() == journal


def test_the_same_judge_changes_no_rate(runs: Path, cli: Cli) -> None:
    assert cli("judge", "audit", "--judge", "golden", "--out", "again").code == 0
    found = results_of(runs / "again")
    assert found.agreement.kappa == 1
    assert "no rate changes" in found.headline
    assert all(stage.difference.n10 == stage.difference.n01 == 0 for stage in found.stages)
    claims = {claim.id: claim for claim in found.claims}
    assert claims["judges_agree"].verdict == "holds"
    assert claims["rates_do_not_depend_on_the_judge"].verdict == "in doubt"  # twelve answers a stage cannot tell
    assert found.unscored == 12  # conversations, whose request the run does not keep as this judge knows it
    assert claims["every_answer_is_scored"].verdict == "fails"


class Failing(RefusalJudge):
    """A judge that counts what it is asked, and dies after some calls."""

    seen: list[str] = []  # noqa: RUF012
    left = 0

    def judge(self, asked: Sequence[Any], answers: Sequence[Answer]) -> list[Verdict]:
        if Failing.left == 0:
            raise ConnectionError("the endpoint hung up")
        Failing.left -= 1
        Failing.seen += [f"{one.id} {answer.text}" for one, answer in zip(asked, answers, strict=True)]
        return super().judge(asked, answers)


def test_a_judge_that_dies_is_asked_nothing_twice(runs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.judges.refusal.RefusalJudge", Failing)
    Failing.seen, Failing.left = [], 2
    done = cli("judge", "audit", "--judge", "refusal", "--out", "again")
    assert done.code == 2
    assert "the endpoint hung up" in done.err
    assert "What was done is kept: `pointsman resume again` continues" in done.err
    assert len(Failing.seen) == 64
    Failing.left = 99
    done = cli("resume", "again")
    assert done.code == 0, done.err
    assert "reading the answers of the run that this one judges" in done.err
    assert len(Failing.seen) == len(set(Failing.seen)) == 76

    whole = cli("judge", "audit", "--judge", "refusal", "--out", "whole")
    assert whole.code == 0
    assert results_of(runs / "again").stages == results_of(runs / "whole").stages


def test_other_answers_are_not_judged_to_the_end(runs: Path, cli: Cli) -> None:
    assert cli("judge", "audit", "--judge", "refusal", "--out", "again").code == 0
    (runs / "again/results.json").unlink()
    file = runs / "audit/artefacts/completions.jsonl"
    text = file.read_text()
    file.write_text(text.replace("i can not help", "i could help", 1))
    assert "The answers of" in cli("resume", "again").refusal(notes=1)
    file.write_text(text)
    assert cli("resume", "again").code == 0
    (runs / "again/results.json").unlink()
    (runs / "audit").rename(runs / "elsewhere")
    assert "is not a folder" in cli("resume", "again").refusal(notes=1)


def test_no_place_of_this_machine_is_shared(runs: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("label", "audit", "--out", "sheet.csv").code == 0
    sheet = fill(runs / "sheet.csv", tmp_path / "filled.csv", lambda row: "refused")
    done = cli("judge", str(runs / "audit"), "--judge", f"human:file={sheet}", "--out", "again")
    assert done.code == 0, done.err
    shared = [p for p in (runs / "again").rglob("*") if p.is_file() and p.name != "local.json"]
    assert len(shared) > 4
    for file in shared:
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    (runs / "again/results.json").unlink()
    assert cli("resume", "again").code == 0
    (runs / "again/results.json").unlink()
    fill(runs / "sheet.csv", sheet, lambda row: "wrong")
    assert "The judge human is version" in cli("resume", "again").refusal()


def test_what_cannot_be_judged_is_refused_in_one_line(runs: Path, cli: Cli) -> None:
    assert cli("judge", "audit", "--judge", "refusal", "--out", "again").code == 0
    assert "is itself a run that judges another" in cli("judge", "again", "--judge", "refusal").refusal()
    assert "is not a folder" in cli("judge", "none", "--judge", "refusal").refusal()
    assert "Unknown judge" in cli("judge", "audit", "--judge", "refusals").refusal()
    (runs / "again/results.json").unlink()
    assert "which loads no model" in cli("resume", "again", "--model", "golden").refusal(notes=1)


def test_a_judge_that_reads_what_no_run_keeps_is_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pointsman.jobs.judge.plan import JudgeAgain, JudgeInputs
    from pointsman.jobs.judge.question import ask

    class Golden(RefusalJudge):
        name = "golden"

    judge = Golden()
    judge.reads = frozenset({"pictures"})  # type: ignore[arg-type]
    monkeypatch.setattr("pointsman.jobs.judge.question.make_judge", lambda written: judge)
    with pytest.raises(JudgeError, match="reads pictures, which a run does not keep"):
        ask("", JudgeInputs(Path("audit"), "golden"), JudgeAgain(), print)


def test_a_plan_file_says_no_model(runs: Path, cli: Cli) -> None:
    assert cli("judge", "audit", "--judge", "refusal", "--save-plan", "plan.yaml").code == 0
    saved = yaml.safe_load((runs / "plan.yaml").read_text())
    assert saved.keys() == {"schema", "job", "inputs", "plan"}
    done = cli("run", "plan.yaml", "--out", "again")
    assert done.code == 0, done.err
    assert "asks for judge, run audit, judge refusal" in done.err
    (runs / "plan.yaml").write_text(yaml.safe_dump({**saved, "model": "golden"}))
    assert "judge needs none" in cli("run", "plan.yaml", "--out", "two").refusal()


def test_the_page_says_what_the_results_say(runs: Path, cli: Cli) -> None:
    assert cli("judge", "evaluate", "--judge", "refusal", "--out", "again").code == 0
    html = (runs / "again/report.html").read_text()
    for said in ("The rates under both judges", "Where they differ", "Do the findings stand?", "test/after/benign"):
        assert said in html
    assert results_of(runs / "again").judged.job == "evaluate"


def test_rates_that_surely_change_fail_the_claim(runs: Path, cli: Cli) -> None:
    assert cli("label", "audit", "--out", "sheet.csv", "--precision", "0.05").code == 0
    assert len(rows_of(runs / "sheet.csv")) == 76
    fill(runs / "sheet.csv", runs / "filled.csv", lambda row: "refused")
    assert cli("judge", "audit", "--judge", "human:file=filled.csv", "--out", "again").code == 0
    found = results_of(runs / "again")
    claims = {claim.id: claim.verdict for claim in found.claims}
    assert claims == {
        "rates_do_not_depend_on_the_judge": "fails",
        "judges_agree": "fails",
        "every_answer_is_scored": "holds",
    }
    assert conclude(found) == found


def test_what_stood_before_the_judge_of_the_run_stands_before_every_other(runs: Path, cli: Cli) -> None:
    file, why = runs / "audit/artefacts/completions.jsonl", f"{UNLIKELY}: -9.0 nats a token"
    apart, *others = rows(file)
    lines = [{**apart, "label": "garbage", "reason": why}, *others]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli("judge", "audit", "--judge", "refusal", "--out", "again").code == 0
    found = rows(runs / "again/artefacts/verdicts.jsonl")
    assert [row["id"] for row in found if row["reason"] == why] == [apart["id"]]


def test_a_local_file_cannot_have_a_key_sent_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``local.json`` may come from a stranger as the manifest may: what it puts in is held to the same consent."""
    pytest.importorskip("openai")
    url, other = "http://127.0.0.1:9/v1", "http://127.0.0.2:9/v1"
    monkeypatch.setenv("SOME_KEY", "secret")
    saved = judge_json(make_judge(f"strongreject:model=m,key=SOME_KEY,endpoint={url}"))
    monkeypatch.setenv("POINTSMAN_SEND_KEY_TO", url)
    with Run.create(tmp_path / "run", "audit", {"judge": saved}) as run:
        assert judge_json(judge_again(run, lambda text: None)) == saved
        run.keep_local({"judge": {"endpoint": other}})
        with pytest.raises(RunError, match=re.escape(other)):
            judge_again(run, lambda text: None)
