"""``steer`` and ``evaluate`` from the command line, on the testbed model and a user's own prompt files."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_cli import Cli, forget_checksums, save_moe

from pointsman.cli import main
from pointsman.jobs.evaluate.plan import Evaluate, EvaluateInputs
from pointsman.jobs.evaluate.question import ask
from pointsman.jobs.steer.learning import Learning
from pointsman.jobs.steer.results import SteerResults
from pointsman.runs.results import read
from pointsman.steering.artefact import DATA, Steering
from pointsman.testbed.language import Request, Talk, requests, talks

EFFORT = (
    "--method", "mascing", "--learn", "40", "--limit", "6", "--validate", "8", "--through-steps", "4",
    "--finalists", "1", "--random-draws", "0", "--surrogate-seeds", "1", "--latency-rounds", "1",
)  # fmt: skip
GRID = {"lambda": [1e-3], "alpha": [1.0], "phase": ["prefill"], "refinement": ["through_model"]}


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def talk_rows(*tactics: str, kind: str = "restricted", questions: int = 20) -> list[dict[str, Any]]:
    """Conversations of every split of the testbed: the files know nothing of its splits."""
    chosen: list[Talk] = []
    for split in ("discovery", "validation", "test"):
        chosen += [t for t in talks(kind, split, questions=questions) if t.tactic in tactics]  # type: ignore[arg-type]
    return [
        {"id": t.id, "turns": list(t.turns), "goal": t.request.text, "target": t.request.target, "tactic": t.tactic,
         "category": t.request.category, "source": t.request.source}
        for t in chosen
    ]  # fmt: skip


def request_rows(kind: str, count: int = 10) -> list[dict[str, Any]]:
    chosen: list[Request] = []
    for split in ("discovery", "validation", "test"):
        chosen += requests(kind, split, limit=count)  # type: ignore[arg-type]
    return [{"goal": r.text, "target": r.target, "category": r.category, "source": r.source} for r in chosen]


def write_scenario(folder: Path, name: str = "mine", **changes: Any) -> Path:
    """A YAML file (JSON is YAML, too) beside prompt files; `changes` replace keys, None leaves one out."""
    folder.mkdir(exist_ok=True)
    usual: dict[str, Any] = {
        "schema": "pointsman.scenario/1", "name": name, "objective": "defend", "judge": "testbed",
        "prompts": {"conversations": "talks.jsonl", "restricted": "restricted.jsonl", "benign": "benign.jsonl"},
        "grid": GRID, "max_new_tokens": 30, "splits": {"discovery": 0.5, "validation": 0.25, "test": 0.25},
    }  # fmt: skip
    usual_files: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "talks": lambda: talk_rows("story", "authority") + talk_rows("insistence", questions=3),
        "restricted": lambda: request_rows("restricted"),
        "benign": lambda: request_rows("borderline"),
    }
    for file, rows in usual_files.items():
        if not (folder / f"{file}.jsonl").exists():
            write_jsonl(folder / f"{file}.jsonl", rows())
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({k: v for k, v in {**usual, **changes}.items() if v is not None}), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Done:
    """A finished run: its folder, the YAML file, what the command printed."""

    folder: Path
    scenario: Path
    out: str
    err: str


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run on the testbed, stopped in the middle and resumed; shared, so that a test must copy it to change it."""
    folder = tmp_path_factory.mktemp("steer")
    scenario = write_scenario(folder)

    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        out, err = io.StringIO(), io.StringIO()
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Learning, "through_model", stop)
            code = main(["steer", "testbed", "--scenario", "mine.yaml", "--out", "run", *EFFORT])
        assert (code, out.getvalue()) == (130, ""), err.getvalue()
        assert err.getvalue().splitlines()[-1] == "pointsman: Interrupted. Continue with `pointsman resume run`."
        assert not (folder / "run/results.json").exists()
        code = main(["resume", "run"])
    assert code == 0, err.getvalue()
    return Done(folder / "run", scenario, out.getvalue(), err.getvalue())


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- a whole run


def test_a_resumed_run_ends_with_a_report_and_a_mask(done: Done) -> None:
    results = results_of(done.folder)
    assert done.out.splitlines()[-1] == "run/report.html"
    assert results["headline"] in done.out
    assert "Continuing to steer testbed for mine (defend), judge testbed, seed 0" in done.err
    assert (done.folder / "report.html").stat().st_size > 20_000
    assert results["provenance"]["command"].startswith("pointsman steer testbed --scenario mine.yaml --out run")
    assert results["model"]["name"] == "testbed"
    assert results["contexts"]["discovery"]["fallen"]["k"] > 3
    assert results["test"]["before"]["benign"]["rate"] == 1.0
    assert results["test"]["before"]["benign_conversations"] is None
    assert results["splits"]["test"]["conversations"] == 6
    steering = Steering.from_pretrained(done.folder / "artefacts/steering")
    assert steering.base_model == "testbed"
    assert steering.about["scenario"] == "mine"
    assert str(done.folder.parent) not in (done.folder / "results.json").read_text()


def test_a_finished_run_is_only_rendered_again(cli: Cli, done: Done, tmp_path: Path) -> None:
    folder = shutil.copytree(done.folder, tmp_path / "run")
    (folder / "report.html").unlink()
    known = (folder / "results.json").read_bytes()
    again = cli("resume", folder, "--json")
    assert again.code == 0
    assert again.json == results_of(folder)
    (folder / "report.html").unlink()
    rendered = cli("report", folder)
    assert rendered.out.strip() == str(folder / "report.html")
    with chdir(done.scenario.parent):
        same = cli("steer", "testbed", "--scenario", "mine.yaml", "--out", folder, *EFFORT)
    assert same.code == 0, same.err
    assert "is finished already" in same.err
    assert (folder / "results.json").read_bytes() == known


def test_evaluating_the_run_s_mask_gives_the_same_rates(cli: Cli, done: Done, here: Path) -> None:
    found = cli(
        "evaluate", "testbed", "--steering", done.folder, "--scenario", done.scenario, "--limit", "6", "--out", "ev",
        "--latency-rounds", "0", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    known = results_of(done.folder)
    for name in ("before", "after"):
        shared = found.json["test"][name].keys() & known["test"][name].keys()
        assert {"gain", "dsr_context", "benign", "held", "by_tactic"} <= shared
        assert {k: found.json["test"][name][k] for k in shared} == {k: known["test"][name][k] for k in shared}
    assert found.json["comparisons"]["gain"] == known["comparisons"]["gain"]
    assert found.json["latency"] is None
    assert (here / "ev/report.html").stat().st_size > 10_000
    again = cli("resume", "ev")
    assert again.out.splitlines()[-1] == "ev/report.html"
    line = cli("steer", "testbed", "--scenario", done.scenario, "--out", "ev").refusal()
    assert "ev holds another run (evaluate with other settings)" in line


@pytest.mark.parametrize(("learnt", "option", "used", "noted"), [
    (3, (), 3, False), (3, ("--seed", "3"), 3, False), (3, ("--seed", "0"), 0, True), ("x", (), 0, False),
    (-1, (), 0, False), (True, (), 0, False), (None, (), 0, False),
])  # fmt: skip
def test_a_mask_is_evaluated_on_the_splits_that_it_was_learnt_on(
    cli: Cli,
    done: Done,
    here: Path,
    learnt: Any,
    option: tuple[str, ...],
    used: int,
    noted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where prompts have no splits of their own, another seed would test on what was learnt from."""
    from pointsman.data.scenario import Scenario

    read: list[int] = []

    def stop(self: Scenario, seed: int) -> None:
        read.append(seed)
        raise KeyboardInterrupt

    known = Steering.from_pretrained(done.folder / "artefacts/steering")
    replace(known, about={**known.about, "split_seed": learnt}).save_pretrained(here / "steering")
    monkeypatch.setattr(Scenario, "read", stop)
    found = cli("evaluate", "testbed", "--steering", "steering", "--scenario", done.scenario, "--out", "ev", *option)
    assert found.code == 130
    assert read == [used]
    assert ("was learnt on the splits of seed 3" in found.err) == noted


def test_prompts_that_a_mask_was_learnt_on_are_noticed(done: Done, here: Path) -> None:
    def noted(steering: Path, scenario: Path) -> list[str]:
        notes: list[str] = []
        ask("testbed", EvaluateInputs(str(steering), str(scenario)), Evaluate(), notes.append)
        return notes

    assert noted(done.folder, done.scenario) == []
    other = write_scenario(here, "other", splits={"discovery": 0.25, "validation": 0.25, "test": 0.5})
    (line,) = noted(done.folder, other)
    found = re.match(r"(\d+) of (\d+) requests that are tested are among those that this steering was learnt", line)
    assert found
    assert 0 < int(found[1]) < int(found[2])
    alone = done.folder / "artefacts/steering"
    assert noted(alone, done.scenario) == []
    (line,) = noted(alone, other)
    assert "was made on the prompts mine, and other is asked" in line
    assert "cannot be known without the folder of the run that found it" in line


# ---------------------------------------------------------------------- a mask that gains nothing


@pytest.mark.parametrize(
    ("objective", "what"), [("defend", "withstands no more conversations"), ("allow", "opens nothing")]
)
def test_what_gains_nothing_is_in_vain(done: Done, objective: Any, what: str) -> None:
    results = read(results_of(done.folder), SteerResults)
    assert results.in_vain is None
    scenario, test = replace(results.scenario, objective=objective), results.test
    vain = replace(results, scenario=scenario, test=replace(test, after=replace(test.after, gain=test.before.gain)))
    assert vain.in_vain
    assert vain.in_vain.startswith(f"The chosen mask {what}: ")
    assert replace(vain, job="evaluate").in_vain is None, "what is given is measured, not looked for"


def test_a_run_in_vain_says_so_and_ends_with_3(
    cli: Cli, done: Done, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(done.folder, here / "run")
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if b"artefacts/steering" in line)
    journal.write_bytes(b"".join(lines[:first]))
    shutil.rmtree(folder / "artefacts/steering")
    (folder / "results.json").unlink()
    monkeypatch.setattr(SteerResults, "in_vain", "The chosen mask opens nothing")
    found = cli("resume", folder)
    assert found.code == 3
    assert found.out.splitlines()[-1].endswith("run/report.html")
    assert found.err.splitlines()[-1] == "pointsman: The chosen mask opens nothing."
    about = Steering.from_pretrained(folder / "artefacts/steering").about
    assert about["warning"] == "The chosen mask opens nothing"
    assert "| warning | The chosen mask opens nothing |" in (folder / "artefacts/steering/README.md").read_text()
    assert "warning" not in Steering.from_pretrained(done.folder / "artefacts/steering").about


# ---------------------------------------------------------------------- a mask that cannot be used


def evaluate(cli: Cli, steering: Path, scenario: Path | str, model: str = "testbed") -> str:
    return cli("evaluate", model, "--steering", steering, "--scenario", scenario, "--out", "ev").refusal()


def test_a_mask_for_another_checkpoint(cli: Cli, done: Done, here: Path) -> None:
    line = cli(
        "evaluate", "testbed:qwen2_moe", "--steering", done.folder, "--scenario", done.scenario, "--out", "ev"
    )  # fmt: skip
    assert line.code == 2
    assert line.out == ""
    assert "is for" in line.err.splitlines()[-1]
    assert line.err.count("pointsman: ") == 1
    assert not (here / "ev").exists()


def test_a_mask_that_is_not_there_or_of_no_known_scenario(cli: Cli, done: Done, here: Path) -> None:
    line = cli("evaluate", "testbed", "--steering", done.folder).refusal()
    assert "was made for the scenario mine, which does not come with Pointsman. Give the scenario's file" in line
    (here / "empty").mkdir()
    assert "empty" in evaluate(cli, here / "empty", done.scenario)
    assert not (here / "ev").exists()


def _nan(data: dict[str, Any], folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[0] = float("nan")
    save_file(tensors, file)


def _set(**changes: Any) -> Callable[[dict[str, Any], Path], None]:
    return lambda data, folder: data.update(changes)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_nan, "(?i)nan|finite"), (_set(alpha=1e9), "alpha"), (_set(alpha=-1.0), "alpha"), (_set(alpha=0), "alpha"),
        (_set(alpha="much"), "alpha"), (_set(phase="later"), "phase"), (_set(schema="x/1"), "schema"),
        (_set(sigma=[1.0]), "sigma|layer"),
    ],
)  # fmt: skip
def test_a_spoilt_mask(
    cli: Cli, done: Done, here: Path, spoil: Callable[[dict[str, Any], Path], None], said: str
) -> None:
    folder = shutil.copytree(done.folder / "artefacts/steering", here / "steering")
    data = json.loads((folder / DATA).read_text())
    spoil(data, folder)
    (folder / DATA).write_text(json.dumps(data))
    assert re.search(said, evaluate(cli, folder, done.scenario))
    assert not (here / "ev").exists()


# ---------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid": {**GRID, "alpha": [9.0]}}, "grid.alpha holds 9"), ({"grid": {**GRID, "alpha": [0]}}, "grid.alpha"),
        ({"grid": {**GRID, "alpha": []}}, "grid.alpha is empty"), ({"grid": {**GRID, "lambda": [-1]}}, "grid.lambda"),
        ({"grid": {**GRID, "lambda": [float("inf")]}}, "grid.lambda"),
        ({"grid": {**GRID, "phase": ["after"]}}, "grid.phase"),
        ({"grid": {**GRID, "refinement": ["through_models"]}}, "Did you mean through_model"),
        ({"objective": "attack"}, "objective is 'attack'"), ({"judge": "tesbed"}, "Did you mean testbed"),
        ({"limits": {"benign": 2}}, "limits.benign"), ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"prompts": {"conversations": "nowhere.jsonl", "benign": "benign.jsonl"}}, "nowhere.jsonl does not exist"),
        ({"prompts": {"conversations": "talks.jsonl"}}, "needs prompts.benign"),
    ],
)  # fmt: skip
def test_scenarios_that_make_no_sense(cli: Cli, here: Path, changes: dict[str, Any], said: str) -> None:
    path = write_scenario(here, **changes)
    line = cli("steer", "testbed", "--scenario", path, "--out", "run", *EFFORT).refusal()
    assert said in line
    assert not (here / "run").exists()


def test_a_scenario_that_nobody_knows(cli: Cli, here: Path, done: Done) -> None:
    line = cli("steer", "testbed", "--scenario", "multi_turn_defense").refusal()
    assert "Did you mean multi_turn_defence" in line
    assert "nowhere.yaml does not exist" in cli("steer", "testbed", "--scenario", "nowhere.yaml").refusal()
    assert "nowhere.yaml does not exist" in evaluate(cli, done.folder, "nowhere.yaml")
    assert "Missing option '--scenario'" in cli("steer", "testbed").refusal()
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "option",
    ["--learn=-1", "--limit=-1", "--seed=-1", "--method-seeds=0", "--surrogate-seeds=0", "--rounds=0", "--finalists=0",
     "--random-draws=-1", "--latency-rounds=-1", "--through-steps=0", "--through-lambda=nan", "--through-lambda=inf",
     "--through-lambda=-1", "--through-start=nowhere", "--init=ones", "--contrast=none", "--rival=me",
     "--max-new-tokens=0", "--learn=many"],
)  # fmt: skip
def test_options_out_of_range(cli: Cli, here: Path, option: str) -> None:
    line = cli("steer", "testbed", "--scenario", "multi_turn_defence", "--out", "run", option).refusal()
    assert option.partition("=")[0].removeprefix("--").split("-")[-1] in line.replace("A lambda", "lambda").lower()
    assert not (here / "run").exists()


def test_a_folder_of_something_else_or_of_another_run(cli: Cli, done: Done, here: Path) -> None:
    (here / "work").mkdir()
    (here / "work/thesis.tex").write_text("mine")
    asked = ("steer", "testbed", "--scenario", done.scenario, *EFFORT)
    assert "is not empty and is no run" in cli(*asked, "--out", "work").refusal()
    line = cli(*asked, "--out", done.folder, "--seed", "1").refusal()
    assert "holds another run (steer with other settings)" in line
    assert "holds another run" in evaluate_into(cli, done)
    assert [p.name for p in (here / "work").iterdir()] == ["thesis.tex"]


def evaluate_into(cli: Cli, done: Done) -> str:
    return cli(
        "evaluate", "testbed", "--steering", done.folder, "--scenario", done.scenario, "--out", done.folder
    ).refusal()  # fmt: skip


# ---------------------------------------------------------------------- what there is nothing to learn from


def last_line(cli: Cli, *arguments: str | Path) -> str:
    """What a command said that began and then gave up; its notes come before."""
    found = cli(*arguments)
    assert found.code == 2, found.err
    assert found.out == ""
    (line,) = [line for line in found.err.splitlines() if line.startswith("pointsman: ") and ": note: " not in line]
    assert line == found.err.splitlines()[-1]
    assert "Traceback" not in found.err
    return line


def harmless_talks(count: int = 24) -> list[dict[str, Any]]:
    """Conversations whose request the model answers: all of them "fall"."""
    return [
        {"turns": [row["goal"]] * 2, "goal": row["goal"], "source": f"harmless {n}"}
        for n, row in enumerate(request_rows("borderline", count // 3))
    ]


def begun(cli: Cli, path: Path, *options: str) -> str:
    return last_line(
        cli, "steer", "testbed", "--scenario", path, "--out", "run", *EFFORT, "--limit", "4", "--validate", "4",
        "--max-new-tokens", "12", *options,
    )  # fmt: skip


def test_a_model_that_never_falls(cli: Cli, here: Path) -> None:
    path = write_scenario(here, prompts={"conversations": "firm.jsonl", "benign": "benign.jsonl"})
    write_jsonl(here / "firm.jsonl", talk_rows("insistence", questions=8))
    line = begun(cli, path)
    assert "testbed falls in no conversation of the discovery split: mine has nothing to defend" in line
    assert "Give harder conversations" in line
    assert line.endswith("run keeps what was done; a run with other prompts needs another --out.")


def test_a_model_that_never_refuses(cli: Cli, here: Path) -> None:
    write_jsonl(here / "kind.jsonl", harmless_talks())
    write_jsonl(here / "others.jsonl", request_rows("benign"))
    path = write_scenario(here, prompts={"conversations": "kind.jsonl", "benign": "others.jsonl"})
    assert "testbed never refuses on the discovery split" in begun(cli, path)


def test_too_few_contexts(cli: Cli, here: Path) -> None:
    path = write_scenario(here)
    write_jsonl(here / "talks.jsonl", harmless_talks(3))
    line = cli("steer", "testbed", "--scenario", path, "--out", "run", *EFFORT).refusal()
    assert "The scenario mine has too few prompts" in line
    assert not (here / "run").exists()
    write_jsonl(here / "talks.jsonl", harmless_talks())
    assert "Too few contexts to learn from: label 0 comes from 1 source question" in begun(cli, path, "--learn", "1")


def test_a_judge_that_scores_nothing(cli: Cli, here: Path, model: Path) -> None:
    """The testbed's judge on prompts that are not of its language."""
    write_jsonl(
        here / "talks.jsonl", [{"turns": ["hello", f"do thing {n}"], "goal": f"do thing {n}"} for n in range(9)]
    )
    write_jsonl(here / "restricted.jsonl", [{"goal": f"do deed {n}", "target": "Sure"} for n in range(9)])
    line = last_line(cli, "steer", model, "--scenario", write_scenario(here), "--out", "run", *EFFORT)
    assert "The judge testbed scored none of" in line
    assert "Name a judge that knows these prompts" in line


def test_nan_that_only_some_prompts_meet(cli: Cli, here: Path, tmp_path: Path) -> None:
    from pointsman.testbed.tokenizer import build_tokenizer

    word = build_tokenizer()("the")["input_ids"][0]

    def spoil(model: Any) -> None:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.model.embed_tokens.weight[word] = torch.nan

    folder = save_moe(tmp_path / "nan", spoil=spoil)
    line = last_line(cli, "steer", folder, "--scenario", write_scenario(here), "--out", "run", *EFFORT)
    assert "NaN or infinite" in line
    assert not (here / "run").exists()


# ---------------------------------------------------------------------- what a resumed run must be


@pytest.fixture
def stopped(cli: Cli, here: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a tiny model that was stopped in its first stage, in this process."""
    from pointsman.jobs.steer import played

    write_scenario(here)
    ask = played.ask_in_stage

    def stop(*arguments: Any, **more: Any) -> None:
        ask(*arguments, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(played, "ask_in_stage", stop)
        found = cli("steer", model, "--scenario", "mine.yaml", "--out", "run", *EFFORT, "--max-new-tokens", "2")
    assert found.code == 130
    assert found.err.splitlines()[-1] == "pointsman: Interrupted. Continue with `pointsman resume run`."
    return here / "run"


def test_a_run_without_results_has_no_report(cli: Cli, stopped: Path) -> None:
    assert "has no results" in cli("report", stopped).refusal()


def test_changed_prompts_are_refused(cli: Cli, here: Path, stopped: Path) -> None:
    kept = (here / "talks.jsonl").read_text()
    (here / "talks.jsonl").write_text(kept.replace("story", "tale"))
    line = cli("resume", "run").refusal()
    assert "talks.jsonl has changed since run began. Put the old content back" in line
    (here / "talks.jsonl").unlink()
    assert "talks.jsonl, which run began with, cannot be read (No such" in cli("resume", "run").refusal()
    (here / "talks.jsonl").write_text(kept)
    (here / "mine.yaml").unlink()  # the manifest holds the scenario itself
    assert "falls in no conversation" in last_line(cli, "resume", "run")


def test_another_version_of_the_judge_is_refused(cli: Cli, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pointsman.testbed.plugin import TestbedJudge

    monkeypatch.setattr(TestbedJudge, "version", "99")
    assert "judge testbed is version 99 now" in cli("resume", "run").refusal()


def test_a_manifest_that_says_too_little_is_refused(cli: Cli, stopped: Path) -> None:
    manifest = json.loads((stopped / "manifest.json").read_text())
    for missing in ("load", "prompts", "judge", "seed", "scenario", "through_steps"):
        changed = {**manifest, "config": {k: v for k, v in manifest["config"].items() if k != missing}}
        (stopped / "manifest.json").write_text(json.dumps(changed))
        forget_checksums(stopped)
        assert f"does not say all that is needed (KeyError: '{missing}')" in cli("resume", "run").refusal(notes=1)


def test_a_changed_mask_is_refused_by_a_resumed_evaluation(
    cli: Cli, done: Done, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointsman.jobs.evaluate import job as evaluating

    folder = shutil.copytree(done.folder / "artefacts/steering", here / "steering")

    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "perform", stop)
        found = cli("evaluate", "testbed", "--steering", "steering", "--scenario", done.scenario, "--out", "ev")
    assert found.code == 130
    shutil.rmtree(folder)
    Steering.from_pretrained(done.folder / "artefacts/steering").at(0.75).save_pretrained(folder)
    line = cli("resume", "ev").refusal(notes=1)
    assert "here/steering has changed since ev began. Put the old one back" in line
