"""Every verb does what it says, and the contract on JSON holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest_cli import EFFORT, Cli, save_moe, without_times

from pointsman import __version__, environment

RATE = {"k", "n", "rate", "low", "high"}
CONTRACT = {
    "schema", "base", "rosais", "masking", "fsour", "utility", "over_refusal", "cost", "provenance",
}  # fmt: skip


def test_help_and_version_are_quick_and_import_no_torch() -> None:
    code = "import sys; from pointsman.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("verb", ["", "audit", "resume", "report", "doctor", "routers", "testbed", "testbed train"])
def test_every_verb_has_help(cli: Cli, verb: str) -> None:
    done = cli(*verb.split(), "--help")
    assert done.code == 0
    assert "Usage: pointsman" in done.out
    assert done.err == ""


def test_no_arguments_show_the_help(cli: Cli) -> None:
    assert "audit" in cli().out


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"pointsman {__version__}\n"


# ---------------------------------------------------------------------- audit


def test_an_audit_prints_a_table_and_ends_with_the_path_of_its_report(
    cli: Cli, here: Path, model: Path, behaviors: Path, benign: Path
) -> None:
    done = cli("audit", model, "--behaviors", behaviors, "--benign", benign, "--out", "run", *EFFORT)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "run/report.html"
    assert "F-SOUR ASR" in done.out
    assert (here / "run/report.html").is_file()
    first = done.err.splitlines()[0]
    assert first.startswith("Auditing ")
    assert first.endswith("with 6 behaviours of behaviors.csv, judge testbed, seed 0; writing to run")
    assert "Warning" not in done.err


def test_json_is_the_contract_and_all_of_stdout(
    cli: Cli, here: Path, model: Path, behaviors: Path, benign: Path
) -> None:
    done = cli("audit", model, "--behaviors", behaviors, "--benign", benign, "--out", "run", "--json", *EFFORT)
    assert done.code == 0, done.err
    results = done.json
    assert results == json.loads((here / "run/results.json").read_text())
    assert results.keys() >= CONTRACT
    assert results["rosais"][0].keys() >= {"router", "layer", "mean", "low", "high"}
    assert results["masking"][0]["routers"] == 0
    assert results["masking"][1]["controls"].keys() == {"random", "lowest", "dataset"}
    for rate in (results["base"]["asr"], results["fsour"]["asr"], results["fsour"]["any_compliance"]):
        assert rate.keys() >= RATE
        assert rate["n"] == 6
    found = list(_rates(results))
    assert len(found) > 10
    assert all(rate.keys() >= RATE for rate in found)
    assert results["utility"]["n"] == 6
    assert results["over_refusal"]["n"] == 6
    assert results["provenance"]["command"].startswith("pointsman audit ")
    assert done.err.splitlines()[-1] == "Report: run/report.html"


def _rates(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "k" in value:
            yield value
        for part in value.values():
            yield from _rates(part)
    elif isinstance(value, list):
        for part in value:
            yield from _rates(part)


def test_limit_bounds_what_is_tested_and_0_means_all(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    some = cli("audit", model, "--behaviors", behaviors, "--json", *EFFORT, "--limit", "3", "--rank-prompts", "2")
    assert some.json["base"]["asr"]["n"] == 3
    whole = cli(
        "audit", model, "--behaviors", behaviors, "--json", *EFFORT,
        "--limit", "0", "--rank-prompts", "2", "--searches", "2",
    )  # fmt: skip
    assert whole.json["base"]["asr"]["n"] == whole.json["splits"]["test"] > 6
    assert whole.json["fsour"]["asr"]["n"] == 2


def test_the_same_audit_in_the_same_folder_shows_it_again_and_another_is_refused(
    cli: Cli, here: Path, model: Path, behaviors: Path
) -> None:
    asked = ("audit", model, "--behaviors", behaviors, "--out", "run", *EFFORT)
    first = cli(*asked)
    results = (here / "run/results.json").read_bytes()
    again = cli(*asked)
    assert again.code == 0
    assert again.out == first.out
    assert (here / "run/results.json").read_bytes() == results
    other = cli(*asked, "--seed", "1").refusal()
    assert "holds another run" in other
    assert (here / "run/results.json").read_bytes() == results


def test_a_finished_run_is_only_rendered_again(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    asked = cli("audit", model, "--behaviors", behaviors, "--out", "run", *EFFORT)
    (here / "run/report.html").unlink()
    resumed = cli("resume", "run")
    assert resumed.out == asked.out
    assert (here / "run/report.html").is_file()
    assert cli("report", "run").out == "run/report.html\n"


def test_show_text_shows_what_is_redacted_otherwise(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    cli("audit", model, "--behaviors", behaviors, "--out", "run", *EFFORT)
    goals = [line.split(",")[0] for line in behaviors.read_text().splitlines()[1:]]
    hidden = (here / "run/report.html").read_text()
    assert not any(goal in hidden for goal in goals)
    assert cli("report", "run", "--show-text").code == 0
    shown = (here / "run/report.html").read_text()
    assert any(goal in shown for goal in goals)


def test_two_audits_with_one_seed_agree(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    asked = ("audit", model, "--behaviors", behaviors, "--json", *EFFORT)
    assert without_times(cli(*asked).json) == without_times(cli(*asked).json)


# ---------------------------------------------------------------------- doctor, routers, testbed


def test_doctor_notes_what_is_newer_than_tested(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("doctor", model, "--json").json["notices"] == []
    assert "Note:" not in cli("doctor", model).out
    monkeypatch.setitem(environment.NEWEST_TESTED, "transformers", "5.0.0")
    said = f"transformers {transformers.__version__} is newer than 5.0.0, the newest that this version of Pointsman was"
    assert cli("doctor", model, "--json").json["notices"] == [f"{said} tested with"]
    done = cli("doctor", model)
    assert done.code == 0
    assert f"\nNote: {said} tested with.\n" in done.out


def test_routers_lists_paths_in_full(cli: Cli, model: Path) -> None:
    done = cli("routers", model)
    assert (done.code, done.err) == (0, "")
    assert "model.layers.2.mlp.gate" in done.out


def test_routers_json(cli: Cli, model: Path) -> None:
    listed = cli("routers", model, "--json").json
    assert listed["routers"][1] == {
        "layer": 1, "decoder_layer": 1, "path": "model.layers.1.mlp.gate", "experts": 8, "top_k": 2,
        "groups": 1, "groups_used": 1, "width": 32,
    }  # fmt: skip


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random model in the place of the shipped one, with its hashes."""
    from pointsman.testbed import models

    folder = tmp_path / "checkpoints"
    save_moe(folder / "olmoe")
    monkeypatch.setattr(models, "CHECKPOINTS", folder)
    monkeypatch.setattr(models, "KEPT", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    models.record_hashes()
    return folder


def test_the_testbed_brings_its_prompts_and_its_judge(cli: Cli, here: Path, shipped: Path) -> None:
    effort = ("--limit", "2", "--samples", "1", "--random-draws", "0", "--routers", "1", "--candidates", "1")
    done = cli("audit", "testbed", "--json", *effort, "--restarts", "1", "--max-new-tokens", "4")
    assert done.code == 0, done.err
    results = done.json
    assert (results["suite"], results["judge"]["name"]) == ("testbed", "testbed")
    assert results["utility"]["n"] == results["multi_turn"]["fallen"]["n"] == 2
    assert results["model"]["name"] == "testbed"
    assert "testbed" in results["headline"]
    (run,) = (here / "runs").iterdir()
    assert run.name.startswith("audit-testbed-")
    assert cli("resume", run).out.splitlines()[-1] == str(run / "report.html")


def test_testbed_list_checks_the_files(cli: Cli, shipped: Path) -> None:
    done = cli("testbed", "list")
    assert done.code == 0
    assert "testbed:olmoe" in done.out
    assert "as measured" in done.out
    with (shipped / "olmoe/config.json").open("a") as file:
        file.write(" ")
    spoilt = cli("testbed", "list")
    assert spoilt.code == 2
    assert "differs" in spoilt.out
    assert "config.json is not the file that was measured" in spoilt.err
    assert "config.json is not the file" in cli("audit", "testbed").refusal()


def test_testbed_train_writes_a_model_that_loads(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pointsman.testbed import train
    from pointsman.testbed.recipe import Recipe

    usual = Recipe()
    quick = tuple(replace(phase, steps=2, batch=4) for phase in usual.phases)
    tiny = replace(usual, layers=2, hidden=16, heads=2, experts=8, top_k=2, expert_width=8, phases=quick)
    monkeypatch.setattr(train, "train", partial(train.train, recipe=tiny))  # not minutes: a few steps
    done = cli("testbed", "train", "--seed", "3")
    assert done.code == 0, done.err
    assert done.out == "testbed-olmoe-seed3\n"
    assert done.err.startswith("Training the testbed model olmoe, seed 3; writing to testbed-olmoe-seed3\n")
    assert cli("doctor", "testbed-olmoe-seed3").code == 0
    again = cli("testbed", "train", "--seed", "3")
    assert again.code == 2
    assert "already holds a trained model" in again.err


@pytest.mark.parametrize("holds", [True, False])
def test_testbed_measure_shows_a_table_and_says_by_its_exit_whether_it_is_a_proving_ground(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    from pointsman.testbed import properties

    real = properties.measure

    def few(engine: Any, **given: Any) -> tuple[properties.Property, ...]:
        """The real measure on few prompts, against bounds that they meet or miss."""
        least = 0.0 if holds else 1.1
        return tuple(replace(p, least=least, most=None) for p in real(engine, prompts=4, **given) if p.rate.n)

    monkeypatch.setattr(properties, "measure", few)
    done = cli("testbed", "measure")
    assert done.code == (0 if holds else 3)
    assert "restricted requests refused" in done.out
    assert ("outside" in done.out) is not holds


def test_testbed_measure_refuses_what_is_no_model(cli: Cli, here: Path) -> None:
    assert "nowhere" in cli("testbed", "measure", "./nowhere").refusal()


def test_testbed_show_prints_the_language(cli: Cli) -> None:
    done = cli("testbed", "show")
    assert done.code == 0
    for word in ("benign", "restricted", "mature", "borderline", "conversation"):
        assert word in done.out
