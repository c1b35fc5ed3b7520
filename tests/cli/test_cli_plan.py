"""A command in a file: what ``--save-plan`` writes, ``run`` does; nothing in it is consent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest_cli import EFFORT, Cli, save_moe, testbed_rows, without_times, write_csv
from test_cli_steer import EFFORT as STEER_EFFORT
from test_cli_steer import write_scenario


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded: a run ends where that begins, and keeps its folder as after Ctrl-C."""
    from pointsman.cli.loading import ModelOptions

    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelOptions, "load", stop)


def config(run: Path) -> Any:
    return json.loads((run / "manifest.json").read_text())["config"]


def test_a_saved_audit_is_the_same_audit(cli: Cli, here: Path) -> None:
    save_moe(here / "model")
    write_csv(here / "b.csv", testbed_rows("restricted", 40))
    asked = ("audit", "model", "--behaviors", "b.csv", "--min-gain", "1e-9", "--no-controls", *EFFORT)
    saved = cli(*asked, "--save-plan", "plans/mine.yaml")
    assert (saved.code, saved.out, saved.err) == (0, "plans/mine.yaml\n", "")
    assert sorted(p.name for p in here.iterdir()) == ["b.csv", "model", "plans"], "nothing ran"
    typed = cli(*asked, "--out", "typed", "--json")
    ran = cli("run", "plans/mine.yaml", "--out", "ran", "--json")
    assert ran.code == typed.code == 0, ran.err
    assert config(here / "ran") == config(here / "typed")
    assert config(here / "ran")["noise"] == []
    assert without_times(ran.json) == without_times({**typed.json, "provenance": ran.json["provenance"]})
    assert ran.json["provenance"]["command"] == "pointsman run plans/mine.yaml --out ran --json"
    first = ran.err.splitlines()[0]
    assert first == "pointsman: note: plans/mine.yaml asks for audit model, behaviors b.csv, judge testbed."
    assert "holds another run" not in cli(*asked, "--out", "ran").err


@pytest.mark.usefixtures("stops")
def test_every_option_goes_through_a_plan(cli: Cli, here: Path) -> None:
    """Of loading, inputs and plan: what a command and its plan make of it is one manifest, here and there."""
    model = save_moe(here / "model")
    (model / "chat_template.jinja").rename(here / "t.jinja")
    write_scenario(here)
    asked = (
        "steer", "model", "--scenario", "mine.yaml", *STEER_EFFORT, "--through-lambda", "0.5", "--through-lambda", "1",
        "--through-start", "surrogate", "--upper-bound", "--limit", "0", "--dtype", "float32", "--device", "cpu",
        "--revision", "main", "--batch-size", "3", "--chat-template", "t.jinja",
        "--init", "paper", "--contrast", "benign", "--rival", "steermoe_paired", "--rival", "random",
    )  # fmt: skip
    assert cli(*asked, "--save-plan", "p.yaml").code == 0
    assert cli(*asked, "--out", "typed").code == cli("run", "p.yaml", "--out", "ran").code == 130
    known = config(here / "ran")
    assert known == config(here / "typed")
    assert (known["limit"], known["through_lambdas"], known["through_starts"]) == (None, [0.5, 1.0], ["surrogate"])
    assert (known["init"], known["contrast"]) == ("paper", "benign")
    assert known["rivals"] == ["steermoe_paired", "random"]
    assert known["load"]["batch_size"] == 3
    assert known["prompts"]["chat_template"] == known["load"]["chat_template"]["sha256"]


@pytest.mark.usefixtures("stops")
def test_what_is_left_out_of_a_plan_has_its_default(cli: Cli, here: Path) -> None:
    (here / "p.yaml").write_text("schema: pointsman.plan/1\njob: audit\nmodel: testbed\n")
    assert cli("audit", "testbed", "--out", "typed").code == cli("run", "p.yaml", "--out", "ran").code == 130
    assert config(here / "ran") == config(here / "typed")
    assert config(here / "ran")["limit"] == 20


def test_a_plan_explains_itself(cli: Cli, here: Path) -> None:
    cli("audit", "testbed", "--samples", "7", "--save-plan", "p.yaml")
    lines = (here / "p.yaml").read_text().splitlines()
    assert lines[lines.index("  samples: 7") - 1] == "  # Random masks per prompt and set of routers."
    assert "  # Length of answers; null for the suite's." in lines
    found = yaml.safe_load("\n".join(lines))
    assert list(found) == ["schema", "job", "model", "loading", "inputs", "plan"]
    assert found["plan"]["min_gain"] == 1e-9


def test_a_plan_holds_no_consent(cli: Cli, here: Path) -> None:
    assert cli("audit", "m", "--behaviors", "b.csv", "--trust-remote-code", "--save-plan", "p.yaml").code == 0
    text = (here / "p.yaml").read_text()
    assert "trust" not in text
    for part in ("loading", "plan"):
        (here / "q.yaml").write_text(text.replace(f"\n{part}:\n", f"\n{part}:\n  trust_remote_code: true\n"))
        line = cli("run", "q.yaml").refusal()
        assert f"q.yaml: {part} cannot allow code of a checkpoint (trust_remote_code). Leave it out; if you" in line
        assert "add --trust-remote-code to the command line" in line


@pytest.mark.usefixtures("stops")
def test_all_that_a_plan_loads_and_reads_is_said(cli: Cli, here: Path) -> None:
    (here / "t.jinja").write_text("{{ messages }}")
    more = ("--device", "cpu", "--revision", "abc", "--chat-template", "t.jinja", "--judge", "refusal")
    assert cli("audit", "testbed", *more, "--save-plan", "p.yaml").code == 0
    said = cli("run", "p.yaml", "--out", "one").err.splitlines()[0]
    assert said.endswith("asks for audit testbed, device cpu, revision abc, chat-template t.jinja, judge refusal.")


def test_consent_is_given_on_the_command_line(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pointsman.engine import load as module

    allowed: list[bool] = []

    def look(*arguments: Any, trust_remote_code: bool, **more: Any) -> None:
        allowed.append(trust_remote_code)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "load", look)
    cli("audit", "testbed", "--trust-remote-code", "--save-plan", "p.yaml")
    cli("run", "p.yaml", "--out", "one")
    cli("run", "p.yaml", "--out", "two", "--trust-remote-code")
    assert allowed == [False, True]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("samples: 20", "sampels: 20", "p.yaml: There is no 'sampels' among the keys of plan. Did you mean samples?"),
        ("samples: 20", "samples: many", "p.yaml: samples is 'many'. Give a whole number."),
        ("samples: 20", "samples: 0", "p.yaml: samples is 0. Give samples of at least 1, or leave it out."),
        ("samples: 20", "samples: true", "p.yaml: samples is True. Give a whole number."),
        ("noise: [0.1, 0.3, 1.0]", "noise: 0.1", "p.yaml: noise is 0.1. Give a list, each a finite number."),
        ("placebo: true", "placebo: 'yes'", "p.yaml: placebo is 'yes'. Give true or false."),
        ("dtype: auto", "dtype: float23", "p.yaml: dtype is 'float23'. Did you mean float32?"),
        ("behaviors: null", "behaviors: 3", "p.yaml: behaviors is 3. Give the path of a file."),
        ("job: audit", "job: adit", "Unknown job 'adit'. Did you mean audit?"),
        ("model: testbed", "model: 3", "p.yaml: model is 3. Give text."),
        ("model: testbed", "modle: testbed", "Did you mean model?"),
        ("plan:\n", "plan: 3\nx:\n", "There is no 'x' among the keys of a plan."),
        ("schema: pointsman.plan/1", "schema: pointsman.plan/9", "p.yaml: this is no plan"),
        ("samples: 20", "samples: *x", "an alias"),
        ("samples: 20", "samples: 20\n  samples: 21", "the key 'samples' stands twice"),
    ],
)
def test_a_plan_that_makes_no_sense_is_one_line(cli: Cli, here: Path, old: str, new: str, said: str) -> None:
    cli("audit", "testbed", "--save-plan", "p.yaml")
    text = (here / "p.yaml").read_text()
    assert text.count(old) == 1
    (here / "p.yaml").write_text(text.replace(old, new))
    done = cli("run", "p.yaml")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert said in done.err
    assert [p.name for p in here.iterdir()] == ["p.yaml"]


def test_a_file_that_is_no_plan(cli: Cli, here: Path) -> None:
    for text in ("", "[1, 2]", "3", "plan"):
        (here / "p.yaml").write_text(text)
        assert "p.yaml: this is no plan" in cli("run", "p.yaml").refusal()
    assert "nowhere.yaml cannot be read" in cli("run", "nowhere.yaml").refusal()
    (here / "p.yaml").write_text("x" * 100_000)
    assert "p.yaml has more than 64 KiB" in cli("run", "p.yaml").refusal()


def test_nothing_is_overwritten_by_a_plan(cli: Cli, here: Path) -> None:
    (here / "mine.yaml").write_text("precious")
    assert "mine.yaml exists already" in cli("audit", "testbed", "--save-plan", "mine.yaml").refusal()
    assert (here / "mine.yaml").read_text() == "precious"
    assert "Write --save-plan mine.txt.yaml" in cli("audit", "testbed", "--save-plan", "mine.txt").refusal()
    assert "cannot be written" in cli("audit", "testbed", "--save-plan", "mine.yaml/p.yaml").refusal()


def test_a_value_is_checked_before_a_plan_is_saved(cli: Cli, here: Path) -> None:
    assert "min-gain" in cli("audit", "testbed", "--min-gain", "nan", "--save-plan", "p.yaml").refusal()
    assert not list(here.iterdir())


def test_what_stands_beside_a_preset_wins(cli: Cli, here: Path) -> None:
    cli("audit", "testbed", "--no-controls", "--noise", "0.5", "--save-plan", "p.yaml")
    plan = yaml.safe_load((here / "p.yaml").read_text())["plan"]
    assert (plan["noise"], plan["placebo"], plan["transfer"]) == ([0.5], False, 0)
    cli("audit", "testbed", "--no-placebo", "--save-plan", "q.yaml")
    plan = yaml.safe_load((here / "q.yaml").read_text())["plan"]
    assert (plan["noise"], plan["placebo"], plan["transfer"]) == ([0.1, 0.3, 1.0], False, 12)
