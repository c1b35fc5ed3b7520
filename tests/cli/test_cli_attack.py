"""``--attack``: which searches of unsafe routes an audit runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest_cli import EFFORT, Cli

from plain_engine import PlainEngine
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.parameters import plain

QUICK = (*EFFORT, "--limit", "2", "--no-controls", "--routers", "1")


def test_both_are_run_and_told_unless_one_is_chosen(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    done = cli("audit", model, "--behaviors", behaviors, *QUICK, "--out", "run")
    assert done.code == 0, done.err
    for said in ("Guided ASR", "F-SOUR ASR", " forwards ", "with at most "):
        assert said in " ".join(done.out.split())
    assert "alone" not in done.err
    manifest = json.loads((here / "run/manifest.json").read_text())["config"]
    assert manifest["attacks"] == plain(Audit())["attacks"] == []
    results = json.loads((here / "run/results.json").read_text())
    assert results["guided"]["asr"]["n"] == results["fsour"]["asr"]["n"] == 2
    assert [at["budget"] for at in results["side_by_side"]["budgets"] if at["budget"].startswith("guided")] == [
        "guided_median", "guided_most",
    ]  # fmt: skip
    predicted = {stage["stage"]: stage for stage in results["cost"]["predicted"]["stages"]}
    assert predicted["guided"]["forwards"] > 0
    page = (here / "run/report.html").read_text()
    assert "Two searches side by side" in page

    results_then = (here / "run/results.json").read_text()
    (here / "run/results.json").unlink()
    assert cli("resume", "run").code == 0
    then, now = json.loads(results_then), json.loads((here / "run/results.json").read_text())
    for section in ("guided", "fsour", "side_by_side", "claims"):
        assert now[section] == then[section]


@pytest.mark.parametrize(("chosen", "other"), [("guided", "fsour"), ("fsour", "guided")])
def test_one_alone(cli: Cli, here: Path, model: Path, behaviors: Path, chosen: str, other: str) -> None:
    asked = ("audit", model, "--behaviors", behaviors, *QUICK, "--attack", chosen, "--method-seeds", "2")
    done = cli(*asked, "--out", "run", "--json")
    assert done.code == 0, done.err
    assert done.json[chosen]["asr"]["n"] == 2
    assert done.json[other] is None
    assert done.json["side_by_side"] is None
    assert (done.json["seeds"]["fsour"] is None) == (chosen == "guided")
    stages = {stage["stage"] for stage in done.json["cost"]["stages"]}
    assert stages & {"fsour", "guided", "fsour_seeds"} == (
        {"fsour", "fsour_seeds"} if chosen == "fsour" else {"guided"}
    )


def test_a_search_that_nobody_knows(cli: Cli, model: Path, behaviors: Path) -> None:
    asked = ("audit", model, "--behaviors", behaviors, "--attack")
    assert "Unknown attack 'guide'. Did you mean guided? Known attacks: fsour, guided" in cli(*asked, "guide").refusal()
    assert "Unknown attack 'foo'. Known attacks: fsour, guided" in cli(*asked, "foo").refusal()
    assert "There are no parameters of the attack fsour. Write fsour alone" in cli(*asked, "fsour:seed=1").refusal()
    assert "attack names a value twice" in cli(*asked, "fsour", "--attack", "fsour").refusal()


def test_an_engine_without_gradients(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.engine.load.load", lambda *arguments, **more: PlainEngine())
    asked = ("audit", "testbed", *QUICK, "--attack", "guided", "--out", "run")
    refusal = cli(*asked).err.splitlines()[-1]
    assert refusal.startswith(
        "pointsman: testbed cannot be searched by its gradient: its engine (PlainEngine) has none"
    )
    assert "--attack fsour" in refusal
    done = cli("audit", "testbed", *QUICK, "--out", "plain")
    assert done.code == 0, done.err
    assert "pointsman: note: Routes are searched with F-SOUR alone: testbed cannot be searched" in done.err
    results = json.loads((here / "plain/results.json").read_text())
    assert (results["guided"], results["side_by_side"]) == (None, None)
    assert [note for note in results["notes"] if note.startswith("Routes are searched with F-SOUR alone")]
